"""Layouts of pages of text and of documents of one file: PDFA, IDL, RenderedText, DocStruct4M and MINT-1T."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from mm1_hf.data.chats import Chat
from mm1_hf.data.documents import Document, ImagePart, Unusable
from mm1_hf.data.media import NO_IMAGE, is_empty, of_json, read_text, record_image, require_read
from mm1_hf.data.pdf_pages import pdf_page, pdf_page_count
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
from mm1_hf.data.tiff_frames import tiff_frames


# The files of one document, of which a layout reads the pages from one.
_PAGE_FILES = ("tif", "tiff", "pdf", "png", "jpg", "ocr", "json")
# What DocStruct4M writes where an image is placed.
_DOCSTRUCT_MARK = "<|image|>"


@unwrapping
def idl(record: Record, name: str = "") -> Document:
    """
    IDL (`pixparse/idl-wds`): one page of a document, its image and the lines of its text. The pages are the images of the
    file `tif`, and `json` holds for each of them its lines under `text`. One page is read of each record, as with
    [`pdfa`].
    """
    name = name_of(record, name)
    frames = tiff_frames(_content(record, ("tif", "tiff"), name), name)
    texts = [_lines(page.get("text"), name) for page in _pages(record, name)]
    index = _drawn_page(texts, len(frames), name)
    return read_whole(document_of([frames[index], texts[index]], name, "caption"), record, _PAGE_FILES)


@unwrapping
def pdfa(record: Record, name: str = "") -> Document:
    """
    PDFA (`pixparse/pdfa-eng-wds`): one page of a document, its image and the lines of its text. The pages are those of
    the file `pdf`, and `json` holds for each of them `lines` with their `text`. Needs pypdfium2.

    One page is read of each record, because only samples of one or two images are cut into tiles: it is drawn from the
    pages that have text, always the same for the same record.
    """
    name = name_of(record, name)
    content = _content(record, ("pdf",), name)
    texts = []
    for page in _pages(record, name):
        lines = page.get("lines")
        texts.append(_lines(lines.get("text") if isinstance(lines, Mapping) else None, name))
    index = _drawn_page(texts, pdf_page_count(content, name), name)
    return read_whole(
        document_of([pdf_page(content, index, name), texts[index]], name, "caption"), record, _PAGE_FILES
    )


@unwrapping
def rendered_text(record: Record, name: str = "") -> Document:
    """
    RenderedText (`wendlerc/RenderedText`): an image of text in `png`, and its lines in `json`, under `text` of
    `ocr_annotation`.
    """
    name = name_of(record, name)
    annotation = _object(record, name).get("ocr_annotation")
    if not isinstance(annotation, Mapping):
        raise Unusable(WRONG_LAYOUT, f"{name}: ocr_annotation in json is {annotation!r:.100}, not an object")
    text = _lines(annotation.get("text"), name)
    image = record_image(record.get("png") or record.get("jpg"), record, name)
    return read_whole(document_of([image, text], name, "caption"), record, _PAGE_FILES)


@unwrapping
def docstruct(record: Record, name: str = "") -> Chat:
    """
    DocStruct4M (`mPLUG/DocStruct4M`): `image`, and `messages` in whose user turns `<|image|>` marks the place of an image.
    """
    messages = []
    for turn in list_of(record, "messages", name):
        content = turn.get("content") if isinstance(turn, Mapping) else None
        if not isinstance(content, str):
            raise Unusable(WRONG_LAYOUT, f"{name}: a message is {turn!r:.100}; give it a role, and a text as content")
        messages.append({**turn, "content": content.replace(_DOCSTRUCT_MARK, "<image>")})
    return conversation_of({**record, "messages": messages}, name_of(record, name), ("messages",))


@unwrapping
def mint1t(record: Record, name: str = "") -> Document:
    """
    MINT-1T's archives of PDF and ArXiv documents: `json` holds the lists `texts` and `images` of one length, and at every
    position one of them has an entry and the other has `None`. The images are those of the file `tiff` (or `tif`), in
    order.
    """
    name = name_of(record, name)
    inner = _object(record, name)
    texts, images = list_of(inner, "texts", name), list_of(inner, "images", name)
    if len(images) != len(texts):
        raise Unusable(WRONG_LAYOUT, f"{name}: {len(images)} images, but {len(texts)} texts; give lists of one length")
    wanted = sum(image is not None for image in images)
    frames = tiff_frames(_content(record, ("tiff", "tif"), name), name) if wanted else []
    if len(frames) != wanted:
        raise Unusable(
            "images cannot be placed", f"{name}: {wanted} images in the text, but {len(frames)} in the file"
        )
    given = iter(frames)
    parts: list[str | ImagePart] = []
    for image, text in zip(images, texts, strict=True):
        if (image is None) == (text is None):
            found = "neither an image nor a text" if image is None else "both an image and a text"
            raise Unusable(WRONG_LAYOUT, f"{name}: one position of the lists holds {found}")
        parts.append(next(given) if text is None else read_text(text, name))
    return read_whole(document_of(parts, name), record, ("tiff", "tif", "json", "pdf"))


def _content(record: Record, columns: Sequence[str], name: str) -> bytes:
    """The content of a file of a sample, which `datasets` holds as `{"bytes", "path"}` and an archive as bytes."""
    value = next((record[column] for column in columns if not is_empty(record.get(column))), None)
    value = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(value, bytes):
        raise Unusable(
            NO_IMAGE, f"{name}: the record has the columns {columns_of(record)}, but no file in {' or '.join(columns)}"
        )
    return value


def _object(record: Record, name: str) -> Mapping[str, Any]:
    value = record.get("json")
    value = of_json(value, f"{name}: json") if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: json is {value!r:.100}, not an object; the record has the columns {columns_of(record)}",
        )
    return value


def _pages(record: Record, name: str) -> list[Mapping[str, Any]]:
    pages = list_of(_object(record, name), "pages", name)
    if not all(isinstance(page, Mapping) for page in pages):
        raise Unusable(WRONG_LAYOUT, f"{name}: an entry of pages in json is not an object")
    for page in pages:
        require_read(page, ("images_bbox", "images_bbox_no_text_overlap"), 0, f"{name}: a page")
    return pages


def _lines(value: Any, name: str) -> str:
    """Lines of text as one text; `None` stands for no lines."""
    if not isinstance(value, list | None):
        raise Unusable(WRONG_LAYOUT, f"{name}: the lines of a page are {value!r:.100}, not a list of texts")
    return "\n".join(read_text(line, name).strip() for line in value or ()).strip()


def _drawn_page(texts: Sequence[str], images: int, name: str) -> int:
    """Index of a page that has an image and a text, drawn by the record's name."""
    pages = [index for index, text in enumerate(texts[:images]) if text]
    if not pages:
        raise Unusable("no text", f"{name}: none of its pages has both an image and a text")
    return pages[zlib.crc32(name.encode("utf-8", "backslashreplace")) % len(pages)]
