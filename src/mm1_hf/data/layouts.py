"""
The layouts of data sets: functions that turn a record into a [`Document`].

Every layout takes a record, and a name that says where the record comes from, for error messages. It raises
[`Unusable`] for a record that it cannot read. `<image>` in a text is ordinary text, except in the human turns of
LLaVA's layouts.

[`~mm1_hf.data.readers.read`] adds some keys to the records: relative paths start at the folder under `__folder__`;
`__line__` is a line of JSON that holds the record; `__files__` are the files of a sample in a WebDataset archive, and
the record has one column for each of them, named by its extension.
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
    """A function that turns a record into a document; `name` says where the record comes from."""

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
    Parses a record that is still a line of JSON or the files of an archive. Other records are returned unchanged.

    Args:
        record: a record that [`~mm1_hf.data.readers.read`] returned.
        name: where the record comes from, for error messages.

    Raises:
        Unusable: the line or the files cannot be parsed.
    """
    for key, unwrap in ((LINE, _of_line), (FILES, _of_files)):
        if key in record:
            found = unwrap(record, name)
            record = found | ({FOLDER: record[FOLDER]} if FOLDER in record else {})
    return record


def _unwrapping(layout: Layout) -> Layout:
    """Makes a layout also accept records that are still a line of JSON or the files of an archive."""

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
        raise Unusable(WRONG_LAYOUT, f"{name}: the line is {found!r:.100}, not a JSON object")
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
    The layout of this package, which [`to_record`] writes. `parts` is a list in reading order; each part has either a
    `text` or an `image`. `name` and `kind` are optional: without `kind`, a document is `"interleaved"` if it has
    images and `"text"` otherwise.
    """
    name = _name(record, name)
    parts: list[str | ImagePart] = []
    for part in _list(record, "parts", name):
        text, image = (part.get("text"), part.get("image")) if isinstance(part, Mapping) else (None, None)
        if (text is None) == (image is None):
            raise Unusable(WRONG_LAYOUT, f"{name}: a part must have either a text or an image, not {part!r:.100}")
        parts.append(_text(text, name) if image is None else _image(image, record, name))
    kind = record.get("kind")
    if kind is not None and kind not in get_args(DocumentKind):
        raise Unusable(WRONG_LAYOUT, f"{name}: the kind is {kind!r:.100}, not one of {get_args(DocumentKind)}")
    return _document(parts, name, kind)


def to_record(document: Document) -> dict[str, Any]:
    """
    A document as a record in the layout `documents`. PIL images are encoded as PNG.

    Args:
        document: the document to write.
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
    An image and its caption, from WebDataset or a table. The image is under `image`, `jpg`, `jpeg`, `png`, `webp`,
    `image_url` or `url`. The caption is under `caption`, `text` or `txt`, or under one of these keys in a `json`
    object. The first of these columns that is not empty is used. White space around the caption is removed.
    """
    name = _name(record, name)
    record = {column.lower(): value for column, value in record.items()}
    image = _first(record, _IMAGE_COLUMNS)
    text = _first(record, _CAPTION_COLUMNS)
    if text is None and isinstance(record.get("json"), Mapping):
        text = _first(record["json"], _CAPTION_COLUMNS)
    if record.keys().isdisjoint(_IMAGE_COLUMNS) or record.keys().isdisjoint((*_CAPTION_COLUMNS, "json")):
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: the record has the columns {_columns(record)}; a caption needs an image in one of "
            f"{list(_IMAGE_COLUMNS)} and a text in one of {[*_CAPTION_COLUMNS, 'json']}",
        )
    return _document([_image(image, record, name), _text(text or "", name).strip()], name, "caption")


@_unwrapping
def llava(record: Record, name: str = "") -> Document:
    """
    LLaVA's JSON. `conversations` is a list of turns `{"from": speaker, "value": text}`, in which the speaker is
    `"human"`, `"gpt"` or `"system"`. `image` is a path or a list of paths. In human turns, `<image>` marks the
    position of an image; without such marks, the images come first.

    A conversation of one question and one answer about one image becomes a caption: the image and the answer, without
    the question, as in LLaVA's pre-training. Any other conversation becomes a text with line breaks between the turns
    and with the images at their positions.
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
    """The turns of a LLaVA record, as pairs of speaker and text, and its images."""
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
    """LLaVA's turns with the images at their `<image>` marks; without any marks, they are the second result."""
    places = sum(text.count(_PLACE) for speaker, text in turns if speaker == "human")
    if images and places not in (0, len(images)):
        raise Unusable(
            "images cannot be placed", f"{name}: {len(images)} images, but {places} <image> marks in the human turns"
        )
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
    Conversations in TRL's columns: `messages`, or `prompt` and `completion`. The content of a message is a text, or a
    list of parts of type `text` and `image`. The images of image parts that do not hold one are in `images` (a list)
    or `image` (a single one). If a conversation has no image parts, its images come before the text of the first user
    turn.

    The layout is meant for fine-tuning. In pre-training, a conversation is read as its texts and images, without the
    roles.
    """
    name = _name(record, name)
    images = [_image(image, record, name) for image in images_of(record)]
    try:
        found = read_messages(record, name)
        if found is None:
            raise Unusable(
                WRONG_LAYOUT,
                f"{name}: the record has the columns {_columns(record)}, but no messages, nor prompt and completion",
            )
        messages = place_images(found[0], images, name)
    except Unusable:
        raise
    except (ValueError, KeyError) as error:
        raise Unusable(WRONG_LAYOUT, f"{name}: {error}") from error
    return _chat(messages, found[1], record, name)


@_unwrapping
def llava_chat(record: Record, name: str = "") -> Document:
    """
    LLaVA's JSON as [`llava`] reads it, but as a conversation with its roles, for fine-tuning. White space around texts
    and images is removed. Images without an `<image>` mark come before the text of the first human turn.
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
        raise Unusable("images cannot be placed", str(error)) from error
    return _chat(messages, 0, record, name)


def _chat(messages: list[Message], given_turns: int, record: Record, name: str) -> Chat:
    """Makes a chat from messages whose image parts hold their images."""
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
        part: an image part with one of the keys [`mm1_hf.data.chats.IMAGE_KEYS`].
        record: the record of the message. Relative paths start at the folder under its key [`FOLDER`], if it has one.
        name: name of the record, for error messages.

    Raises:
        Unusable: the value under the key is not an image.
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
    OBELICS. `images` and `texts` are lists of the same length; at every position, one of them has an entry and the
    other has `None`. An image is a URL, a path, bytes, or an undecoded image of `datasets`.
    """
    name = _name(record, name)
    images, texts = _list(record, "images", name), _list(record, "texts", name)
    if len(images) != len(texts):
        raise Unusable(WRONG_LAYOUT, f"{name}: {len(images)} images, but {len(texts)} texts; give lists of one length")
    parts: list[str | ImagePart] = []
    for image, text in zip(images, texts, strict=True):
        if (image is None) == (text is None):
            found = "neither an image nor a text" if image is None else "both an image and a text"
            raise Unusable(WRONG_LAYOUT, f"{name}: one position of the lists holds {found}")
        parts.append(_text(text, name) if image is None else _image(image, record, name))
    return _document(parts, name)


@_unwrapping
def mmc4(record: Record, name: str = "") -> Document:
    """
    MMC4. `text_list` is a list of sentences, and every entry of `image_info` is an image that comes before the
    sentence with the index `matched_text_index`. The image is the value of `image`, or else the file `image_name` if
    it exists, or else the image at the URL `raw_url`. Sentences between two images are joined by spaces.
    """
    name = _name(record, name)
    sentences = [_text(sentence, name) for sentence in _list(record, "text_list", name)]
    before: dict[int, list[ImagePart]] = {}
    for info in _list(record, "image_info", name):
        index = info.get("matched_text_index") if isinstance(info, Mapping) else None
        if not isinstance(index, int) or not 0 <= index < len(sentences):
            raise Unusable(
                WRONG_LAYOUT,
                f"{name}: matched_text_index is {index!r:.100}, not an index of the {len(sentences)} sentences",
            )
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
    """Plain text under `text`. Other columns are ignored."""
    name = _name(record, name)
    if "text" not in record:
        raise Unusable(WRONG_LAYOUT, f"{name}: the record has the columns {_columns(record)}, but not text")
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


def layout_named(name: str) -> Layout:
    """
    The layout of a name.

    Args:
        name: a key of [`LAYOUTS`].

    Raises:
        ValueError: there is no such layout.
    """
    if name not in LAYOUTS:
        raise ValueError(f"There is no layout {name!r}; choose one of {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def _document(parts: Iterable[str | ImagePart], name: str, kind: DocumentKind | None = None) -> Document:
    """Makes a document from its parts. Empty texts are dropped."""
    parts = tuple(part for part in parts if part != "")
    if not any(isinstance(part, str) and part.strip() for part in parts):
        raise Unusable("no text", name)
    has_images = any(isinstance(part, ImagePart) for part in parts)
    if kind == "text" and has_images:
        raise Unusable(WRONG_LAYOUT, f"{name}: its kind is text, but it has images")
    return Document(kind or ("interleaved" if has_images else "text"), parts, name)


def _image(value: Any, record: Record, name: str) -> ImagePart:
    """Reads an image that is given as bytes, a path, a URL, a PIL image, or an undecoded image of `datasets`."""
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise Unusable("no image", name)
    if isinstance(value, str) and not re.match("(https?://|data:)", value):
        value = os.path.join(record.get(FOLDER) or "", value)
    if isinstance(value, bytes | str | Image.Image):
        return ImagePart(value)
    raise Unusable(WRONG_LAYOUT, f"{name}: an image is {value!r:.100}; give bytes, a path, a URL or a PIL image")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Unusable(WRONG_LAYOUT, f"{name}: a text is {value!r:.100}, not a string")
    return value


def _list(record: Record, column: str, name: str) -> list[Any]:
    value = record.get(column)
    if not isinstance(value, list):
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: {column} is {value!r:.100}, not a list; the record has the columns {_columns(record)}",
        )
    return value


def _columns(record: Record) -> list[str]:
    return sorted(column for column in record if column != FOLDER)


def _first(record: Record, columns: Iterable[str]) -> Any:
    return next((record[column] for column in columns if record.get(column) is not None), None)


def _name(record: Record, name: str) -> str:
    """The given name, followed by the record's own name or id if it has one."""
    own = _first(record, ("name", "__key__", "id", "url"))
    return ": ".join(part for part in (name, str(own) if isinstance(own, str | int) else "") if part)
