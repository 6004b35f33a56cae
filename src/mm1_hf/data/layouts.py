"""
The layouts that data sets come in, record by record to a [`Document`].

Every layout is a function of a record and of where it comes from. It raises [`Unusable`] for a record that it cannot read.
Only where a layout has a place for an image does an image stand there: `<image>` written in a text stays text.

Some keys are [`~mm1_hf.data.readers.read`]'s: relative paths are from the folder under `__folder__`; `__line__` is a line of
JSON that holds the record; `__files__` are those of a sample in a WebDataset archive, which is a record by their extensions.
"""

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, get_args

from PIL import Image

from mm1_hf.data.chats import IMAGE_KEYS, Chat, Message, images_of, place_images, read_messages
from mm1_hf.data.documents import Document, DocumentKind, ImagePart, Unusable


Record = Mapping[str, Any]


class Layout(Protocol):
    """A record, and where it comes from, to a document."""

    def __call__(self, record: Record, name: str = "") -> Document: ...


FOLDER = "__folder__"
LINE = "__line__"
FILES = "__files__"
WRONG_LAYOUT = "not a record of this layout"
CORRUPT_ARCHIVE = "corrupt archive"

_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_url", "url")
_CAPTION_COLUMNS = ("caption", "text", "txt")
_PLACE = "<image>"
_LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_EMPTY = {"type": "text", "text": ""}


def unwrapped(record: Record, name: str = "") -> Record:
    """
    The record itself, of one that may still be a line of JSON or the files of an archive.

    Args:
        record: as [`~mm1_hf.data.readers.read`] gives it.
        name: where it comes from.

    Raises:
        Unusable: what cannot be read.
    """
    for key, unwrap in ((LINE, _of_line), (FILES, _of_files)):
        if key in record:
            found = unwrap(record, name)
            record = found | ({FOLDER: record[FOLDER]} if FOLDER in record else {})
    return record


def _unwrapping(layout: Layout) -> Layout:
    """The layout, also of records that are still a line of JSON or the files of an archive."""

    @functools.wraps(layout)
    def read(record: Record, name: str = "") -> Document:
        return layout(unwrapped(record, name), name)

    return read


def _of_line(record: Record, name: str) -> dict[str, Any]:
    try:
        found = json.loads(record[LINE])
    except ValueError as error:
        raise Unusable("corrupt record", f"{name}: {error}: {record[LINE]!r:.100}") from error
    if not isinstance(found, dict):
        raise Unusable(WRONG_LAYOUT, f"{name}: a line is {found!r:.100}, not an object")
    return found


def _of_files(record: Record, name: str) -> dict[str, Any]:
    if record.get("__error__") is not None:
        raise Unusable(CORRUPT_ARCHIVE, record["__error__"])
    found: dict[str, Any] = {"__key__": record.get("__key__")}
    for file in record[FILES]:
        extension, content = file["extension"].lower(), file["bytes"]
        try:
            if extension == "json":
                content = json.loads(content)
            elif extension in _CAPTION_COLUMNS:
                content = content.decode()
        except ValueError as error:
            raise Unusable("corrupt record", f"{_name(found, name)}.{extension}: {error}") from error
        found[extension] = content
    return found


@_unwrapping
def documents(record: Record, name: str = "") -> Document:
    """
    The package's own layout, which [`to_record`] writes: `parts`, a list in reading order, of which each has a `text` or an
    `image`; optionally `kind`, otherwise told by the images, and `name`.
    """
    name = _name(record, name)
    parts: list[str | ImagePart] = []
    for part in _list(record, "parts", name):
        text, image = (part.get("text"), part.get("image")) if isinstance(part, Mapping) else (None, None)
        if (text is None) == (image is None):
            raise Unusable(WRONG_LAYOUT, f"{name}: a part has either a text or an image, not {part!r:.100}")
        parts.append(_text(text, name) if image is None else _image(image, record, name))
    kind = record.get("kind")
    if kind is not None and kind not in get_args(DocumentKind):
        raise Unusable(WRONG_LAYOUT, f"{name}: the kind is {kind!r:.100}, not one of {get_args(DocumentKind)}")
    return _document(parts, name, kind)


def to_record(document: Document) -> dict[str, Any]:
    """
    A document in the layout `documents`. Pictures become PNG files.

    Args:
        document: any.
    """
    parts = []
    for part in document.parts:
        if isinstance(part, str):
            parts.append({"text": part, "image": None})
        elif isinstance(part.source, str):
            parts.append({"text": None, "image": {"bytes": None, "path": part.source}})
        else:
            parts.append({"text": None, "image": {"bytes": part.read(), "path": None}})
    return {"kind": document.kind, "name": document.name, "parts": parts}


@_unwrapping
def caption(record: Record, name: str = "") -> Document:
    """
    A pair, WebDataset's or a table's: the image under `image`, `jpg`, `jpeg`, `png`, `webp`, `image_url` or `url`, and what
    describes it under `caption`, `text` or `txt`, or in a `json` object under one of these. The first that holds something
    counts; white space around the text is left out.
    """
    name = _name(record, name)
    record = {column.lower(): value for column, value in record.items()}
    image = _first(record, _IMAGE_COLUMNS)
    text = _first(record, _CAPTION_COLUMNS)
    if text is None and isinstance(record.get("json"), Mapping):
        text = _first(record["json"], _CAPTION_COLUMNS)
    if record.keys().isdisjoint(_IMAGE_COLUMNS) or record.keys().isdisjoint((*_CAPTION_COLUMNS, "json")):
        raise Unusable(WRONG_LAYOUT, f"{name}: it has the columns {_columns(record)}")
    return _document([_image(image, record, name), _text(text or "", name).strip()], name, "caption")


@_unwrapping
def llava(record: Record, name: str = "") -> Document:
    """
    LLaVA's JSON: `conversations`, turns of `{"from": "human" or "gpt", "value": text}`, and `image`, a path or a list of
    them, whose places the human turns mark by `<image>`; unmarked, they come first.

    A single exchange about one image is a caption: the image and the answer, without the question, as in LLaVA's own
    pre-training. Anything else is text, turn by turn in lines, with the images in their places.
    """
    name = _name(record, name)
    turns, images = _llava(record, name)
    if len(images) == 1 and [speaker for speaker, _ in turns] == ["human", "gpt"]:
        return _document([images[0], turns[1][1].strip()], name, "caption")
    placed, unmarked = _placed(turns, images, name)
    parts: list[str | ImagePart] = [*unmarked]
    line = ""
    for index, (_, content) in enumerate(placed):
        line += "\n" if index else ""
        for part in content:
            if isinstance(part, str):
                line += part
            else:
                parts += [line, part]
                line = ""
    return _document([*parts, line], name)


def _llava(record: Record, name: str) -> tuple[list[tuple[str, str]], list[ImagePart]]:
    """LLaVA's turns, as speakers and texts, and its images."""
    turns = []
    for turn in _list(record, "conversations", name):
        if not isinstance(turn, Mapping) or turn.get("from") not in ("human", "gpt", "system"):
            raise Unusable(WRONG_LAYOUT, f"{name}: a turn is {turn!r:.100}")
        turns.append((turn["from"], _text(turn.get("value"), name)))
    given = record.get("image")
    given = [] if given is None else given if isinstance(given, list) else [given]
    return turns, [_image(image, record, name) for image in given]


def _placed(
    turns: list[tuple[str, str]], images: list[ImagePart], name: str
) -> tuple[list[tuple[str, list[str | ImagePart]]], list[ImagePart]]:
    """LLaVA's turns with the images in their places, and the images where these are not marked."""
    places = sum(text.count(_PLACE) for speaker, text in turns if speaker == "human")
    if images and places not in (0, len(images)):
        raise Unusable("images do not fit their places", f"{name}: {len(images)} images and {places} places for them")
    left = iter(images)
    placed: list[tuple[str, list[str | ImagePart]]] = []
    for speaker, text in turns:
        first, *others = text.split(_PLACE) if images and places and speaker == "human" else [text]
        content: list[str | ImagePart] = [first]
        for other in others:
            content += [next(left), other]
        placed.append((speaker, content))
    return placed, [] if places else images


@_unwrapping
def chat(record: Record, name: str = "") -> Document:
    """
    TRL's conversations: `messages`, or `prompt` and `completion`, whose contents are texts or parts of type `text` and
    `image`; with `images`, a list, or one `image`, for the parts that have none of their own. Without such parts, images
    come before the first user's words. For fine-tuning; read for pre-training, it is its words and images without the roles.
    """
    name = _name(record, name)
    images = [_image(image, record, name) for image in images_of(record)]
    try:
        found = read_messages(record, name)
        if found is None:
            raise Unusable(WRONG_LAYOUT, f"{name}: it has the columns {_columns(record)}")
        messages = place_images(found[0], images, name)
    except Unusable:
        raise
    except (ValueError, KeyError) as error:
        raise Unusable(WRONG_LAYOUT, f"{name}: {error}") from error
    return _chat(messages, found[1], record, name)


@_unwrapping
def llava_chat(record: Record, name: str = "") -> Document:
    """
    LLaVA's JSON, as [`llava`] reads it, with its roles, for fine-tuning. White space around images and texts is left out,
    and unmarked images come before the first human turn's words.
    """
    name = _name(record, name)
    placed, unmarked = _placed(*_llava(record, name), name)
    messages: list[Message] = []
    for speaker, content in placed:
        parts = [
            {"type": "image", "image": part} if isinstance(part, ImagePart) else {"type": "text", "text": part.strip()}
            for part in content
        ]
        messages.append({"role": _LLAVA_ROLES[speaker], "content": [part for part in parts if part != _EMPTY]})
    try:
        messages = place_images(messages, unmarked, name)
    except ValueError as error:
        raise Unusable("images do not fit their places", str(error)) from error
    return _chat(messages, 0, record, name)


def _chat(messages: list[Message], given_turns: int, record: Record, name: str) -> Chat:
    """A chat out of messages that hold their images."""
    parts: list[str | ImagePart] = []
    bare: list[Message] = []
    for message in messages:
        content = []
        for part in message["content"]:
            if part.get("type") == "image":
                parts.append(image_of_part(part, record, name))
                content.append({"type": "image"})
            else:
                parts.append(_text(part.get("text"), name))
                content.append(part)
        bare.append({**message, "content": content})
    document = _document(parts, name)
    return Chat(document.kind, document.parts, name, tuple(bare), given_turns)


def image_of_part(part: Mapping[str, Any], record: Record, name: str) -> ImagePart:
    """
    The image that a part of a message holds.

    Args:
        part: with one of [`mm1_hf.data.chats.IMAGE_KEYS`].
        record: which may say by [`FOLDER`] where a path begins.
        name: the record's, for messages.

    Raises:
        Unusable: what is there is no image.
    """
    key = next(key for key in IMAGE_KEYS if key in part)
    value = part[key]
    if isinstance(value, ImagePart):
        return value
    if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
        value = f"data:;base64,{value}"
    return _image(value, record, name)


@_unwrapping
def obelics(record: Record, name: str = "") -> Document:
    """
    OBELICS: `images` and `texts`, lists of one length, of which at every place one has something and the other `None`. An
    image is a URL, a path, bytes or datasets' Image.
    """
    name = _name(record, name)
    images, texts = _list(record, "images", name), _list(record, "texts", name)
    if len(images) != len(texts):
        raise Unusable(WRONG_LAYOUT, f"{name}: {len(images)} images beside {len(texts)} texts")
    parts: list[str | ImagePart] = []
    for image, text in zip(images, texts, strict=True):
        if (image is None) == (text is None):
            raise Unusable(
                WRONG_LAYOUT, f"{name}: a place with {'neither' if image is None else 'both'} image and text"
            )
        parts.append(_text(text, name) if image is None else _image(image, record, name))
    return _document(parts, name)


@_unwrapping
def mmc4(record: Record, name: str = "") -> Document:
    """
    MMC4: `text_list`, sentences, and `image_info`, in which `matched_text_index` says before which sentence an image comes.
    The image is `image`; or the file of the name `image_name`, where there is one; or what `raw_url` gives. Sentences
    between two images are joined by spaces.
    """
    name = _name(record, name)
    sentences = [_text(sentence, name) for sentence in _list(record, "text_list", name)]
    before: dict[int, list[ImagePart]] = {}
    for info in _list(record, "image_info", name):
        index = info.get("matched_text_index") if isinstance(info, Mapping) else None
        if not isinstance(index, int) or not 0 <= index < len(sentences):
            raise Unusable(WRONG_LAYOUT, f"{name}: an image belongs to sentence {index!r:.100} of {len(sentences)}")
        before.setdefault(index, []).append(_mmc4_image(info, record, name))
    parts: list[str | ImagePart] = []
    for index, sentence in enumerate(sentences):
        parts += before.get(index, [])
        if parts and isinstance(parts[-1], str):
            parts[-1] = f"{parts[-1]} {sentence}"
        else:
            parts.append(sentence)
    return _document(parts, name)


def _mmc4_image(info: Record, record: Record, name: str) -> ImagePart:
    if info.get("image") is not None:
        return _image(info["image"], record, name)
    file, url = info.get("image_name"), info.get("raw_url")
    if isinstance(file, str):
        part = _image(file, record, name)
        if url is None or os.path.exists(str(part.source)):
            return part
    return _image(url, record, name)


@_unwrapping
def text(record: Record, name: str = "") -> Document:
    """Plain text under `text`; other columns are left out."""
    name = _name(record, name)
    if "text" not in record:
        raise Unusable(WRONG_LAYOUT, f"{name}: it has the columns {_columns(record)}")
    return _document([_text(record["text"], name)], name)


LAYOUTS: dict[str, Layout] = {
    "documents": documents,
    "caption": caption,
    "llava": llava,
    "chat": chat,
    "llava_chat": llava_chat,
    "obelics": obelics,
    "mmc4": mmc4,
    "text": text,
}


def _document(parts: Iterable[str | ImagePart], name: str, kind: DocumentKind | None = None) -> Document:
    """Empty texts are left out."""
    parts = tuple(part for part in parts if part != "")
    if not any(isinstance(part, str) and part.strip() for part in parts):
        raise Unusable("no text", name)
    has_images = any(isinstance(part, ImagePart) for part in parts)
    if kind == "text" and has_images:
        raise Unusable(WRONG_LAYOUT, f"{name}: its kind is text, but it has images")
    return Document(kind or ("interleaved" if has_images else "text"), parts, name)


def _image(value: Any, record: Record, name: str) -> ImagePart:
    """An image as bytes, a path, a URL, a picture, or as datasets' Image gives it undecoded."""
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise Unusable("no image", name)
    if isinstance(value, str) and not re.match("(https?://|data:)", value):
        value = os.path.join(record.get(FOLDER) or "", value)
    if isinstance(value, bytes | str | Image.Image):
        return ImagePart(value)
    raise Unusable(WRONG_LAYOUT, f"{name}: an image is {value!r:.100}; it may be bytes, a path or a URL")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Unusable(WRONG_LAYOUT, f"{name}: a text is {value!r:.100}")
    return value


def _list(record: Record, column: str, name: str) -> list[Any]:
    value = record.get(column)
    if not isinstance(value, list):
        raise Unusable(
            WRONG_LAYOUT, f"{name}: {column} is {value!r:.100}, not a list; it has the columns {_columns(record)}"
        )
    return value


def _columns(record: Record) -> list[str]:
    return sorted(column for column in record if column != FOLDER)


def _first(record: Record, columns: Iterable[str]) -> Any:
    return next((record[column] for column in columns if record.get(column) is not None), None)


def _name(record: Record, name: str) -> str:
    """Where the record comes from, and which one it is, where it says so."""
    own = _first(record, ("name", "__key__", "id", "url"))
    return ": ".join(part for part in (name, str(own) if isinstance(own, str | int) else "") if part)
