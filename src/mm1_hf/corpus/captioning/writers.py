"""A model that writes a caption of every image, behind an endpoint or in this process, and what it is asked."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from datatrove.data import Document as EngineDocument
from datatrove.pipeline.base import PipelineStep

from mm1_hf.corpus.bridge import image_of
from mm1_hf.corpus.captioning.answers import Question


# Key of the metadata of a document: the texts that models wrote about it, by what they are.
WRITTEN = "written"
ALT_TEXT = "alt_text"

_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class CaptionWriter:
    """
    A model, and what it is asked about every image.

    Args:
        prompt: the question. `{alt_text}` in it becomes the alt text, and the name of an earlier writer's text, such as
            `{description}`, becomes that text.
        sees: whether the model sees the image.
        model: folder or Hub id of the model; with `endpoint`, the name under which it is served.
        endpoint: address of the OpenAI-style server that answers; unset, the model is loaded into this process.
        max_tokens: largest number of tokens of an answer.
    """

    prompt: str
    sees: bool
    model: str
    endpoint: str | None = None
    max_tokens: int = 128

    def step(self, folder: str | os.PathLike[str], *, batch_size: int = 8, requests: int = 16) -> PipelineStep:
        """
        The step that asks the model about every document, as the last of its stage.

        Args:
            folder: folder of the answers.
            batch_size: number of documents that a model in this process is asked about at once.
            requests: number of requests to an endpoint that are under way.

        Raises:
            ValueError: `endpoint` is no address, or a batch does not divide a chunk of answers.
        """
        ask = partial(question, prompt=self.prompt, sees=self.sees)
        # Each imports packages that the other does not need.
        if self.endpoint is not None:
            from mm1_hf.corpus.captioning.endpoint import EndpointAnswers

            return EndpointAnswers(self, ask, folder, requests)
        from mm1_hf.corpus.captioning.local_model import LocalAnswers

        return LocalAnswers(self, ask, folder, batch_size)

    def instructions(self) -> str:
        """The prompt without the places of other texts."""
        return _PLACE.sub("\n", self.prompt)

    def provenance(self) -> dict[str, Any]:
        """Which model wrote a text, how it was asked, and with which settings."""
        return {
            "model": self.model,
            "served": self.endpoint is not None,
            "prompt": self.prompt,
            "prompt_sha256": hashlib.sha256(self.prompt.encode()).hexdigest(),
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }


def question(document: EngineDocument, prompt: str, sees: bool) -> Question:
    """
    What a model is asked about a document.

    Args:
        document: the document, whose text is the alt text.
        prompt: see [`CaptionWriter`].
        sees: whether the model sees the document's first image.
    """
    texts = {ALT_TEXT: document.text, **document.metadata.get(WRITTEN, {})}
    return Question(filled(prompt, texts), image_of(document.media[0]) if sees else None)


def filled(prompt: str, texts: Mapping[str, str]) -> str:
    """
    A prompt with texts in their places. What looks like a place inside of a text stays as it is.

    Args:
        prompt: the prompt.
        texts: the texts, by the names of their places.
    """
    return _PLACE.sub(lambda place: texts.get(place[1], place[0]), prompt)


def writer_of(model: str | None, endpoint: str | None, option: str, prompt: str, *, sees: bool) -> CaptionWriter:
    """
    The model that a run's settings name.

    Args:
        model: folder, Hub id or name of the model. Unset, the only one that the endpoint lists.
        endpoint: address of the server that answers; unset, the model is loaded into this process.
        option: name of the setting, for error messages.
        prompt: see [`CaptionWriter`].
        sees: whether the model sees the image.

    Raises:
        ValueError: neither a model nor an endpoint is given, the endpoint is no address, or it has several models.
        ConnectionError: the endpoint is to name its model, and does not answer.
    """
    if endpoint is None:
        if model is None:
            raise ValueError(
                f"No {option} is given. Give the folder or Hub id of a model ({option}), or the address of a server "
                f"that has one ({option}_endpoint)."
            )
        return CaptionWriter(prompt, sees, model)
    from mm1_hf.corpus.captioning.endpoint import check_address, only_model

    endpoint = check_address(endpoint)
    return CaptionWriter(prompt, sees, only_model(endpoint) if model is None else model, endpoint)
