"""
What models are asked about documents, and the files of their answers.

The answers of a task lie in chunks, `RANK_chunk_INDEX.jsonl`, which are its checkpoints: a resumed run only asks for
what the unfinished chunks lack. Each line holds the number of the document in its task, so that the order in which
answers arrive does not matter.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document as EngineDocument

from mm1_hf.corpus.atomic import whole_file
from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.data.identity import differences


# Documents of a chunk. A model in this process loses the unfinished chunk when it is killed.
CHUNK = 64


@dataclass(frozen=True)
class Question:
    """
    What a model is asked about one document.

    Args:
        text: the prompt.
        image: the image that the model sees, if any.
    """

    text: str
    image: ImagePart | None = None


# Makes the question of a document. It raises `Unusable` for one that cannot be asked about.
Ask = Callable[[EngineDocument], Question]


@dataclass(frozen=True)
class ModelAnswer:
    """
    The answer of a model about one document, or the reason why there is none.

    Args:
        number: number of the document in its task, counted from 0.
        id: id of the document.
        text: the answer.
        cut_off: whether the answer was ended by the limit of its length.
        error: why there is no answer, in a few words that many documents share; `None` if there is one.
        detail: what exactly went wrong.
    """

    number: int
    id: str
    text: str = ""
    cut_off: bool = False
    error: str | None = None
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """The answer as a dict that JSON can hold."""
        return asdict(self)


def no_answer(number: int, document_id: str, why: Unusable) -> ModelAnswer:
    """
    The entry of a document that could not be asked about.

    Args:
        number: number of the document in its task.
        document_id: its id.
        why: the reason.
    """
    return ModelAnswer(number, document_id, error=why.reason, detail=why.detail)


def chunk_path(folder: str | os.PathLike[str], rank: int, index: int) -> Path:
    """
    The file of a chunk.

    Args:
        folder: folder of the answers.
        rank: number of the task.
        index: number of the chunk.
    """
    return Path(folder) / f"{rank:05d}_chunk_{index}.jsonl"


def read_answers(folder: str | os.PathLike[str], rank: int) -> Iterator[ModelAnswer]:
    """
    The answers of a task, in the order of its documents.

    Args:
        folder: folder of the answers.
        rank: number of the task.
    """
    index = 0
    while (path := chunk_path(folder, rank, index)).exists():
        with path.open(encoding="utf-8") as lines:
            answers = [ModelAnswer(**json.loads(line)) for line in lines]
        yield from sorted(answers, key=lambda answer: answer.number)
        index += 1


def require_same_writer(folder: str | os.PathLike[str], rank: int, writer: dict[str, Any]) -> None:
    """
    Notes who writes the answers of a task, so that those of another model or prompt are not mixed with them when a run
    is resumed.

    Args:
        folder: folder of the answers.
        rank: number of the task.
        writer: the model and all that decides its answers.

    Raises:
        ValueError: the folder holds answers of another writer.
    """
    path = Path(folder) / f"{rank:05d}_writer.json"
    if not path.exists():
        with whole_file(path) as partial:
            partial.write_text(json.dumps(writer, sort_keys=True), encoding="utf-8")
    if changes := differences(json.loads(path.read_text(encoding="utf-8")), writer):
        listed = "; ".join(
            f"{name}: {first!r:.200} before, {now!r:.200} now" for name, (first, now) in changes.items()
        )
        raise ValueError(
            f"{folder} holds answers that were asked for in another way: {listed}. Start the run with what it was "
            "started with, or in a new folder."
        )


def clean(text: str) -> str:
    """
    Replaces halves of characters, which JSON can spell and no file can hold.

    Args:
        text: the answer of a model.
    """
    return text.encode("utf-8", "replace").decode()
