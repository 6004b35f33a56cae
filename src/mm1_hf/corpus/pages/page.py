"""A page of text: its picture, and the lines and words that are to be read in it, each with its place."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from mm1_hf.grounding.regions import Box
from mm1_hf.grounding.text import RegionFormat


class Word(NamedTuple):
    """
    A word of a page.

    Args:
        text: the word, without white space.
        box: the box around its ink, in pixels of the page picture.
    """

    text: str
    box: Box


class Line(NamedTuple):
    """
    A line of a page.

    Args:
        words: the words, in reading order.
    """

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """The words, with a space between them."""
        return " ".join(word.text for word in self.words)

    @property
    def box(self) -> Box:
        """The box around all words, in pixels of the page picture."""
        return around([word.box for word in self.words])


@dataclass(frozen=True)
class Page:
    """
    A page of text.

    Args:
        name: where the page comes from; unique in a data set.
        picture: the picture of the page, as a PNG file.
        height, width: size of the picture, in pixels.
        lines: the lines, in reading order.
    """

    name: str
    picture: bytes
    height: int
    width: int
    lines: tuple[Line, ...]

    @cached_property
    def text(self) -> str:
        """The text of the page, one line of the picture in each line."""
        return "\n".join(line.text for line in self.lines)

    def line_records(self, form: RegionFormat) -> list[dict[str, Any]]:
        """
        The lines and their words with their places, as a table can hold them: `text`, `box` (left, upper, right and lower
        side in pixels of the picture), `region` (the same box as text, relative to the picture) and, of a line, `words`.

        Args:
            form: the format of `region`.
        """

        def placed(text: str, box: Box) -> dict[str, Any]:
            region = form.write(box, height=self.height, width=self.width)
            return {"text": text, "box": [round(float(side), 1) for side in box], "region": region}

        return [
            placed(line.text, line.box) | {"words": [placed(word.text, word.box) for word in line.words]}
            for line in self.lines
        ]


def around(boxes: Sequence[Box]) -> Box:
    """
    The smallest box that holds all boxes.

    Args:
        boxes: at least one box.
    """
    return Box(
        min(box.x1 for box in boxes),
        min(box.y1 for box in boxes),
        max(box.x2 for box in boxes),
        max(box.y2 for box in boxes),
    )


_LEADER = re.compile(r"[.·․…_]+")
_SHORTEST_LEADER = 4


def without_leaders(words: Sequence[Word]) -> list[Word]:
    """
    The words of a line, with the row of dots between an entry of a table of contents and its page number as one word,
    `"..."`.

    Args:
        words: the words of a line, from left to right.
    """
    found: list[Word] = []
    row: list[Word] = []
    for word in [*words, None]:
        if word is not None and _LEADER.fullmatch(word.text):
            row.append(word)
            continue
        if sum(len(dots.text) for dots in row) >= _SHORTEST_LEADER:
            row = [Word("...", around([dots.box for dots in row]))]
        found += row if word is None else [*row, word]
        row = []
    return found
