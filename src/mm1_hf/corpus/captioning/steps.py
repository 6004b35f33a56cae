"""The steps between the models: which pairs are asked about, which answers pass, and the records of the data set."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from datasets import Features, Image, Value
from datatrove.data import Document as EngineDocument

from mm1_hf.corpus.bridge import Documents
from mm1_hf.corpus.captioning.answers import ModelAnswer, read_answers
from mm1_hf.corpus.captioning.checks import CUT_OFF, tidied, whole_sentences
from mm1_hf.corpus.captioning.writers import WRITTEN
from mm1_hf.corpus.steps import KEPT, CountedStep
from mm1_hf.data.documents import Unusable


# Characters of an answer that the page of a run shows.
_SHOWN = 300

TWO_CAPTIONS_FEATURES = Features(
    {
        "name": Value("string"),
        "image": Image(),
        "caption": Value("string"),
        "synthetic_caption": Value("string"),
        "description": Value("string"),
        "provenance": Value("string"),
    }
)


class TakeAnswers(CountedStep):
    """
    Gives every document the answer of a model about it, or drops the document for what is wrong with the answer.

    Args:
        name: what the step does.
        folder: folder of the answers to the same documents, in the same order.
        key: what the text is, in the metadata of the document.
        fault: takes an answer without what models write around it, and its document, and returns the reason not to use
            it.
    """

    def __init__(
        self,
        name: str,
        folder: str | os.PathLike[str],
        key: str,
        fault: Callable[[str, EngineDocument], str | None],
    ) -> None:
        super().__init__(name)
        self.folder = os.fspath(folder)
        self.key = key
        self.fault = fault
        self._answers: Iterator[ModelAnswer] = iter(())
        self._answer = ModelAnswer(0, "")

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """
        Yields the documents of one task whose answers pass.

        Args:
            data: the documents.
            rank: number of the task.
            world_size: number of tasks.

        Raises:
            ValueError: the answers are to other documents.
        """
        self._answers = read_answers(self.folder, rank)
        yield from super().run(data, rank, world_size)

    def process_batch(self, documents: list[EngineDocument]) -> list[EngineDocument | Unusable]:
        """
        Takes the answer to the next document. An answer to another document is not that document's fault: it ends the
        task.

        Args:
            documents: one document.

        Raises:
            ValueError: the next answer is about another document, or there is none.
        """
        (document,) = documents
        answer = next(self._answers, None)
        if answer is None or answer.id != document.id:
            found = "there is none" if answer is None else f"it is about {answer.id}"
            raise ValueError(
                f"The next answer in {self.folder} should be about {document.id}, but {found}: the files that the run "
                "reads have changed since it was started. Start it again in a new folder."
            )
        self._answer = answer
        return super().process_batch(documents)

    def process(self, document: EngineDocument) -> EngineDocument:
        """
        Judges the answer to a document.

        Args:
            document: the document.

        Raises:
            Unusable: there is no answer, or something is wrong with it.
        """
        answer = self._answer
        if answer.error is not None:
            raise Unusable(answer.error, answer.detail)
        text = tidied(answer.text)
        if answer.cut_off:
            text = whole_sentences(text)
        reason = CUT_OFF if answer.cut_off and not text else self.fault(text, document)
        if reason is not None:
            raise Unusable(reason, " ".join(answer.text.split())[:_SHOWN])
        document.metadata[WRITTEN] = {**document.metadata.get(WRITTEN, {}), self.key: text}
        return document

    def count(self, document: EngineDocument, result: EngineDocument | Unusable) -> bool:
        """
        Counts a document, and shows what was written about it on the page of the run.

        Args:
            document: the document.
            result: what became of it.
        """
        if isinstance(result, Unusable):
            return super().count(document, result)
        self.stat_update(KEPT)
        self.samples.add(KEPT, result, result.metadata[WRITTEN][self.key][:_SHOWN])
        return True


def two_captions_record(document: EngineDocument, provenance: str) -> dict[str, Any]:
    """
    A record of the layout `two_captions`: an image with its alt text, and what models wrote about it.

    Args:
        document: the pair, with the texts `description` and `synthetic_caption` that models wrote.
        provenance: who wrote each text, as JSON.
    """
    (image,) = document.media
    return {
        "name": document.id,
        "image": {"bytes": image.media_bytes, "path": None},
        "caption": document.text,
        **document.metadata[WRITTEN],
        "provenance": provenance,
    }


def provenance_of(**writers: dict[str, Any]) -> str:
    """
    Who wrote each text of a record, as JSON.

    Args:
        writers: what is known of the writer of each column.
    """
    return json.dumps({"caption": "the alt text of the input", **writers}, sort_keys=True, ensure_ascii=False)
