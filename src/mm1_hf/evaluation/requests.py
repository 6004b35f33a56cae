"""What is asked of a model in an evaluation, and what it answers: the common form of all tasks and models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mm1_hf.data.documents import ImagePart


Part = str | ImagePart


@dataclass(frozen=True)
class Turn:
    """
    One message of a chat.

    Args:
        role: who writes it.
        parts: texts and images in reading order.
    """

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Request:
    """
    A prompt, and what is wanted of the model: a generated text, or the log-likelihoods of given texts.

    Args:
        prompt:
            texts and images in reading order, which the model continues as in pre-training; or turns of a chat, which
            end with a user's and are written by the model's chat template.
        max_new_tokens: maximum length of the generated text in tokens; 0 if log-likelihoods are wanted.
        stop: strings that end the generated text. They are not part of the answer.
        continuations:
            texts whose log-likelihoods after the prompt are wanted, each with the space that joins it to the prompt.
            In a chat they are the assistant's text.
        whole:
            indices of the images that are not split into tiles, counted in reading order; all others are split, whatever
            the processor's settings: of MM1's mixed-resolution demonstrations, only the last ones are. Unset, the
            settings decide. A model whose processor cannot mix both refuses it.
    """

    prompt: tuple[Part, ...] | tuple[Turn, ...]
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    continuations: tuple[str, ...] = ()
    whole: frozenset[int] | None = None

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The images in reading order."""
        parts = [part for each in self.prompt for part in (each.parts if isinstance(each, Turn) else (each,))]
        return tuple(part for part in parts if isinstance(part, ImagePart))

    @property
    def text(self) -> str:
        """The prompt as text for records: `<image>` in the place of each image, and the role before each turn of a chat."""
        written = []
        for each in self.prompt:
            parts = each.parts if isinstance(each, Turn) else (each,)
            text = "".join("<image>" if isinstance(part, ImagePart) else part for part in parts)
            written.append(f"[{each.role}]\n{text}\n" if isinstance(each, Turn) else text)
        return "".join(written)


@dataclass(frozen=True)
class Answer:
    """
    What a model answers to a request.

    Args:
        text: the generated text, cut before the first stop string, without special tokens.
        log_likelihoods: summed log-likelihood of the tokens of each continuation, in nats.
        greedy: whether each continuation is what greedy decoding would give.
        error:
            why there is no answer, such as an image that cannot be decoded or a prompt longer than the model's context.
            It is counted, and the answer is scored as an empty text.
    """

    text: str = ""
    log_likelihoods: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    error: str | None = None


class EvaluatedModel(Protocol):
    """A model that answers requests: one of transformers in this process, or one behind an endpoint."""

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """
        Answers requests as [`~EvaluatedModel.answer`] does, and yields the index of each request and its answer as soon as
        it is there, in any order.

        Args:
            requests: the requests.
        """
        ...

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """
        Answers requests of any mixture of kinds, lengths and numbers of images, in their order. The answers do not
        depend on which requests are asked together.

        Args:
            requests: the requests.
        """
        ...

    def describe(self) -> dict[str, object]:
        """What a record of the evaluation says about the model: its name, revision, dtype, tile settings, versions."""
        ...
