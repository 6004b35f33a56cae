"""
Writes points and boxes as text, and finds them in text (MM1.5, after Ferret).

Coordinates are whole numbers relative to the whole image, whatever its size and shape: the left and the upper side of
the image are at 0, the right and the lower side at 1000. They do not depend on how the image is resized, padded or
split into tiles; [`mm1_hf.grounding.tiles`] converts positions in the image to positions in its tiles.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from string import Formatter

from mm1_hf.grounding.regions import Box, Point, Region, point_or_box


_POINT_FIELDS = Point._fields
_BOX_FIELDS = Box._fields
# Models write fractions, signs and leading zeros even if they were not trained on them.
_NUMBER = r"[-+]?\d+(?:\.\d*)?"


@dataclass(frozen=True)
class Mention:
    """
    A region found in a text.

    Args:
        region: the region, in pixels of the image.
        start: index of its first character in the text.
        end: index after its last character, so that `text[start:end]` is the text of the region.
    """

    region: Region
    start: int
    end: int


@dataclass(frozen=True)
class RegionFormat:
    """
    The text format of regions. The default is Ferret's, `[x1, y1, x2, y2]` and `[x, y]` with coordinates up to 1000;
    the format of MM1.5 is not published.

    Reading is more tolerant than writing: between the parts of a template any white space is accepted, numbers may
    have fractions and signs, and the corners of a box may come in either order. Coordinates outside the image are
    moved to its edge. Text in brackets that has another number of coordinates, or no closing bracket, is not read as a
    region.

    Args:
        point: template with the fields `x` and `y`, each once, in any order.
        box: template with the fields `x1`, `y1`, `x2` and `y2`, each once, in any order. Fields may have a format, for
            example `<loc{y1:04d}>`.
        frame: the coordinate of the right and the lower side of the image.

    Raises:
        ValueError: a template has other fields or no text between two fields, or `frame` is below 1.

    Example:

    ```python
    >>> from mm1_hf.grounding.regions import Box
    >>> from mm1_hf.grounding.text import RegionFormat

    >>> ferret = RegionFormat()
    >>> ferret.write(Box(64, 0, 640, 240), height=480, width=640)
    '[100, 0, 1000, 500]'
    >>> (mention,) = ferret.find("A cat [100,0, 1000, 500] sleeps.", height=480, width=640)
    >>> mention.region, mention.start, mention.end
    (Box(x1=64.32, y1=0.24, x2=640.0, y2=240.24), 6, 24)

    ```
    """

    point: str = "[{x}, {y}]"
    box: str = "[{x1}, {y1}, {x2}, {y2}]"
    frame: int = 1000

    def __post_init__(self) -> None:
        for template, expected in ((self.point, _POINT_FIELDS), (self.box, _BOX_FIELDS)):
            pieces = [(literal, name) for literal, name, _, _ in Formatter().parse(template) if name is not None]
            found = [name for _, name in pieces]
            if sorted(found) != sorted(expected):
                raise ValueError(
                    f"The template {template!r} has the fields {found}; use each of {', '.join(expected)} once, for "
                    f"example {RegionFormat.point if expected is _POINT_FIELDS else RegionFormat.box!r}."
                )
            if not all(literal for literal, _ in pieces[1:]):
                raise ValueError(
                    f"The template {template!r} has two fields without any text between them, so their numbers would "
                    "run together; put a comma or a space between them."
                )
        if self.frame < 1:
            raise ValueError(
                f"frame is {self.frame}; set it to the coordinate of the right and the lower side of the image, for "
                "example 1000. It must be at least 1."
            )

    def write(self, region: Region, *, height: int, width: int) -> str:
        """
        Writes a region as text.

        Args:
            region: the region, in pixels of the image; coordinates outside the image are moved to its edge.
            height, width: size of the image, in pixels.

        Returns:
            The text of the region. Coordinates are rounded down, as in Ferret.
        """
        sides = _sides(region, height, width)
        numbers = [self._to_frame(value, side) for value, side in zip(region, sides, strict=True)]
        return self._text(region, numbers)

    def find(self, text: str, *, height: int, width: int) -> list[Mention]:
        """
        Finds all regions in a text, in order.

        Args:
            text: any text, for example an answer of a model.
            height, width: size of the image, in pixels.

        Returns:
            The regions with their positions in the text. Because [`write`] rounds down, a whole number is read as the
            middle of the interval of positions that are written as this number.
        """
        mentions = []
        for region, start, end in self._matches(text):
            sides = _sides(region, height, width)
            pixels = [self._to_pixels(value, side) for value, side in zip(region, sides, strict=True)]
            mentions.append(Mention(type(region)(*pixels), start, end))
        return mentions

    def boxes(self, text: str, *, height: int, width: int) -> list[Box]:
        """
        Finds all boxes in a text, but not the points.

        Args:
            text: any text, for example an answer of a model.
            height, width: size of the image, in pixels.
        """
        regions = (mention.region for mention in self.find(text, height=height, width=width))
        return [region for region in regions if isinstance(region, Box)]

    def replace(self, text: str, change: Callable[[Region], Region]) -> str:
        """
        Returns a copy of a text with its regions replaced.

        Args:
            text: a text with regions of this format.
            change: function that returns the replacement of a region; both have coordinates from 0 to `frame`.
        """
        pieces, last = [], 0
        for region, start, end in self._matches(text):
            changed = change(region)
            pieces += [text[last:start], self._text(changed, [int(value) for value in changed])]
            last = end
        return "".join([*pieces, text[last:]])

    def points_for_boxes(self, text: str, draw: random.Random, point_share: float = 0.5) -> str:
        """
        Replaces some boxes of a training question by points inside them; see
        [`~mm1_hf.grounding.regions.point_or_box`]. Points in the question are not changed.

        Args:
            text: a text with regions of this format.
            draw: the random number generator.
            point_share: probability that a box is replaced by a point.
        """
        return self.replace(
            text, lambda region: point_or_box(region, draw, point_share) if isinstance(region, Box) else region
        )

    @cached_property
    def _pattern(self) -> re.Pattern:
        # Boxes first: in some formats the text of a box begins with the text of a point.
        return re.compile(f"{_pattern_of(self.box)}|{_pattern_of(self.point)}")

    def _matches(self, text: str) -> Iterator[tuple[Region, int, int]]:
        """Regions with coordinates from 0 to `frame`, each with the start and the end of its text."""
        for match in self._pattern.finditer(text):
            groups = match.groupdict()
            numbers = {name: min(max(float(value), 0.0), self.frame) for name, value in groups.items() if value}
            if "x" in numbers:
                region: Region = Point(**numbers)
            else:
                left, right = sorted((numbers["x1"], numbers["x2"]))
                top, bottom = sorted((numbers["y1"], numbers["y2"]))
                region = Box(left, top, right, bottom)
            yield region, match.start(), match.end()

    def _text(self, region: Region, numbers: list[int]) -> str:
        template = self.box if isinstance(region, Box) else self.point
        return template.format(**dict(zip(region._fields, numbers, strict=True)))

    def _to_frame(self, value: float, side: int) -> int:
        return min(max(int(value * self.frame / side), 0), self.frame)

    def _to_pixels(self, value: float, side: int) -> float:
        # A whole number stands for the interval of all values that are rounded down to it.
        middle = value + 0.5 if value == int(value) else value
        return min(middle, self.frame) * side / self.frame


def _sides(region: Region, height: int, width: int) -> tuple[int, ...]:
    """For each coordinate of a region, the width or the height of the image, in which it is measured."""
    return (width, height) * (len(region) // 2)


def _pattern_of(template: str) -> str:
    """A regular expression that matches what a template writes, with additional white space."""
    pieces = []
    for literal, name, _, _ in Formatter().parse(template):
        # White space may be added around words and punctuation, but not inside a word.
        tokens = re.findall(r"\w+|[^\w\s]", literal)
        pieces += [rf"\s*{re.escape(token)}" for token in tokens]
        if name is not None:
            # Where the template has only white space between two numbers, the text must have some, too.
            apart = r"\s+" if not tokens and literal else r"\s*"
            pieces.append(rf"{apart}(?P<{name}>{_NUMBER})")
    return "".join(pieces).removeprefix(r"\s*")
