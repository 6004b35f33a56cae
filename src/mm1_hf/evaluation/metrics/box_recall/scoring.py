"""
Recall of boxes (RefCOCO, RefCOCO+, RefCOCOg, Flickr30k Entities; MM1.5): the share of the expected boxes that an answer
names with an intersection over union above a threshold.

The boxes are read in the text of the answer by `mm1_hf.grounding.text.RegionFormat`, with coordinates up to 1000 of
the whole image. Only as many boxes are considered as are expected, the first ones, so that listing many boxes does not
help. An answer without a box finds nothing.
"""

from collections.abc import Mapping, Sequence

from mm1_hf.grounding.regions import Box, recall
from mm1_hf.grounding.text import RegionFormat

from .samples import score_each


HEADLINE = "recall"
UNIT = "fraction"
SAMPLE_COLUMNS = ("heights", "widths")
GROUP_COLUMNS: tuple[str, ...] = ()

_FORMAT = RegionFormat()
_CORNERS = 4


def score(
    prediction: str, reference: Sequence[Sequence[float]], height: int, width: int, threshold: float = 0.5
) -> float:
    """
    Returns the share of a sample's expected boxes that the answer names.

    Args:
        prediction: the answer of the model.
        reference: the expected boxes, each `[x1, y1, x2, y2]` in pixels.
        height, width: size of the image, in pixels.
        threshold: intersection over union above which a box is found.

    Raises:
        ValueError: there is no expected box, one is not four numbers in order, or the size is not positive.
    """
    if not reference or not all(len(box) == _CORNERS and box[0] <= box[2] and box[1] <= box[3] for box in reference):
        raise ValueError(
            f"the reference is {reference!r}; expected a list of at least one box [x1, y1, x2, y2] in pixels. Convert "
            "[x, y, width, height] to corners first."
        )
    if height <= 0 or width <= 0:
        raise ValueError(f"the image is {height} x {width} pixels; expected a positive height and width.")
    expected = [Box(*box) for box in reference]
    named = _FORMAT.boxes(prediction, height=height, width=width)[: len(expected)]
    return recall([named], [expected], threshold)


def per_sample(
    predictions: Sequence[str],
    references: Sequence[Sequence[Sequence[float]]],
    *,
    heights: Sequence[int],
    widths: Sequence[int],
    threshold: float = 0.5,
) -> list[dict[str, float]]:
    """
    Returns for every answer the share of the expected boxes that it names, and the number of expected boxes.

    Args:
        predictions: the answers of the model.
        references: the expected boxes of each sample, each `[x1, y1, x2, y2]` in pixels.
        heights, widths: sizes of the images, in pixels.
        threshold: intersection over union above which a box is found.
    """

    def scores(prediction, reference, height, width) -> dict[str, float]:
        found = score(prediction, reference, height, width, threshold)
        return {HEADLINE: found, "expected": float(len(reference))}

    return score_each(scores, str, predictions=predictions, references=references, heights=heights, widths=widths)


def aggregate(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """
    Returns the share of all expected boxes that were named.

    Args:
        samples: what `per_sample` returned.
    """
    found = sum(sample[HEADLINE] * sample["expected"] for sample in samples)
    return {HEADLINE: found / sum(sample["expected"] for sample in samples)}
