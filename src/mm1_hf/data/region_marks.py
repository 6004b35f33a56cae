"""
The regions that other packages mark in conversations, written as this package writes regions: ms-swift's `objects`, and the
`<ref>` and `<box>` of Qwen-VL and InternVL.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mm1_hf.data.documents import Unusable
from mm1_hf.data.media import images_in, is_empty, read_text, record_image
from mm1_hf.data.raw_records import WRONG_LAYOUT, Record
from mm1_hf.grounding.regions import Box, Point, Region
from mm1_hf.grounding.text import RegionFormat


# Ferret's format, with whole numbers from 0 to 1000 relative to the whole image.
REGIONS = RegionFormat()

_THOUSANDTHS = 1000
_NUMBER = r"\s*(\d{1,4})\s*"
_QWEN_BOX = re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)")
_INTERNVL_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_BOXES = re.compile(r"<box>(.*?)</box>", re.DOTALL)
_SEPARATORS = re.compile(r"[\s,\[\]]*")


def with_regions_as_text(example: Record, name: str) -> Record:
    """
    Writes the `objects` of ms-swift into the messages of an example: `<ref-object>` becomes the next of the phrases under
    `ref`, and `<bbox>` the next of the points and boxes under `bbox`, which are in pixels, or with the `bbox_type`
    `"norm1"` fractions of the image; `image_id` says which image each is of. Other examples are returned unchanged.

    Args:
        example: the example.
        name: name of the example, for error messages.

    Raises:
        Unusable: the objects are not of this form, or their number differs from that of the marks.
    """
    objects, turns = example.get("objects"), example.get("messages")
    if not isinstance(objects, Mapping) or not isinstance(turns, list) or not objects.keys() & {"ref", "bbox"}:
        return example
    phrases = [read_text(phrase, name) for phrase in objects.get("ref") or ()]
    regions = _swift_regions(objects, example, name)
    marks = {"<ref-object>": iter(phrases), "<bbox>": iter(regions)}
    found = dict.fromkeys(marks, 0)

    def written(match: re.Match) -> str:
        found[match[0]] += 1
        return next(marks[match[0]], "")

    turns = with_texts_changed(turns, "content", lambda text: re.sub("<ref-object>|<bbox>", written, text))
    if list(found.values()) != [len(phrases), len(regions)]:
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: objects has {len(phrases)} phrases and {len(regions)} regions, but the messages have "
            f"{found['<ref-object>']} marks <ref-object> and {found['<bbox>']} marks <bbox>",
        )
    return {**{column: value for column, value in example.items() if column != "objects"}, "messages": turns}


def _swift_regions(objects: Mapping[str, Any], example: Record, name: str) -> list[str]:
    kind = objects.get("bbox_type") or "real"
    if kind not in ("real", "norm1"):
        raise Unusable(WRONG_LAYOUT, f"{name}: bbox_type is {kind!r:.100}, not 'real' or 'norm1'")
    given = objects.get("bbox") or []
    numbers = objects.get("image_id") or [0] * len(given)
    column = "images" if not is_empty(example.get("images")) else "image"
    images = images_in(example.get(column), f"{name}: {column}") if kind == "real" else []
    sizes: dict[int, tuple[int, int]] = {}
    regions = []
    for values, number in zip(given, numbers, strict=True):
        region = _region(values, f"{name}: an entry of bbox")
        if kind == "norm1":
            regions.append(REGIONS.write(region, height=1, width=1))
            continue
        if number not in range(len(images)):
            raise Unusable(WRONG_LAYOUT, f"{name}: a region is of image {number!r:.20}, but there are {len(images)}")
        if number not in sizes:
            sizes[number] = record_image(images[number], example, name).size()
        height, width = sizes[number]
        regions.append(REGIONS.write(region, height=height, width=width))
    return regions


def _region(values: Any, name: str) -> Region:
    if isinstance(values, list | tuple) and len(values) == len(Point._fields):
        return Point(*numbers_of(values, 2, name))
    return Box(*numbers_of(values, 4, name))


def without_box_marks(text: str, name: str) -> str:
    """
    Rewrites the boxes of Qwen-VL and InternVL in a text, and leaves of `<ref>` the phrase alone.

    Args:
        text: the text.
        name: name of the record, for error messages.

    Raises:
        Unusable: what is marked as a box is not one, or has coordinates above 1000.
    """

    def written(match: re.Match) -> str:
        pattern = _INTERNVL_BOX if "[" in match[1] else _QWEN_BOX
        boxes = [[float(number) for number in box] for box in pattern.findall(match[1])]
        rest = _SEPARATORS.sub("", pattern.sub("", match[1]))
        if not boxes or rest or any(number > _THOUSANDTHS for box in boxes for number in box):
            raise Unusable(
                WRONG_LAYOUT, f"{name}: {match[0]!r:.100} is not a box of coordinates from 0 to {_THOUSANDTHS}"
            )
        return " " + ", ".join(REGIONS.write(Box(*box), height=_THOUSANDTHS, width=_THOUSANDTHS) for box in boxes)

    return _BOXES.sub(written, text).replace("<ref>", "").replace("</ref>", "")


def with_texts_changed(turns: Sequence[Any], key: str, change: Callable[[str], str]) -> list[Any]:
    """
    The turns of a conversation with changed texts. Turns of another form are left as they are, for whoever reads them.

    Args:
        turns: the turns.
        key: the key of the turns' texts.
        change: returns the text that takes the place of another.
    """
    return [
        {**turn, key: change(turn[key])} if isinstance(turn, Mapping) and isinstance(turn.get(key), str) else turn
        for turn in turns
    ]


def numbers_of(value: Any, number: int, name: str) -> list[float]:
    """
    Checks that a value is a list of finite numbers.

    Args:
        value: the value.
        number: how many numbers it must hold.
        name: name of the record and the value, for error messages.

    Raises:
        Unusable: it is not.
    """
    values = value if isinstance(value, list | tuple) else []
    if len(values) != number or not all(
        isinstance(entry, int | float) and not isinstance(entry, bool) and entry == entry and abs(entry) < 1e9
        for entry in values
    ):
        raise Unusable(WRONG_LAYOUT, f"{name} is {value!r:.100}, not {number} numbers")
    return [float(entry) for entry in values]
