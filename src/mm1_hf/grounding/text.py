"""
Points and boxes as text, and text as points and boxes (MM1.5, after Ferret).

Coordinates are whole numbers in a frame of the whole picture, whatever its size and shape: the left and the top side are 0,
the right and the bottom 1000. How the picture is resized, padded or cut into tiles does not touch them;
[`mm1_hf.grounding.tiles`] says where they lie in what the encoder sees.
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
# Models write floats, signs and leading zeros, whatever they were taught.
_NUMBER = r"[-+]?\d+(?:\.\d*)?"


@dataclass(frozen=True)
class Mention:
    """
    A region that a text names.

    Args:
        region: in the picture's pixels.
        start: where its text begins.
        end: where its text ends, so that `text[start:end]` is it.
    """

    region: Region
    start: int
    end: int


@dataclass(frozen=True)
class RegionFormat:
    """
    How regions are written. By default Ferret's way, `[x1, y1, x2, y2]` and `[x, y]` in a frame of 1000; that of MM1.5 is
    not published.

    What a model writes is read with tolerance: any white space between the template's parts, numbers with fractions and
    signs, corners in either order; what lies outside of the picture is brought to its edge. Brackets with another number of
    coordinates, or that end early, are no regions.

    Args:
        point: template with the fields `x` and `y`, once each, in any order.
        box: template with the fields `x1`, `y1`, `x2` and `y2`, once each, in any order. Fields may have a format, such as
            `<loc{y1:04d}>`.
        frame: what the picture's right and bottom side are called.

    Raises:
        ValueError: a template with other fields or with nothing between two of them, or a frame below 1.

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
                    f"The template {template!r} has the fields {found}; it needs each of {', '.join(expected)} once, such "
                    f"as {RegionFormat.point if expected is _POINT_FIELDS else RegionFormat.box!r}."
                )
            if not all(literal for literal, _ in pieces[1:]):
                raise ValueError(
                    f"The template {template!r} writes two numbers without anything between them, and nobody could tell "
                    "them apart; put a comma or a space there."
                )
        if self.frame < 1:
            raise ValueError(f"frame is {self.frame}; give what the right side is called, such as 1000.")

    def write(self, region: Region, *, height: int, width: int) -> str:
        """
        Args:
            region: in the picture's pixels; what lies outside of it is brought to its edge.
            height, width: of the picture, in pixels.

        Returns:
            Its text; coordinates are rounded down, as Ferret does.
        """
        sides = _sides(region, height, width)
        numbers = [self._to_frame(value, side) for value, side in zip(region, sides, strict=True)]
        return self._text(region, numbers)

    def find(self, text: str, *, height: int, width: int) -> list[Mention]:
        """
        All regions that a text names, in their order.

        Args:
            text: a model's, or anyone's.
            height, width: of the picture, in pixels.

        Returns:
            Where they are. A coordinate stands for the middle of the pixels that are written alike.
        """
        mentions = []
        for region, start, end in self._matches(text):
            sides = _sides(region, height, width)
            pixels = [self._to_pixels(value, side) for value, side in zip(region, sides, strict=True)]
            mentions.append(Mention(type(region)(*pixels), start, end))
        return mentions

    def boxes(self, text: str, *, height: int, width: int) -> list[Box]:
        """
        The boxes that a text names, without its points.

        Args:
            text: a model's, or anyone's.
            height, width: of the picture, in pixels.
        """
        regions = (mention.region for mention in self.find(text, height=height, width=width))
        return [region for region in regions if isinstance(region, Box)]

    def replace(self, text: str, change: Callable[[Region], Region]) -> str:
        """
        A text with other regions in place of its own.

        Args:
            text: with regions of this format.
            change: what each becomes, in the frame's units.
        """
        pieces, last = [], 0
        for region, start, end in self._matches(text):
            changed = change(region)
            pieces += [text[last:start], self._text(changed, [int(value) for value in changed])]
            last = end
        return "".join([*pieces, text[last:]])

    def points_for_boxes(self, text: str, draw: random.Random, point_share: float = 0.5) -> str:
        """
        A question of the training data with points in place of some of its boxes; see
        [`~mm1_hf.grounding.regions.point_or_box`]. Points stay as they are.

        Args:
            text: with regions of this format.
            draw: where chance comes from.
            point_share: how often a box becomes a point.
        """
        return self.replace(
            text, lambda region: point_or_box(region, draw, point_share) if isinstance(region, Box) else region
        )

    @cached_property
    def _pattern(self) -> re.Pattern:
        # The longer first: in some formats a box begins as a point.
        return re.compile(f"{_pattern_of(self.box)}|{_pattern_of(self.point)}")

    def _matches(self, text: str) -> Iterator[tuple[Region, int, int]]:
        """Regions in the frame's units, with their places."""
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
        # A whole number names all that was rounded down to it.
        middle = value + 0.5 if value == int(value) else value
        return min(middle, self.frame) * side / self.frame


def _sides(region: Region, height: int, width: int) -> tuple[int, ...]:
    """The side of the picture that each coordinate runs along."""
    return (width, height) * (len(region) // 2)


def _pattern_of(template: str) -> str:
    """A regular expression for what a template writes, with any white space where it may be."""
    pieces = []
    for literal, name, _, _ in Formatter().parse(template):
        # What has no white space of its own may get some around punctuation, never within a word.
        tokens = re.findall(r"\w+|[^\w\s]", literal)
        pieces += [rf"\s*{re.escape(token)}" for token in tokens]
        if name is not None:
            # Between two numbers there is something, at least white space.
            apart = r"\s+" if not tokens and literal else r"\s*"
            pieces.append(rf"{apart}(?P<{name}>{_NUMBER})")
    return "".join(pieces).removeprefix(r"\s*")
