"""
The layouts of data sets: functions that turn a record into a [`Document`].

Every layout takes a record, and a name that says where the record comes from, for error messages. It raises
[`Unusable`] for a record that it cannot read, and for one with images, videos or sounds that it would lose.
docs/data-formats.md shows a record of each. `<image>` in a text is ordinary text, except in the user's turns of
conversations and in captions, where it marks the place of an image.

[`~mm1_hf.data.readers.read`] adds some keys to the records: relative paths start at the folder under `__folder__`, and no
local file outside of it is read; `__line__` is a line of JSON that holds the record; `__files__` are the files of a sample
in a WebDataset archive, and the record has one column for each of them, named by its extension.
"""

import functools
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, get_args

from mm1_hf.data.chats import UNRENDERED, Chat, read_conversation
from mm1_hf.data.documents import Document, DocumentKind, ImagePart, Unusable
from mm1_hf.data.media import NO_IMAGE, images_in, is_empty, read_text, record_image, require_read
from mm1_hf.data.messages import MARK, UNPLACED, Message, said_beside
from mm1_hf.data.raw_records import FOLDER, WRONG_LAYOUT, Record, unwrapped
from mm1_hf.data.wall import around_record


class Layout(Protocol):
    """A function that turns a record into a document; `name` says where the record comes from."""

    def __call__(self, record: Record, name: str = "") -> Document: ...


# The first of these columns that holds an image is read; addresses are read if there is no image.
_IMAGE_COLUMNS = ("image", "images", "jpg", "jpeg", "png", "webp", "image_url", "url")
_ADDRESS_COLUMNS = ("image_url", "url")
_CAPTION_COLUMNS = ("caption", "text", "txt")


def _unwrapping(layout: Layout) -> Layout:
    """
    Makes a layout also accept records that are still a line of JSON or the files of an archive, and makes whatever goes
    wrong with a record [`Unusable`].
    """

    @functools.wraps(layout)
    def read(record: Record, name: str = "") -> Document:
        with around_record(name):
            return layout(unwrapped(record, name), name)

    return read


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
        require_read(part, ("text", "image"), int(text is None), f"{name}: a part")
        parts.append(read_text(text, name) if image is None else record_image(image, record, name))
    kind = record.get("kind")
    if kind is not None and kind not in get_args(DocumentKind):
        raise Unusable(WRONG_LAYOUT, f"{name}: the kind is {kind!r:.100}, not one of {get_args(DocumentKind)}")
    return _read_whole(_document(parts, name, kind), record, ("parts",))


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
    An image and its caption, from WebDataset or a table. The image is under `image`, `images`, `jpg`, `jpeg`, `png`,
    `webp`, `image_url` or `url`. The caption is under `caption`, `text` or `txt`, or under one of these keys in a `json`
    object. The first of these columns that is not empty is used. White space around the caption is removed. The image
    comes first, or where the caption has the mark `<image>`.
    """
    name = _name(record, name)
    record = {str(column).lower(): value for column, value in record.items()}
    if record.keys().isdisjoint(_IMAGE_COLUMNS) or record.keys().isdisjoint((*_CAPTION_COLUMNS, "json")):
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: the record has the columns {_columns(record)}; a caption needs an image in one of "
            f"{list(_IMAGE_COLUMNS)} and a text in one of {[*_CAPTION_COLUMNS, 'json']}",
        )
    column = next((column for column in _IMAGE_COLUMNS if not is_empty(record.get(column))), "image")
    images = [record_image(image, record, name) for image in images_in(record.get(column), f"{name}: {column}")]
    text = _first(record, _CAPTION_COLUMNS)
    if text is None and isinstance(record.get("json"), Mapping):
        text = _first(record["json"], _CAPTION_COLUMNS)
    text = read_text(text or "", name).strip()
    if not images:
        raise Unusable(NO_IMAGE, name)
    marks = text.count(MARK)
    if marks not in (0, len(images)):
        raise Unusable(UNPLACED, f"{name}: {len(images)} images, but {marks} marks {MARK} in the caption")
    parts: list[str | ImagePart] = [*images, text]
    if marks:
        first, *others = text.split(MARK)
        parts = [first]
        for image, other in zip(images, others, strict=True):
            parts += [image, other]
        parts = [part.strip() if isinstance(part, str) else part for part in parts]
    return _read_whole(_document(parts, name, "caption"), record, (column, *_ADDRESS_COLUMNS, *_CAPTION_COLUMNS))


@_unwrapping
def llava(record: Record, name: str = "") -> Document:
    """
    LLaVA's JSON. `conversations` is a list of turns `{"from": speaker, "value": text}`, in which the speaker is
    `"human"`, `"gpt"` or `"system"`. `image` or `images` is an image or a list of images. In human turns, `<image>` marks
    the position of an image; without such marks, the images come before the text of the first human turn.

    A conversation of one question and one answer about one image becomes a caption: the image and the answer, without
    the question, as in LLaVA's pre-training. Any other conversation becomes a text with line breaks between the turns
    and with the images at their positions.
    """
    name = _name(record, name)
    chat = _conversation(record, name, ("conversations",))
    if chat.said:
        raise Unusable(
            UNRENDERED, f"{', '.join(chat.said)} of {name}: pre-training reads the texts of a conversation only"
        )
    if len(chat.images) == 1 and [message["role"] for message in chat.messages] == ["user", "assistant"]:
        answer = "".join(part["text"] for part in chat.messages[1]["content"] if part["type"] == "text")
        return _document([chat.images[0], answer.strip()], name, "caption")
    parts: list[str | ImagePart] = []
    images, line = iter(chat.images), ""
    for index, message in enumerate(chat.messages):
        line += "\n" if index else ""
        for part in message["content"]:
            if part["type"] == "text":
                line += part["text"]
            else:
                parts += [line, next(images)]
                line = ""
    return _document([*parts, line], name)


@_unwrapping
def chat(record: Record, name: str = "") -> Document:
    """
    Conversations, in any form of [`mm1_hf.data.chats.FORMS`] except pairs of preferences: above all TRL's columns
    `messages`, or `prompt` and `completion`. The content of a message is a text, or a list of parts of type `text` and
    `image`; the parts of OpenAI's and Anthropic's APIs are read too. The images of image parts that do not hold one, and
    of marks `<image>` in the user's texts, are in `images` or `image`, in order. If a conversation has neither, its images
    come before the text of the first user turn.

    The layout is meant for fine-tuning. In pre-training, a conversation is read as its texts and images, without the
    roles.
    """
    return _conversation(record, _name(record, name))


@_unwrapping
def llava_chat(record: Record, name: str = "") -> Document:
    """
    LLaVA's JSON as [`llava`] reads it, but as a conversation with its roles, for fine-tuning. White space around texts
    and images is removed.
    """
    return _conversation(record, _name(record, name), ("conversations",), strip=True)


@_unwrapping
def sharegpt(record: Record, name: str = "") -> Document:
    """
    ShareGPT's conversations: `conversations` is a list of turns `{"from": speaker, "value": text}`, or of turns with
    `role` and `content`. A turn of `"function_call"` calls a tool, and a turn of `"observation"` is its answer; `tools` and
    `system` may stand beside them. Images are placed as in [`chat`], and all text stays as it is.
    """
    return _conversation(record, _name(record, name), ("conversations",))


@_unwrapping
def the_cauldron(record: Record, name: str = "") -> Document:
    """
    The Cauldron and FineVision: `images`, and `texts`, a list of `{"user": question, "assistant": answer}`. Images are
    placed as in [`chat`].
    """
    return _conversation(record, _name(record, name), ("texts",))


@_unwrapping
def alpaca(record: Record, name: str = "") -> Document:
    """
    Alpaca's instructions: `instruction`, `output`, and, if it is not empty, `input`, which follows the instruction on a
    line of its own. `system`, `history` (a list of questions with answers) and images may stand beside them.
    """
    return _conversation(record, _name(record, name), ("instruction and output",))


@_unwrapping
def query_response(record: Record, name: str = "") -> Document:
    """
    A `query` and its `response`. `system`, `history` (a list of queries with responses) and images may stand beside them.
    """
    return _conversation(record, _name(record, name), ("query and response",))


@_unwrapping
def question_answer(record: Record, name: str = "") -> Document:
    """A `question` and its `answer`, mostly about an `image`. The answer is one text, or a list of equal texts."""
    return _conversation(record, _name(record, name), ("question and answer",))


@_unwrapping
def preference(record: Record, name: str = "") -> Document:
    """
    Pairs of preferences, to train on what was `chosen`: `prompt`, `chosen` and `rejected`, each a text or a list of
    messages. Without a `prompt`, the turns with which both answers begin are the prompt. What was rejected is not read.
    """
    return _conversation(record, _name(record, name), ("preference",))


def _conversation(record: Record, name: str, forms: tuple[str, ...] | None = None, strip: bool = False) -> Chat:
    found = read_conversation(record, name, forms)
    if found is None:
        expected = "messages, nor prompt and completion" if forms is None else " ".join(forms)
        raise Unusable(WRONG_LAYOUT, f"{name}: the record has the columns {_columns(record)}, but no {expected}")
    parts: list[str | ImagePart] = [json.dumps(tool, ensure_ascii=False, default=str) for tool in found.tools]
    bare: list[Message] = []
    for message in found.messages:
        content = []
        for part in message["content"]:
            if part["type"] == "image":
                parts.append(record_image(part["image"], record, name))
                content.append({"type": "image"})
            elif text := part["text"].strip() if strip else part["text"]:
                parts.append(text)
                content.append({"type": "text", "text": text})
        parts += said_beside(message)
        bare.append({**message, "content": content})
    document = _document(parts, name)
    return Chat(document.kind, document.parts, name, tuple(bare), found.given_turns, tuple(found.tools))


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
        parts.append(read_text(text, name) if image is None else record_image(image, record, name))
    return _read_whole(_document(parts, name), record, ("images", "texts"))


@_unwrapping
def mmc4(record: Record, name: str = "") -> Document:
    """
    MMC4. `text_list` is a list of sentences, and every entry of `image_info` is an image that comes before the
    sentence with the index `matched_text_index`. The image is the value of `image`, or else the file `image_name` if
    it exists, or else the image at the URL `raw_url`. Sentences between two images are joined by spaces.
    """
    name = _name(record, name)
    sentences = [read_text(sentence, name) for sentence in _list(record, "text_list", name)]
    before: dict[int, list[ImagePart]] = {}
    for info in _list(record, "image_info", name):
        index = info.get("matched_text_index") if isinstance(info, Mapping) else None
        if not isinstance(index, int) or not 0 <= index < len(sentences):
            raise Unusable(
                WRONG_LAYOUT,
                f"{name}: matched_text_index is {index!r:.100}, not an index of the {len(sentences)} sentences",
            )
        require_read(info, ("image", "image_name", "raw_url"), 1, f"{name}: an entry of image_info")
        before.setdefault(index, []).append(_mmc4_image(info, record, name))
    parts: list[str | ImagePart] = []
    for index, sentence in enumerate(sentences):
        parts += before.get(index, [])
        if parts and isinstance(parts[-1], str):
            parts[-1] = f"{parts[-1]} {sentence}"
        else:
            parts.append(sentence)
    return _read_whole(_document(parts, name), record, ("text_list", "image_info"))


def _mmc4_image(info: Record, record: Record, name: str) -> ImagePart:
    if info.get("image") is not None:
        return record_image(info["image"], record, name)
    file, url = info.get("image_name"), info.get("raw_url")
    if isinstance(file, str):
        part = record_image(file, record, name)
        if url is None or os.path.exists(str(part.source)):
            return part
    return record_image(url, record, name)


@_unwrapping
def text(record: Record, name: str = "") -> Document:
    """Plain text under `text`. Other columns are ignored, unless they hold images, videos or sounds."""
    name = _name(record, name)
    if "text" not in record:
        raise Unusable(WRONG_LAYOUT, f"{name}: the record has the columns {_columns(record)}, but not text")
    return _read_whole(_document([read_text(record["text"], name)], name), record, ("text",))


LAYOUTS: dict[str, Layout] = {
    "documents": documents,
    "caption": caption,
    "llava": llava,
    "chat": chat,
    "llava_chat": llava_chat,
    "sharegpt": sharegpt,
    "the_cauldron": the_cauldron,
    "finevision": the_cauldron,
    "alpaca": alpaca,
    "query_response": query_response,
    "question_answer": question_answer,
    "vqa": question_answer,
    "preference": preference,
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


def _read_whole(document: Document, record: Record, columns: Iterable[str]) -> Document:
    """The document, if its columns hold all media of the record."""
    require_read(record, {*columns}, len(document.images), document.name)
    return document


def _list(record: Record, column: str, name: str) -> list[Any]:
    value = record.get(column)
    if not isinstance(value, list):
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: {column} is {value!r:.100}, not a list; the record has the columns {_columns(record)}",
        )
    return value


def _columns(record: Record) -> list[str]:
    return sorted(str(column) for column in record if column != FOLDER)


def _first(record: Record, columns: Iterable[str]) -> Any:
    return next((record[column] for column in columns if record.get(column) is not None), None)


def _name(record: Record, name: str) -> str:
    """The given name, followed by the record's own name or id if it has one."""
    own = _first(record, ("name", "__key__", "id", "url"))
    return ": ".join(part for part in (name, str(own) if isinstance(own, str | int) else "") if part)
