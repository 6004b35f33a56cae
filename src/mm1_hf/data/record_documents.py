"""What the layouts of [`mm1_hf.data.layouts`] share. Whatever is wrong with a record is its reason to be dropped."""

import functools
import json
from collections.abc import Iterable
from typing import Any, Protocol

from mm1_hf.data.chats import Chat, read_conversation
from mm1_hf.data.documents import Document, DocumentKind, ImagePart, Unusable
from mm1_hf.data.media import record_image, require_read
from mm1_hf.data.messages import Message, said_beside
from mm1_hf.data.raw_records import FOLDER, WRONG_LAYOUT, Record, unwrapped
from mm1_hf.data.wall import around_record


class Layout(Protocol):
    """A function that turns a record into a document; `name` says where the record comes from."""

    def __call__(self, record: Record, name: str = "") -> Document: ...


def unwrapping(layout: Layout) -> Layout:
    """
    Makes a layout also accept records that are still a line of JSON or the files of an archive, and makes whatever goes
    wrong with a record [`Unusable`].

    Args:
        layout: the layout, which takes a record whose columns can be read.
    """

    @functools.wraps(layout)
    def read(record: Record, name: str = "") -> Document:
        with around_record(name):
            return layout(unwrapped(record, name), name)

    return read


def conversation_of(record: Record, name: str, forms: tuple[str, ...] | None = None, strip: bool = False) -> Chat:
    """
    The conversation of a record, with its images in their places.

    Args:
        record: the record.
        name: name of the record, for error messages.
        forms: names of the forms to look for, see [`mm1_hf.data.chats.read_conversation`].
        strip: whether white space around texts is removed.

    Raises:
        Unusable: the record has the columns of no form, or its conversation cannot be read.
    """
    found = read_conversation(record, name, forms)
    if found is None:
        expected = "messages, nor prompt and completion" if forms is None else " ".join(forms)
        raise Unusable(WRONG_LAYOUT, f"{name}: the record has the columns {columns_of(record)}, but no {expected}")
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
    document = document_of(parts, name)
    return Chat(document.kind, document.parts, name, tuple(bare), found.given_turns, tuple(found.tools))


def document_of(parts: Iterable[str | ImagePart], name: str, kind: DocumentKind | None = None) -> Document:
    """
    Makes a document from its parts. Empty texts are dropped.

    Args:
        parts: the texts and images in reading order.
        name: name of the document, for error messages.
        kind: what the document is; unset, `"interleaved"` if it has images, and `"text"` otherwise.

    Raises:
        Unusable: there is no text, or a text is said to have no images and has some.
    """
    parts = tuple(part for part in parts if part != "")
    if not any(isinstance(part, str) and part.strip() for part in parts):
        raise Unusable("no text", name)
    has_images = any(isinstance(part, ImagePart) for part in parts)
    if kind == "text" and has_images:
        raise Unusable(WRONG_LAYOUT, f"{name}: its kind is text, but it has images")
    return Document(kind or ("interleaved" if has_images else "text"), parts, name)


def read_whole(document: Document, record: Record, columns: Iterable[str]) -> Document:
    """
    The document, if the columns that were read hold all media of the record.

    Args:
        document: the document.
        record: the record that it was made from.
        columns: the columns that were read.

    Raises:
        Unusable: another column holds media.
    """
    require_read(record, {*columns}, len(document.images), document.name)
    return document


def list_of(record: Record, column: str, name: str) -> list[Any]:
    """
    The list in a column.

    Args:
        record: the record.
        column: the column.
        name: name of the record, for error messages.

    Raises:
        Unusable: the column is missing, or does not hold a list.
    """
    value = record.get(column)
    if not isinstance(value, list):
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: {column} is {value!r:.100}, not a list; the record has the columns {columns_of(record)}",
        )
    return value


def columns_of(record: Record) -> list[str]:
    """
    The names of a record's columns, for error messages.

    Args:
        record: the record.
    """
    return sorted(str(column) for column in record if column != FOLDER)


def first_of(record: Record, columns: Iterable[str]) -> Any:
    """
    The value of the first of several columns that has one, or `None`.

    Args:
        record: the record.
        columns: names of the columns, the preferred one first.
    """
    return next((record[column] for column in columns if record.get(column) is not None), None)


def name_of(record: Record, name: str) -> str:
    """
    A name for a record, for error messages: the given name, followed by the record's own name or id if it has one.

    Args:
        record: the record.
        name: where the record comes from.
    """
    own = first_of(record, ("name", "__key__", "id", "url"))
    return ": ".join(part for part in (name, str(own) if isinstance(own, str | int) else "") if part)
