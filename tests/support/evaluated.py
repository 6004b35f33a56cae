"""A model for tests of the evaluation's runner. Its answers follow from the prompt alone; it may take its time or fail."""

import hashlib
import time
from collections.abc import Iterator, Sequence

from mm1_hf.evaluation.requests import Answer, Request


class FakeModel:
    """
    Answers with one of some words, and dies after a number of requests where that is asked for.

    `said` holds the texts of all prompts.
    """

    def __init__(
        self,
        words: Sequence[str] = ("yes", "no", "red", "circle"),
        *,
        name: str = "fake",
        kind: str = "local",
        seconds: float = 0.0,
        dies_after: int | None = None,
    ) -> None:
        self.words = words
        self.name = name
        self.kind = kind
        self.seconds = seconds
        self.dies_after = dies_after
        self.said: list[str] = []

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        # As a real one that sorts by length: not in their order.
        for index, request in reversed(list(enumerate(requests))):
            if self.dies_after is not None and len(self.said) >= self.dies_after:
                raise ConnectionError("The endpoint does not answer.")
            time.sleep(self.seconds)
            self.said.append(request.text)
            draw = hashlib.sha256(f"{self.name} {request.text}".encode()).digest()
            values = tuple(-float(draw[number % 32]) for number in range(len(request.continuations)))
            yield index, Answer(self.words[draw[0] % len(self.words)], values, tuple(value > -60 for value in values))

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        found = dict(self.answers(requests))
        return [found[index] for index in range(len(requests))]

    def describe(self) -> dict[str, object]:
        return {"kind": self.kind, "name": self.name}
