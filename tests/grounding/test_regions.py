import random
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf.grounding.regions import Box, Point, iou, point_or_box, recall


SIDE = 12


@st.composite
def boxes(draw) -> Box:
    x1, x2 = sorted(draw(st.lists(st.integers(0, SIDE), min_size=2, max_size=2)))
    y1, y2 = sorted(draw(st.lists(st.integers(0, SIDE), min_size=2, max_size=2)))
    return Box(x1, y1, x2, y2)


def pixels(box: Box) -> np.ndarray:
    canvas = np.zeros((SIDE, SIDE), dtype=bool)
    canvas[box.y1 : box.y2, box.x1 : box.x2] = True
    return canvas


@given(boxes(), boxes())
@settings(deadline=None)
def test_iou_is_that_of_the_pixels(first, second):
    union = (pixels(first) | pixels(second)).sum()
    shared = (pixels(first) & pixels(second)).sum()
    assert iou(first, second) == pytest.approx(shared / union if shared else 0.0)
    assert iou(first, second) == iou(second, first)


@given(st.lists(boxes(), max_size=3), st.lists(boxes(), min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_recall_pairs_boxes_one_to_one(predicted, expected):
    padded = predicted + [Box(0, 0, 0, 0)] * max(0, len(expected) - len(predicted))
    # Above 0.7 of different boxes no pairing beats that of those that agree best.
    expected = list(dict.fromkeys(expected))
    best = max(
        sum(iou(box, right) > 0.7 for box, right in zip(chosen, expected, strict=True))
        for chosen in permutations(padded, len(expected))
    )
    found = recall([predicted], [expected], threshold=0.7) * len(expected)
    assert found == pytest.approx(best) or (found == best - 1 and _ambiguous(predicted, expected))


def _ambiguous(predicted: list[Box], expected: list[Box]) -> bool:
    """Whether one box could stand for two others."""
    matches = [[iou(box, right) > 0.7 for right in expected] for box in predicted]
    return any(sum(row) > 1 for row in matches) or any(sum(column) > 1 for column in zip(*matches, strict=True))


def test_a_predicted_box_finds_one_and_the_threshold_itself_is_not_enough():
    box = Box(0, 0, 10, 10)
    assert recall([[box]], [[box, box]]) == 0.5
    assert recall([[box, box]], [[box]]) == 1.0
    assert iou(box, Box(0, 0, 10, 5)) == 0.5 and recall([[Box(0, 0, 10, 5)]], [[box]]) == 0.0
    assert recall([[Box(0, 0, 10, 5)]], [[box]], threshold=0.4) == 1.0


@pytest.mark.parametrize(
    ("predicted", "expected", "message"),
    [([[]], [], "1 samples and expected boxes for 0"), ([[], []], [[], []], "No sample has an expected box")],
)
def test_recall_of_what_cannot_be_paired_is_refused(predicted, expected, message):
    with pytest.raises(ValueError, match=message):
        recall(predicted, expected)


def test_boxes_become_points_inside_as_often_as_asked():
    draw, box = random.Random(0), Box(10, 20, 30, 60)
    regions = [point_or_box(box, draw, point_share=0.3) for _ in range(2000)]
    points = [region for region in regions if isinstance(region, Point)]
    assert 0.26 < len(points) / 2000 < 0.34
    assert all(15 <= point.x <= 25 and 30 <= point.y <= 50 for point in points)
    assert np.std([point.x for point in points]) == pytest.approx(10 / 12**0.5, rel=0.1)
    assert {region for region in regions if isinstance(region, Box)} == {box}
