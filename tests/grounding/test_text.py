import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf.grounding.regions import Box, Point
from mm1_hf.grounding.text import RegionFormat


FERRET = RegionFormat()
FORMATS = [
    FERRET,
    RegionFormat("<point>{x} {y}</point>", "<box>{x1} {y1} {x2} {y2}</box>", frame=100),
    # The rows first and fixed widths; a box begins as a point does.
    RegionFormat("<loc{y:04d}><loc{x:04d}>", "<loc{y1:04d}><loc{x1:04d}><loc{y2:04d}><loc{x2:04d}>", frame=1024),
    RegionFormat("{x},{y};", "{x1},{y1},{x2},{y2};", frame=1),
]
SIZES = st.integers(1, 3000)


@st.composite
def pictures(draw) -> tuple[int, int, list[Point | Box]]:
    """A size, and regions inside of it."""
    height, width = draw(SIZES), draw(SIZES)

    def along(side: int):
        return st.floats(0, side, allow_nan=False) | st.integers(0, side)

    regions: list[Point | Box] = []
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            regions.append(Point(draw(along(width)), draw(along(height))))
        else:
            x1, x2 = sorted((draw(along(width)), draw(along(width))))
            y1, y2 = sorted((draw(along(height)), draw(along(height))))
            regions.append(Box(x1, y1, x2, y2))
    return height, width, regions


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.box)
@given(
    picture=pictures(), words=st.lists(st.sampled_from(["", " the cat ", "a [dog], ", "\n"]), min_size=5, max_size=5)
)
@settings(deadline=None, max_examples=60)
def test_what_is_written_is_found_where_it_stands(format, picture, words):
    height, width, regions = picture
    texts = [format.write(region, height=height, width=width) for region in regions]
    # Two points side by side are a box where a format does not close its regions.
    text = words[0] + "".join(f"{written} and{word}" for written, word in zip(texts, words[1:], strict=False))
    mentions = format.find(text, height=height, width=width)
    assert [text[mention.start : mention.end] for mention in mentions] == texts
    for mention, region, written in zip(mentions, regions, texts, strict=True):
        assert type(mention.region) is type(region)
        assert format.write(mention.region, height=height, width=width) == written
        sides = (width, height) * (len(region) // 2)
        for found, value, side in zip(mention.region, region, sides, strict=True):
            # Half a unit, and a whole one at the far side, which has a number of its own.
            assert abs(found - value) <= side / format.frame * (0.5 + 1e-6) or value > side * (1 - 1 / format.frame)
            assert 0 <= found <= side


@given(SIZES, st.data())
def test_coordinates_are_ferrets(side, data):
    x = data.draw(st.integers(0, side))
    assert FERRET.write(Point(x, 0), height=7, width=side) == f"[{x * 1000 // side}, 0]"


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        ("[100,200,300,400]", [Box(100, 200, 300, 400)]),
        ("[ 100 ,200\n, 300,  400 ]", [Box(100, 200, 300, 400)]),
        ("[300, 400, 100, 200]", [Box(100, 200, 300, 400)]),
        ("[-5, 0100, 2000, +400]", [Box(0, 100, 1000, 400)]),
        ("[100.5, 200.25]", [Point(100.5, 200.25)]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [Box(1, 2, 3, 4), Box(5, 6, 7, 8)]),
        ("a cat[1, 2, 3, 4]and a dog [5, 6].", [Box(1, 2, 3, 4), Point(5, 6)]),
        ("[1, 2, 3, 4] [5, 6, 7", [Box(1, 2, 3, 4)]),
        ("[1, 2, 3], [1], [], [1, 2, 3, 4, 5], [a, b], (1, 2), 1, 2", []),
        ("[1 2 3 4]", []),
    ],
)
def test_what_models_write_is_read_with_tolerance(text, regions):
    found = [mention.region for mention in FERRET.find(text, height=1000, width=1000)]
    assert found == [type(region)(*(_middle(value) for value in region)) for region in regions]
    assert FERRET.boxes(text, height=1000, width=1000) == [region for region in found if isinstance(region, Box)]


def _middle(value: float) -> float:
    """Where a number of a frame as large as the picture is read to be."""
    return value if value != int(value) or value == 1000 else value + 0.5


@given(st.text(alphabet="[]0123456789,. -x", max_size=60))
def test_any_text_can_be_read(text):
    for mention in FERRET.find(text, height=30, width=50):
        region = mention.region
        assert re.fullmatch(r"\[.*\]", text[mention.start : mention.end])
        assert all(0 <= value <= side for value, side in zip(region, (50, 30, 50, 30), strict=False))
        if isinstance(region, Box):
            assert region.x1 <= region.x2 and region.y1 <= region.y2


def test_boxes_of_a_question_become_points():
    draw = random.Random(0)
    question = "Is [100, 200, 300, 400] left of [500, 600, 700, 800] or of [5, 6]?"
    assert FERRET.points_for_boxes(question, draw, point_share=0.0) == question
    changed = FERRET.points_for_boxes(question, draw, point_share=1.0)
    match = re.fullmatch(r"Is \[(\d+), (\d+)\] left of \[(\d+), (\d+)\] or of \[5, 6\]\?", changed)
    x, y, x2, y2 = map(int, match.groups())
    assert 150 <= x <= 250 and 250 <= y <= 350 and 550 <= x2 <= 650 and 650 <= y2 <= 750


def test_what_is_outside_of_the_picture_is_brought_to_its_edge():
    assert FERRET.write(Box(-3, 5, 80, 70), height=60, width=60) == "[0, 83, 1000, 1000]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"point": "[{x}]"}, r"fields \['x'\]"),
        ({"point": "[{x}, {y}, {y}]"}, "each of x, y once"),
        ({"box": "[{x1}, {y1}, {x2}]"}, "each of x1, y1, x2, y2 once"),
        ({"box": "[{x1}{y1}, {x2}, {y2}]"}, "without any text between"),
        ({"frame": 0}, "frame is 0"),
    ],
)
def test_formats_that_cannot_be_read_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RegionFormat(**changes)
