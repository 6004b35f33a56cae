"""Pages of scanned documents whose text is known, as in the archives of IDL: pictures of a TIFF file, and their texts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from mm1_hf.corpus.pages.page import Page, Word
from mm1_hf.corpus.pages.pdf_process import png
from mm1_hf.corpus.pages.reading_order import reading_order
from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.data.raw_records import WRONG_LAYOUT
from mm1_hf.data.tiff_frames import tiff_frames
from mm1_hf.data.wall import around_record, result_or_reason
from mm1_hf.grounding.regions import Box


def scanned_pages(
    content: bytes, pages: Sequence[Mapping[str, Any]], name: str, longest_side: int
) -> Iterator[tuple[str, Page | Unusable]]:
    """
    Yields the name of each page of a scanned document, and the page or the reason why it cannot be used.

    Args:
        content: a TIFF file with an image for each page.
        pages: for each page an object with `text`, a list of pieces of text, mostly lines, and `bbox`, the left and upper
            side, width and height of each piece as shares of the page, as IDL has them.
        name: name of the document. Its pages are named after it and their number, from 1.
        longest_side: the longer side of the page pictures, in pixels. Smaller scans are not enlarged.
    """
    frames = result_or_reason(lambda file: tiff_frames(file, name), content, name)
    if isinstance(frames, Unusable):
        yield name, frames
        return
    for index, frame in enumerate(frames):
        page_name = f"{name}#{index + 1}"
        try:
            with around_record(page_name):
                page = _page(frame, pages[index] if index < len(pages) else {}, page_name, longest_side)
        except Unusable as why:
            yield page_name, why
        else:
            yield page_name, page


def _page(frame: ImagePart, known: Mapping[str, Any], name: str, longest_side: int) -> Page:
    texts, boxes = known.get("text") or [], known.get("bbox") or []
    if not texts:
        raise Unusable("no text layer", name)
    if len(texts) != len(boxes):
        raise Unusable(WRONG_LAYOUT, f"{name}: {len(texts)} pieces of text, but {len(boxes)} boxes")
    picture = frame.load().convert("RGB")
    picture.thumbnail((longest_side, longest_side), Image.Resampling.BOX)
    words = [_word(text, box, picture.size, name) for text, box in zip(texts, boxes, strict=True)]
    lines = tuple(reading_order([word for word in words if word.text]))
    if not lines:
        raise Unusable("no text layer", name)
    return Page(name, png(picture), picture.height, picture.width, lines)


def _word(text: str, box: Sequence[float], size: tuple[int, int], name: str) -> Word:
    left, top, width, height = box
    right, bottom = left + width, top + height
    # Rounding may put a side a little outside of the page.
    if not (-0.01 <= left <= right <= 1.01 and -0.01 <= top <= bottom <= 1.01):
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: a box is {list(box)}; left and upper side, width and height must be shares of the page from 0 to 1",
        )
    left, top, right, bottom = (min(max(side, 0.0), 1.0) for side in (left, top, right, bottom))
    return Word(" ".join(text.split()), Box(left * size[0], top * size[1], right * size[0], bottom * size[1]))
