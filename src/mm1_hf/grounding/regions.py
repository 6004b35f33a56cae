"""Points and boxes in an image, the IoU of two boxes, and the recall of predicted boxes."""

import random
from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """
    A position in an image, in pixels from its upper left corner unless stated otherwise.

    Args:
        x: distance from the left side.
        y: distance from the upper side.
    """

    x: float
    y: float


class Box(NamedTuple):
    """
    A rectangle in an image, in pixels from its upper left corner unless stated otherwise.

    Args:
        x1: left side.
        y1: upper side.
        x2: right side, `x1` or more.
        y2: lower side, `y1` or more.
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
        """The centre of the box."""
        return Point((self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2)


Region = Point | Box


def iou(first: Box, second: Box) -> float:
    """
    Intersection over union of two boxes, from 0 to 1; 0 if a box has no area.

    Args:
        first, second: boxes in the same units.

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
    The share of the expected boxes of all samples that were found. A predicted box finds an expected box of its sample
    if their IoU is above the threshold. Pairs are matched in order of decreasing IoU, and each box is matched at most
    once.

    With one expected and one predicted box per sample, the recall is RefCOCO's accuracy.

    Args:
        predicted: the predicted boxes of each sample; an empty list if the model predicted none.
        expected: the expected boxes of each sample.
        threshold: IoU above which a predicted box finds an expected one.

    Raises:
        ValueError: the numbers of samples differ, or no sample has an expected box.

    Example:

    ```python
    >>> from mm1_hf.grounding.regions import Box, recall

    >>> recall([[Box(0, 0, 10, 9)], []], [[Box(0, 0, 10, 10)], [Box(5, 5, 8, 8)]])
    0.5

    ```
    """
    if len(predicted) != len(expected):
        raise ValueError(
            f"There are predicted boxes for {len(predicted)} samples and expected boxes for {len(expected)}; pass a "
            "list of boxes for every sample, and an empty list for a sample without boxes."
        )
    total = sum(map(len, expected))
    if not total:
        raise ValueError("No sample has an expected box, so the recall is undefined. Pass at least one expected box.")
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
    Returns the box or, at random, a point inside it. With it, training data that only has boxes yields questions about
    points, too.

    The point is drawn uniformly from the middle half of the box in both directions, because an object rarely fills the
    corners of its box. That is a choice of this package; the papers do not state theirs.

    Args:
        box: the box of an object.
        draw: the random number generator.
        point_share: probability that a point is returned.
    """
    if draw.random() >= point_share:
        return box
    return Point(
        box.x1 + (box.x2 - box.x1) * draw.uniform(0.25, 0.75), box.y1 + (box.y2 - box.y1) * draw.uniform(0.25, 0.75)
    )
