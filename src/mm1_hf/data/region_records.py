"""
Layouts of records that name points and boxes: PixMo, RefCOCO, GRIT, LLaVA's boxes, and the marks of ms-swift, Qwen-VL and
InternVL. In the text, regions are written as [`mm1_hf.grounding.text.RegionFormat`] writes them by default (MM1.5, after
Ferret): whole numbers from 0 to 1000 relative to the whole image.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mm1_hf.data.chats import Chat
from mm1_hf.data.documents import Document, Unusable
from mm1_hf.data.media import images_in, is_empty, read_text, record_image
from mm1_hf.data.raw_records import WRONG_LAYOUT, Record
from mm1_hf.data.record_documents import (
    columns_of,
    conversation_of,
    document_of,
    list_of,
    name_of,
    read_whole,
    unwrapping,
)
from mm1_hf.data.region_marks import REGIONS, numbers_of, with_texts_changed, without_box_marks
from mm1_hf.grounding.regions import Box, Point


# A box of LLaVA: four fractions, of which one at least is written with a point.
_FRACTION = r"(?:0?\.\d+|[01](?:\.0*)?|0\.\d+)"
_LLAVA_BOX = re.compile(rf"\[\s*({_FRACTION})\s*,\s*({_FRACTION})\s*,\s*({_FRACTION})\s*,\s*({_FRACTION})\s*\]")
_QWEN_IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)


@unwrapping
def pixmo_points(record: Record, name: str = "") -> Chat:
    """
    PixMo-Points and PixMo-Count (`allenai/pixmo-points`): `image_url` or `image`, a `label`, and `points`, a list of
    `{"x", "y"}` in per cent of the image. The answer lists the points, or says that there are none.
    """
    name, label = name_of(record, name), _text(record, "label", name)
    points = []
    for point in _rows(record, "points", name):
        x, y = numbers_of([point.get("x"), point.get("y")], 2, f"{name}: a point")
        points.append(REGIONS.write(Point(x, y), height=100, width=100))
    answer = ", ".join(points) or "There are none."
    return _exchanges(record, name, [(f"Point to each of these in the image: {label}", answer)], ("points",))


@unwrapping
def pixmo_count(record: Record, name: str = "") -> Chat:
    """PixMo-Count (`allenai/pixmo-count`): `image_url` or `image`, a `label`, and their number under `count`."""
    name, label, count = name_of(record, name), _text(record, "label", name), record.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise Unusable(WRONG_LAYOUT, f"{name}: count is {count!r:.100}, not a number of things")
    return _exchanges(record, name, [(f"How many of these are in the image: {label}", str(count))], ("points",))


@unwrapping
def pixmo_qa(record: Record, name: str = "") -> Chat:
    """PixMo-AskModelAnything (`allenai/pixmo-ask-model-anything`): `image_url` or `image`, a `question` and an `answer`."""
    name = name_of(record, name)
    return _exchanges(record, name, [(_text(record, "question", name), _text(record, "answer", name))])


@unwrapping
def refcoco(record: Record, name: str = "") -> Chat:
    """
    RefCOCO, RefCOCO+ and RefCOCOg: an image, a `bbox` in pixels, and the expressions that refer to it. Each expression
    becomes a question for its box. Two forms are read: `image` with the expressions under `answer` and a box
    `[x, y, width, height]`, and `image_path` with the expressions under `captions` and a box `[x1, y1, x2, y2]`.
    """
    name = name_of(record, name)
    corners = not is_empty(record.get("captions"))
    expressions = list_of(record, "captions" if corners else "answer", name)
    x, y, right, lower = numbers_of(record.get("bbox"), 4, f"{name}: bbox")
    box = Box(x, y, right, lower) if corners else Box(x, y, x + right, y + lower)
    height, width = _only_image(record, name).size()
    answer = REGIONS.write(box, height=height, width=width)
    exchanges = [
        (f"What is the location of {read_text(expression, name).strip()} in the image?", answer)
        for expression in expressions
    ]
    return _exchanges(record, name, exchanges, ("image_path", "raw_image_info"))


@unwrapping
def grit(record: Record, name: str = "") -> Document:
    """
    GRIT of Kosmos-2 (`zzliang/GRIT`): `url` or `image`, a `caption`, and `noun_chunks`, a list of
    `[start, end, x1, y1, x2, y2, score]`: where a phrase stands in the caption, and its box as fractions of the image. The
    caption is the text, with each box after its phrase.
    """
    name, caption = name_of(record, name), _text(record, "caption", name)
    chunks = [
        numbers_of(chunk, 7, f"{name}: an entry of noun_chunks") for chunk in list_of(record, "noun_chunks", name)
    ]
    boxes: dict[int, list[str]] = {}
    for _, end, *corners, _ in sorted(chunks):
        if not 0 <= end <= len(caption):
            raise Unusable(
                WRONG_LAYOUT, f"{name}: a phrase ends at {end:g}, but the caption has {len(caption)} letters"
            )
        boxes.setdefault(int(end), []).append(REGIONS.write(Box(*corners), height=1, width=1))
    text, last = "", 0
    for end in sorted(boxes):
        text += f"{caption[last:end]} {' '.join(boxes[end])}"
        last = end
    text += caption[last:]
    image = record_image(first_image(record, name), record, name)
    return read_whole(document_of([image, text.strip()], name, "caption"), record, ("image", "url", "image_url"))


@unwrapping
def llava_regions(record: Record, name: str = "") -> Chat:
    """
    LLaVA's conversations as [`mm1_hf.data.layouts.llava_chat`] reads them, with their boxes `[x1, y1, x2, y2]` rewritten.
    LLaVA writes them as fractions of the square to which it pads the image.
    """
    name = name_of(record, name)
    turns = list_of(record, "conversations", name)
    texts = [turn.get("value") for turn in turns if isinstance(turn, Mapping)]
    if not any(isinstance(text, str) and _LLAVA_BOX.search(text) for text in texts):
        return conversation_of(record, name, ("conversations",), strip=True)
    height, width = _only_image(record, name).size()
    side = max(height, width)

    def written(match: re.Match) -> str:
        if not any("." in fraction for fraction in match.groups()):
            return match[0]
        left, top, right, lower = (float(fraction) * side for fraction in match.groups())
        across, down = (side - width) / 2, (side - height) / 2
        box = Box(left - across, top - down, right - across, lower - down)
        return REGIONS.write(box, height=height, width=width)

    record = {
        **record,
        "conversations": with_texts_changed(turns, "value", lambda text: _LLAVA_BOX.sub(written, text)),
    }
    return conversation_of(record, name, ("conversations",), strip=True)


@unwrapping
def qwen_vl(record: Record, name: str = "") -> Chat:
    """
    Qwen-VL's conversations: `<img>path</img>` in a text places an image, and `<ref>phrase</ref><box>(x1,y1),(x2,y2)</box>`
    names a region by coordinates from 0 to 1000. Regions are rewritten.
    """
    name = name_of(record, name)
    turns, images = list_of(record, "conversations", name), []

    def placed(text: str) -> str:
        images.extend(path.strip() for path in _QWEN_IMAGE.findall(text))
        return _QWEN_IMAGE.sub("<image>", without_box_marks(text, name))

    turns = with_texts_changed(turns, "value", placed)
    own = {"images": images} if images else {}
    return conversation_of({**record, "conversations": turns, **own}, name, ("conversations",))


@unwrapping
def internvl(record: Record, name: str = "") -> Chat:
    """
    InternVL's conversations: those of LLaVA, with regions as `<ref>phrase</ref><box>[[x1, y1, x2, y2]]</box>` by
    coordinates from 0 to 1000, which are rewritten.
    """
    name = name_of(record, name)
    turns = with_texts_changed(
        list_of(record, "conversations", name), "value", lambda text: without_box_marks(text, name)
    )
    return conversation_of({**record, "conversations": turns}, name, ("conversations",))


def first_image(record: Record, name: str) -> Any:
    """
    The image of a record of one image: that under `image` or `images`, or else the address under `image_path`,
    `image_url` or `url`.

    Args:
        record: the record.
        name: name of the record, for error messages.

    Raises:
        Unusable: the column holds several images.
    """
    columns = ("image", "images", "image_path", "image_url", "url")
    column = next((column for column in columns if not is_empty(record.get(column))), "image")
    images = images_in(record.get(column), f"{name}: {column}")
    if len(images) > 1:
        raise Unusable("images cannot be placed", f"{name}: {len(images)} images in {column}, but regions are of one")
    return images[0] if images else None


def _only_image(record: Record, name: str) -> Any:
    return record_image(first_image(record, name), record, name)


def _exchanges(record: Record, name: str, exchanges: Sequence[tuple[str, str]], beside: Sequence[str] = ()) -> Chat:
    """A conversation about the one image of a record. The columns `beside` hold no media, whatever their names."""
    if not exchanges:
        raise Unusable(
            WRONG_LAYOUT, f"{name}: there is nothing to ask; the record has the columns {columns_of(record)}"
        )
    texts = [{"user": question, "assistant": answer} for question, answer in exchanges]
    rest = {
        column: value
        for column, value in record.items()
        if column not in ("images", "image", "image_url", "url", "question", "answer", *beside)
    }
    made = {**rest, "image": first_image(record, name), "texts": texts}
    return conversation_of(made, name, ("texts",))


def _rows(record: Record, column: str, name: str) -> list[Any]:
    """A list of objects, also as the lists of columns that `datasets` makes of a list of structs."""
    value = record.get(column)
    if isinstance(value, Mapping) and value and all(isinstance(entries, list) for entries in value.values()):
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        raise Unusable(WRONG_LAYOUT, f"{name}: {column} is {value!r:.100}, not a list of objects")
    return value


def _text(record: Record, column: str, name: str) -> str:
    text = read_text(record.get(column), f"{name}: {column}").strip()
    if not text:
        raise Unusable("no text", f"{name}: {column} is empty")
    return text
