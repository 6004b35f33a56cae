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

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, get_args

from mm1_hf.data.chats import UNRENDERED
from mm1_hf.data.documents import Document, DocumentKind, ImagePart, Unusable
from mm1_hf.data.media import NO_IMAGE, images_in, is_empty, read_text, record_image, require_read
from mm1_hf.data.messages import MARK, UNPLACED
from mm1_hf.data.page_records import docstruct, idl, mint1t, pdfa, rendered_text
from mm1_hf.data.raw_records import WRONG_LAYOUT, Record
from mm1_hf.data.record_documents import (
    Layout,
    columns_of,
    conversation_of,
    document_of,
    first_of,
    list_of,
    name_of,
    read_whole,
    unwrapping,
)
from mm1_hf.data.region_records import (
    grit,
    internvl,
    llava_regions,
    pixmo_count,
    pixmo_points,
    pixmo_qa,
    qwen_vl,
    refcoco,
)
from mm1_hf.data.sample_files import document_sample
from mm1_hf.data.two_captions import two_documents


# The first of these columns that holds an image is read; addresses are read if there is no image.
_IMAGE_COLUMNS = ("image", "images", "jpg", "jpeg", "png", "webp", "image_url", "url")
_ADDRESS_COLUMNS = ("image_url", "url")
_CAPTION_COLUMNS = ("caption", "text", "txt")
# Of this package's captions, of Recap-DataComp-1B and of CapsFusion-120M.
_ALT_TEXT_COLUMNS = (*_CAPTION_COLUMNS, "org_caption", "laion_2b")
_SYNTHETIC_COLUMNS = ("synthetic_caption", "re_caption", "capsfusion")


@unwrapping
def documents(record: Record, name: str = "") -> Document:
    """
    The layout of this package, which [`to_record`] writes. `parts` is a list in reading order; each part has either a
    `text` or an `image`. `name` and `kind` are optional: without `kind`, a document is `"interleaved"` if it has
    images and `"text"` otherwise. In a WebDataset archive, all this is the `json` of a sample, and an image is the name of
    another file of the sample without the key, such as `0.jpg`.
    """
    record = document_sample(record, name)
    name = name_of(record, name)
    parts: list[str | ImagePart] = []
    for part in list_of(record, "parts", name):
        text, image = (part.get("text"), part.get("image")) if isinstance(part, Mapping) else (None, None)
        if (text is None) == (image is None):
            raise Unusable(WRONG_LAYOUT, f"{name}: a part must have either a text or an image, not {part!r:.100}")
        require_read(part, ("text", "image"), int(text is None), f"{name}: a part")
        parts.append(read_text(text, name) if image is None else record_image(image, record, name))
    kind = record.get("kind")
    if kind is not None and kind not in get_args(DocumentKind):
        raise Unusable(WRONG_LAYOUT, f"{name}: the kind is {kind!r:.100}, not one of {get_args(DocumentKind)}")
    return read_whole(document_of(parts, name, kind), record, ("parts",))


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


@unwrapping
def caption(record: Record, name: str = "") -> Document:
    """
    An image and its caption, from WebDataset or a table. The image is under `image`, `images`, `jpg`, `jpeg`, `png`,
    `webp`, `image_url` or `url`. The caption is under `caption`, `text` or `txt`, or under one of these keys in a `json`
    object. The first of these columns that is not empty is used. White space around the caption is removed. The image
    comes first, or where the caption has the mark `<image>`.
    """
    name = name_of(record, name)
    record = {str(column).lower(): value for column, value in record.items()}
    if record.keys().isdisjoint(_IMAGE_COLUMNS) or record.keys().isdisjoint((*_CAPTION_COLUMNS, "json")):
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: the record has the columns {columns_of(record)}; a caption needs an image in one of "
            f"{list(_IMAGE_COLUMNS)} and a text in one of {[*_CAPTION_COLUMNS, 'json']}",
        )
    column = next((column for column in _IMAGE_COLUMNS if not is_empty(record.get(column))), "image")
    images = [record_image(image, record, name) for image in images_in(record.get(column), f"{name}: {column}")]
    text = first_of(record, _CAPTION_COLUMNS)
    if text is None and isinstance(record.get("json"), Mapping):
        text = first_of(record["json"], _CAPTION_COLUMNS)
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
    return read_whole(document_of(parts, name, "caption"), record, (column, *_ADDRESS_COLUMNS, *_CAPTION_COLUMNS))


@unwrapping
def two_captions(record: Record, name: str = "") -> Document:
    """
    An image with two captions, of which training draws one (`synthetic_share` of a source): its alt text under `caption`,
    `text`, `txt`, `org_caption` or `laion_2b`, and a synthetic caption under `synthetic_caption`, `re_caption` or
    `capsfusion`, or under one of these keys in a `json` object. Either may be empty, and then the other one is always
    used. The image and the marks `<image>` are read as in [`caption`].
    """
    lowered = {str(column).lower(): value for column, value in record.items()}
    inner = lowered["json"] if isinstance(lowered.get("json"), Mapping) else {}
    if {*lowered, *inner}.isdisjoint(_SYNTHETIC_COLUMNS):
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: the record has the columns {columns_of(record)}; two captions need a synthetic one in one of "
            f"{list(_SYNTHETIC_COLUMNS)}",
        )
    captions = []
    for columns in (_ALT_TEXT_COLUMNS, _SYNTHETIC_COLUMNS):
        found = first_of(lowered, columns)
        captions.append(read_text((first_of(inner, columns) if found is None else found) or "", name).strip())
    rest = {
        column: value for column, value in lowered.items() if column not in (*_ALT_TEXT_COLUMNS, *_SYNTHETIC_COLUMNS)
    }
    documents = [caption({**rest, "caption": each}, name) for each in captions if each]
    if not documents:
        raise Unusable("no text", name_of(record, name))
    return two_documents(*documents) if len(documents) == 2 else documents[0]


@unwrapping
def llava(record: Record, name: str = "") -> Document:
    """
    LLaVA's JSON. `conversations` is a list of turns `{"from": speaker, "value": text}`, in which the speaker is
    `"human"`, `"gpt"` or `"system"`. `image` or `images` is an image or a list of images. In human turns, `<image>` marks
    the position of an image; without such marks, the images come before the text of the first human turn.

    A conversation of one question and one answer about one image becomes a caption: the image and the answer, without
    the question, as in LLaVA's pre-training. Any other conversation becomes a text with line breaks between the turns
    and with the images at their positions.
    """
    name = name_of(record, name)
    chat = conversation_of(record, name, ("conversations",))
    if chat.said:
        raise Unusable(
            UNRENDERED, f"{', '.join(chat.said)} of {name}: pre-training reads the texts of a conversation only"
        )
    if len(chat.images) == 1 and [message["role"] for message in chat.messages] == ["user", "assistant"]:
        answer = "".join(part["text"] for part in chat.messages[1]["content"] if part["type"] == "text")
        return document_of([chat.images[0], answer.strip()], name, "caption")
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
    return document_of([*parts, line], name)


@unwrapping
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
    return conversation_of(record, name_of(record, name))


@unwrapping
def llava_chat(record: Record, name: str = "") -> Document:
    """
    LLaVA's JSON as [`llava`] reads it, but as a conversation with its roles, for fine-tuning. White space around texts
    and images is removed.
    """
    return conversation_of(record, name_of(record, name), ("conversations",), strip=True)


@unwrapping
def sharegpt(record: Record, name: str = "") -> Document:
    """
    ShareGPT's conversations: `conversations` is a list of turns `{"from": speaker, "value": text}`, or of turns with
    `role` and `content`. A turn of `"function_call"` calls a tool, and a turn of `"observation"` is its answer; `tools` and
    `system` may stand beside them. Images are placed as in [`chat`], and all text stays as it is.
    """
    return conversation_of(record, name_of(record, name), ("conversations",))


@unwrapping
def the_cauldron(record: Record, name: str = "") -> Document:
    """
    The Cauldron and FineVision: `images`, and `texts`, a list of `{"user": question, "assistant": answer}`. Images are
    placed as in [`chat`].
    """
    return conversation_of(record, name_of(record, name), ("texts",))


@unwrapping
def alpaca(record: Record, name: str = "") -> Document:
    """
    Alpaca's instructions: `instruction`, `output`, and, if it is not empty, `input`, which follows the instruction on a
    line of its own. `system`, `history` (a list of questions with answers) and images may stand beside them.
    """
    return conversation_of(record, name_of(record, name), ("instruction and output",))


@unwrapping
def query_response(record: Record, name: str = "") -> Document:
    """
    A `query` and its `response`. `system`, `history` (a list of queries with responses) and images may stand beside them.
    """
    return conversation_of(record, name_of(record, name), ("query and response",))


@unwrapping
def question_answer(record: Record, name: str = "") -> Document:
    """A `question` and its `answer`, mostly about an `image`. The answer is one text, or a list of equal texts."""
    return conversation_of(record, name_of(record, name), ("question and answer",))


@unwrapping
def pixmo_docs(record: Record, name: str = "") -> Document:
    """
    PixMo-Docs (`allenai/pixmo-docs`): an `image`, and `questions`, a list of `{"question", "answer"}`, or a list of
    questions and one of answers. Images are placed as in [`chat`].
    """
    return conversation_of(record, name_of(record, name), ("questions",))


@unwrapping
def preference(record: Record, name: str = "") -> Document:
    """
    Pairs of preferences, to train on what was `chosen`: `prompt`, `chosen` and `rejected`, each a text or a list of
    messages. Without a `prompt`, the turns with which both answers begin are the prompt. What was rejected is not read.
    """
    return conversation_of(record, name_of(record, name), ("preference",))


@unwrapping
def obelics(record: Record, name: str = "") -> Document:
    """
    OBELICS. `images` and `texts` are lists of the same length; at every position, one of them has an entry and the
    other has `None`. An image is a URL, a path, bytes, or an undecoded image of `datasets`.
    """
    name = name_of(record, name)
    images, texts = list_of(record, "images", name), list_of(record, "texts", name)
    if len(images) != len(texts):
        raise Unusable(WRONG_LAYOUT, f"{name}: {len(images)} images, but {len(texts)} texts; give lists of one length")
    parts: list[str | ImagePart] = []
    for image, text in zip(images, texts, strict=True):
        if (image is None) == (text is None):
            found = "neither an image nor a text" if image is None else "both an image and a text"
            raise Unusable(WRONG_LAYOUT, f"{name}: one position of the lists holds {found}")
        parts.append(read_text(text, name) if image is None else record_image(image, record, name))
    return read_whole(document_of(parts, name), record, ("images", "texts"))


@unwrapping
def mmc4(record: Record, name: str = "") -> Document:
    """
    MMC4. `text_list` is a list of sentences, and every entry of `image_info` is an image that comes before the
    sentence with the index `matched_text_index`. The image is the value of `image`, or else the file `image_name` if
    it exists, or else the image at the URL `raw_url`. Sentences between two images are joined by spaces.
    """
    name = name_of(record, name)
    sentences = [read_text(sentence, name) for sentence in list_of(record, "text_list", name)]
    before: dict[int, list[ImagePart]] = {}
    for info in list_of(record, "image_info", name):
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
    return read_whole(document_of(parts, name), record, ("text_list", "image_info"))


def _mmc4_image(info: Record, record: Record, name: str) -> ImagePart:
    if info.get("image") is not None:
        return record_image(info["image"], record, name)
    file, url = info.get("image_name"), info.get("raw_url")
    if isinstance(file, str):
        part = record_image(file, record, name)
        if url is None or os.path.exists(str(part.source)):
            return part
    return record_image(url, record, name)


@unwrapping
def text(record: Record, name: str = "") -> Document:
    """Plain text under `text`. Other columns are ignored, unless they hold images, videos or sounds."""
    name = name_of(record, name)
    if "text" not in record:
        raise Unusable(WRONG_LAYOUT, f"{name}: the record has the columns {columns_of(record)}, but not text")
    return read_whole(document_of([read_text(record["text"], name)], name), record, ("text",))


LAYOUTS: dict[str, Layout] = {
    "documents": documents,
    "caption": caption,
    "two_captions": two_captions,
    "llava": llava,
    "chat": chat,
    "llava_chat": llava_chat,
    "sharegpt": sharegpt,
    "the_cauldron": the_cauldron,
    "finevision": the_cauldron,
    "docmatix": the_cauldron,
    "llava_onevision": llava_chat,
    "m4_instruct": llava_chat,
    "llama_factory": chat,
    "axolotl": chat,
    "swift": chat,
    "alpaca": alpaca,
    "query_response": query_response,
    "question_answer": question_answer,
    "vqa": question_answer,
    "preference": preference,
    "obelics": obelics,
    "mmc4": mmc4,
    "text": text,
    "idl": idl,
    "pdfa": pdfa,
    "rendered_text": rendered_text,
    "docstruct": docstruct,
    "mint1t": mint1t,
    "pixmo_points": pixmo_points,
    "pixmo_count": pixmo_count,
    "pixmo_qa": pixmo_qa,
    "pixmo_docs": pixmo_docs,
    "refcoco": refcoco,
    "grit": grit,
    "llava_regions": llava_regions,
    "qwen_vl": qwen_vl,
    "internvl": internvl,
}


def layout_named(name: str) -> Layout:
    """
    The layout of a name.

    Args:
        name: a key of [`LAYOUTS`].

    Raises:
        ValueError: there is no such layout, or a package that it needs is not installed.
    """
    if name not in LAYOUTS:
        raise ValueError(f"There is no layout {name!r}; choose one of {', '.join(LAYOUTS)}.")
    if name == "pdfa" and find_spec("pypdfium2") is None:
        raise ValueError(
            "The layout 'pdfa' reads PDF files with pypdfium2, which is not installed: pip install 'mm1_hf[data]'"
        )
    return LAYOUTS[name]
