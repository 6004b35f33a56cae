"""Points and boxes in a picture, how far two boxes agree, and how many of the right ones were found."""

import random
from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """
    A place in a picture. Where nothing else is said, in pixels from its top left corner.

    Args:
        x: to the right.
        y: down.
    """

    x: float
    y: float


class Box(NamedTuple):
    """
    A rectangle in a picture. Where nothing else is said, in pixels from its top left corner.

    Args:
        x1: left side.
        y1: top.
        x2: right side, `x1` or more.
        y2: bottom, `y1` or more.
    """

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.x2 - self.x1) * (self.y2 - self.y1)

    @property
    def centre(self) -> Point:
        """The point in its middle."""
        return Point((self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2)


Region = Point | Box


def iou(first: Box, second: Box) -> float:
    """
    Intersection over union, 0 to 1. Boxes without an area share nothing.

    Args:
        first, second: in the same units.

    Example:

    ```python
    >>> from mm1_hf.grounding.regions import Box, iou

    >>> iou(Box(0, 0, 20, 10), Box(10, 0, 30, 10))
    0.3333333333333333

    ```
    """
    width = min(first.x2, second.x2) - max(first.x1, second.x1)
    height = min(first.y2, second.y2) - max(first.y1, second.y1)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (first.area + second.area - shared)


def recall(predicted: Sequence[Sequence[Box]], expected: Sequence[Sequence[Box]], threshold: float = 0.5) -> float:
    """
    The share of the expected boxes that were found, over all samples. A predicted box finds one expected box of its sample,
    whose IoU with it is above the threshold; where several could, those that agree best go together.

    With one box expected and one predicted per sample this is RefCOCO's accuracy.

    Args:
        predicted: the boxes of each sample; none where the model named none.
        expected: the right boxes of each sample.
        threshold: IoU above which two boxes are the same.

    Raises:
        ValueError: the samples differ in number, or no box is expected at all.

    Example:

    ```python
    >>> from mm1_hf.grounding.regions import Box, recall

    >>> recall([[Box(0, 0, 10, 9)], []], [[Box(0, 0, 10, 10)], [Box(5, 5, 8, 8)]])
    0.5

    ```
    """
    if len(predicted) != len(expected):
        raise ValueError(
            f"There are predictions for {len(predicted)} samples and right boxes for {len(expected)}; give a list of boxes "
            "for every sample, an empty one where nothing was predicted."
        )
    total = sum(map(len, expected))
    if not total:
        raise ValueError("No sample has a box to be found; recall is a share of those.")
    return sum(_found(*boxes, threshold) for boxes in zip(predicted, expected, strict=True)) / total


def _found(predicted: Sequence[Box], expected: Sequence[Box], threshold: float) -> int:
    pairs = [(iou(box, right), i, j) for i, box in enumerate(predicted) for j, right in enumerate(expected)]
    used, found = set(), set()
    for agreement, i, j in sorted(pairs, reverse=True):
        if agreement > threshold and i not in used and j not in found:
            used.add(i)
            found.add(j)
    return len(found)


def point_or_box(box: Box, draw: random.Random, point_share: float = 0.5) -> Region:
    """
    A box as a question may name it: the box, or a point in it. For training data that know boxes alone.

    The point is uniform in the middle half of the box, each way: an object seldom fills its box's corners. That is this
    package's choice; the papers do not state theirs.

    Args:
        box: an object's.
        draw: where chance comes from.
        point_share: how often it is a point.
    """
    if draw.random() >= point_share:
        return box
    return Point(
        box.x1 + (box.x2 - box.x1) * draw.uniform(0.25, 0.75), box.y1 + (box.y2 - box.y1) * draw.uniform(0.25, 0.75)
    )
