"""Records that name points and boxes: what their text says is where they are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import encoded, picture

from mm1_hf.data.documents import Unusable
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.grounding.regions import Box, Point
from mm1_hf.grounding.text import RegionFormat


FORMAT = RegionFormat()
FRACTIONS = st.floats(0, 1, allow_subnormal=False)
SIDES = st.integers(5, 60)


def text_of(document) -> str:
    return "\n".join(part for part in document.parts if isinstance(part, str))


def found(document, height: int, width: int) -> list:
    return [mention.region for mention in FORMAT.find(text_of(document), height=height, width=width)]


def close(region, expected, height: int, width: int) -> bool:
    """Within a thousandth of the image, the unit of the text."""
    sides = (width, height) * 2
    return all(abs(a - b) <= side / 500 for a, b, side in zip(region, expected, sides, strict=False))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=6), st.booleans())
def test_points_of_pixmo_are_per_cents(points, as_columns):
    rows = [{"x": x, "y": y} for x, y in points]
    columns = {"x": [x for x, _ in points], "y": [y for _, y in points]}
    record = {"image": encoded(picture(0)), "label": "bus", "points": columns if as_columns and points else rows}
    regions = found(LAYOUTS["pixmo_points"](record), 100, 100)
    assert all(close(region, point, 100, 100) for region, point in zip(regions, points, strict=True))
    assert all(isinstance(region, Point) for region in regions)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.tuples(FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS))
def test_boxes_of_refcoco_in_both_forms(height, width, corners):
    x1, x2 = sorted((corners[0] * width, corners[2] * width))
    y1, y2 = sorted((corners[1] * height, corners[3] * height))
    image = encoded(picture(0, width, height))
    for record in (
        {"image": image, "answer": ["the bus", "it"], "bbox": [x1, y1, x2 - x1, y2 - y1]},
        {"image": image, "captions": ["the bus", "it"], "bbox": [x1, y1, x2, y2], "sent_ids": [1]},
    ):
        document = LAYOUTS["refcoco"](record)
        regions = found(document, height, width)
        assert len(regions) == 2 and all(close(region, (x1, y1, x2, y2), height, width) for region in regions)
        assert [message["role"] for message in document.messages] == ["user", "assistant"] * 2


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.tuples(FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS))
def test_boxes_of_llava_are_fractions_of_the_padded_square(height, width, corners):
    x1, x2 = sorted((corners[0] * width, corners[2] * width))
    y1, y2 = sorted((corners[1] * height, corners[3] * height))
    side = max(height, width)
    across, down = (side - width) / 2, (side - height) / 2
    fractions = [(x1 + across) / side, (y1 + down) / side, (x2 + across) / side, (y2 + down) / side]
    box = ", ".join(f"{fraction:.3f}" for fraction in fractions)
    record = {
        "image": encoded(picture(0, width, height)),
        "conversations": [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": f"[{box}]"}],
    }
    (region,) = found(LAYOUTS["llava_regions"](record), height, width)
    # LLaVA writes three digits of the square, which may be much longer than a side of the image.
    assert all(
        abs(a - b) <= side / 1000 + length / 500
        for a, b, length in zip(region, (x1, y1, x2, y2), (width, height) * 2, strict=True)
    )


def test_lists_of_whole_numbers_are_no_boxes_of_llava():
    record = {
        "image": encoded(picture(0)),
        "conversations": [
            {"from": "human", "value": "Next of [0, 1, 0, 1]? [0.5, 0, 1, 1.0]"},
            {"from": "gpt", "value": "0"},
        ],
    }
    assert text_of(LAYOUTS["llava_regions"](record)).startswith("Next of [0, 1, 0, 1]? [500, 0, 1000, 1000]")


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=1, max_size=4), st.booleans())
def test_objects_of_swift_take_the_places_of_their_marks(height, width, points, in_pixels):
    scale = (width, height) if in_pixels else (1, 1)
    record = {
        "images": [encoded(picture(1)), encoded(picture(0, width, height))],
        "messages": [
            {"role": "user", "content": "<image><image>Where is <ref-object>?"},
            {"role": "assistant", "content": "At " + " and ".join(["<bbox>"] * len(points))},
        ],
        "objects": {
            "ref": ["the bus"],
            "bbox": [[x * scale[0], y * scale[1]] for x, y in points],
            "bbox_type": "real" if in_pixels else "norm1",
            "image_id": [1] * len(points),
        },
    }
    document = LAYOUTS["chat"](record)
    assert "Where is the bus?" in text_of(document)
    regions = found(document, height, width)
    expected = [(x * width, y * height) for x, y in points]
    assert all(close(region, point, height, width) for region, point in zip(regions, expected, strict=True))
    record["objects"]["bbox"].append([0, 0])
    record["objects"]["image_id"].append(1)
    with pytest.raises(Unusable, match="regions, but the messages have"):
        LAYOUTS["chat"](record)


def test_boxes_follow_their_phrases_in_a_caption_of_grit():
    record = {
        "url": "https://a.example/0.jpg",
        "caption": "a dog and a dog by a tree",
        "noun_chunks": [[18, 25, 0, 0, 0.5, 0.5, 1], [0, 5, 0.1, 0.1, 0.2, 0.2, 1], [0, 5, 0.3, 0.3, 0.4, 0.4, 1]],
    }
    text = LAYOUTS["grit"](record).parts[1]
    assert text == "a dog [100, 100, 200, 200] [300, 300, 400, 400] and a dog by a tree [0, 0, 500, 500]"
    assert FORMAT.boxes(text, height=1000, width=1000)[0] == Box(100.5, 100.5, 200.5, 200.5)
    record["noun_chunks"][0][1] = 26
    with pytest.raises(Unusable, match="ends at 26, but the caption has 25 letters"):
        LAYOUTS["grit"](record)


@pytest.mark.parametrize(
    "marked", ["<box>a dog</box>", "<box></box>", "<box>(1,2)</box>", "<box>[[1, 2, 3, 1001]]</box>"]
)
def test_marks_that_are_no_boxes_are_refused(marked):
    record = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": marked}]}
    for layout in ("qwen_vl", "internvl"):
        with pytest.raises(Unusable, match="is not a box of coordinates from 0 to 1000"):
            LAYOUTS[layout](record)
