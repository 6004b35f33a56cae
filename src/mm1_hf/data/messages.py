"""Reads the turns of a conversation in every common form, and puts its images into their places."""

import json
import re
from collections.abc import Mapping
from typing import Any

from mm1_hf.data.documents import Unusable
from mm1_hf.data.media import UNREAD_MEDIA, images_in, is_empty, of_json, read_text, require_read
from mm1_hf.data.raw_records import WRONG_LAYOUT
from mm1_hf.data.wall import require_unicode


Message = dict[str, Any]

# What people write in a text for the place of an image, whatever the image token of a processor is.
MARK = "<image>"

UNPLACED = "images cannot be placed"
MARK_ALONE = "mark without image"
EMPTY_TURN = "empty assistant turn"

# The marks of other models. With images that have no other places, they would be learned as text.
_FOREIGN_MARK = re.compile(
    r"<\|?(?:image|img)(?:[ _-]?(?:\d+|pad|placeholder|token|start))?\|?>|<ImageHere>|<Image>|\[IMG\]|<\|vision_start\|>"
)
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
_FUNCTION_CALL = "function_call"
# What a turn says beside its content. Other keys, such as a time or an id, are not meant for a model.
_SAID = ("tool_calls", "name", "reasoning_content", "reasoning", "thinking", "refusal", "weight")
_TRAINED = ("train", "training", "loss")
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
# The keys under which an image part may hold its image.
_HELD = ("image", "url", "path", "base64", "bytes", "image_url", "source")
_PART_KEYS = frozenset({"type", "text", "index", "detail", *_HELD})


def read_messages(value: Any, name: str) -> list[Message]:
    """
    Reads a list of turns. A turn has a role under `role` or `from`, and a content under `content` or `value`.

    Args:
        value: the turns, also as JSON in a text, or as the lists of columns that `datasets` makes of a list of structs.
        name: name of the record, for error messages.

    Returns:
        The turns in one form: `role`, `content`, and what else they say. The content is a list of parts: `{"type":
        "text", "text": ...}`, `{"type": "image", "image": ...}`, or `{"type": "image"}` for an image that stands
        elsewhere in the record.

    Raises:
        Unusable: the value is not a list of turns, a part of a turn is of another type, or an assistant's turn is empty.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = of_json(value, f"{name}: the list of messages")
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) > 1:
            raise Unusable(WRONG_LAYOUT, f"{name}: the columns of the messages have different lengths")
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    turns = value if isinstance(value, list | tuple) else [value]
    if not turns:
        raise Unusable(WRONG_LAYOUT, f"{name}: the list of messages is empty")
    return [_message(turn, name) for turn in turns]


def _message(turn: Any, name: str) -> Message:
    role, content = (
        (_entry(turn, "role", "from"), _entry(turn, "content", "value")) if _is_turn(turn) else (None, None)
    )
    said = {key: turn[key] for key in _SAID if turn.get(key) not in (None, "", [])} if role is not None else {}
    # Axolotl and ms-swift say by a truth value whether a turn is trained on, OpenAI by its weight.
    trained = [turn[key] for key in _TRAINED if isinstance(turn.get(key), bool)] if role is not None else []
    if trained:
        said["weight"] = int(all(trained))
    if isinstance(role, str) and role.strip().lower() == _FUNCTION_CALL:
        said["tool_calls"] = [of_json(read_text(content, name), f"{name}: a function call")]
        role, content = "assistant", None
    elif role is not None and turn.get(_FUNCTION_CALL) is not None:
        said["tool_calls"] = [turn[_FUNCTION_CALL]]
    if "tool_calls" in said:
        said["tool_calls"] = _tool_calls(said["tool_calls"], name)
    if content is None and said.keys() & {"tool_calls", "reasoning_content", "reasoning", "thinking"}:
        content = []
    if not isinstance(role, str) or not role.strip() or not isinstance(content, str | list | tuple | Mapping):
        raise Unusable(
            WRONG_LAYOUT,
            f"{name}: a message is {turn!r:.100}; give it a role, and a text or a list of parts as content",
        )
    role = _ROLES.get(role.strip().lower(), role.strip().lower())
    if role == "tool":
        # The name of the function, which stands in its call.
        said.pop("name", None)
    require_read(turn, ("content", "value"), 0, f"{name}: a message of the role {role}")
    parts = _parts(content, name)
    if role == "assistant" and not said.keys() - {"name", "weight"} and not any(map(_says, parts)):
        raise Unusable(EMPTY_TURN, f"{name}: there is nothing to learn in it; remove it, or give it a text")
    return {"role": role, "content": parts} | said


def said_beside(message: Message) -> list[str]:
    """
    What a turn says beside its content, as texts: its reasoning, and its calls of tools as JSON.

    Args:
        message: a turn that [`read_messages`] returned.
    """
    texts = [str(message[key]) for key in ("reasoning_content", "reasoning", "thinking") if key in message]
    functions = [call.get("function", call) for call in message.get("tool_calls", ())]
    calls = [{"name": function["name"], "arguments": function.get("arguments", {})} for function in functions]
    return texts + [f"<tool_call>{json.dumps(call, ensure_ascii=False, default=str)}</tool_call>" for call in calls]


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, Mapping)


def _entry(turn: Mapping[str, Any], *keys: str) -> Any:
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _says(part: Mapping[str, Any]) -> bool:
    return part["type"] == "image" or bool(part["text"].strip())


def _tool_calls(value: Any, name: str) -> list[dict[str, Any]]:
    calls = of_json(value, f"{name}: tool_calls") if isinstance(value, str) else value
    require_unicode(json.dumps(calls, ensure_ascii=False, default=str), name)
    calls = without_none(calls if isinstance(calls, list) else [calls])
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Unusable(WRONG_LAYOUT, f"{name}: a tool call is {call!r:.100}; give it a function with a name")
    return calls


def without_none(value: Any) -> Any:
    """
    Removes `None` entries, which tables add to give all structs the same keys.

    Args:
        value: dictionaries and lists, nested to any depth.
    """
    if isinstance(value, Mapping):
        return {key: without_none(entry) for key, entry in value.items() if entry is not None}
    return [without_none(entry) for entry in value] if isinstance(value, list | tuple) else value


def _parts(content: Any, name: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    given = list(content) if isinstance(content, list | tuple) else [content]
    found = [_part(part, name) for part in given if part is not None]
    return [part for part in found if part is not None and part != {"type": "text", "text": ""}]


def _part(part: Any, name: str) -> dict[str, Any] | None:
    """A part in the form of [`read_messages`], or `None` if it has no entries."""
    if not isinstance(part, Mapping):
        raise Unusable(
            WRONG_LAYOUT, f"{name}: a part of a message is {part!r:.100}; write a text as a part of the type 'text'"
        )
    # Tables give every part the keys of all others.
    entries = {key: entry for key, entry in part.items() if entry is not None}
    if not entries:
        return None
    held = [key for key in _HELD if not is_empty(entries.get(key))]
    kind = entries.get("type")
    if kind is None:
        raise Unusable(WRONG_LAYOUT, f"{name}: a part of a message has no type: {dict(part)!r:.100}")
    if kind in _TEXT_PARTS and isinstance(entries.get("text"), str) and not held:
        require_read(entries, _PART_KEYS, 0, f"{name}: a part of the type {kind}")
        return {"type": "text", "text": read_text(entries["text"], name)}
    if kind not in _IMAGE_PARTS or entries.get("text"):
        raise Unusable(
            UNREAD_MEDIA if re.search("image|video|audio|file|document", str(kind)) else WRONG_LAYOUT,
            f"{name}: a part of the type {kind!r:.40}: {dict(part)!r:.200}; MM1 reads parts of the types "
            f"{', '.join((*_TEXT_PARTS, *_IMAGE_PARTS))}, with a text or an image in each",
        )
    require_read(entries, _PART_KEYS, 0, f"{name}: a part of the type {kind}")
    if not held:
        if kind != "image":
            raise Unusable(WRONG_LAYOUT, f"{name}: a part of the type {kind} holds no image: {dict(part)!r:.200}")
        index = entries.get("index")
        return {"type": "image"} | ({"index": index} if isinstance(index, int) else {})
    return {"type": "image", "image": _held(entries, held, name)}


def _held(entries: Mapping[str, Any], keys: list[str], name: str) -> Any:
    """The image of an image part: TRL's `image`, transformers' `url`, `path` and `base64`, OpenAI's, or Anthropic's."""
    if set(keys) == {"bytes", "path"}:
        keys = ["bytes"]
    if len(keys) > 1:
        raise Unusable(WRONG_LAYOUT, f"{name}: a part of a message holds several images, in {', '.join(keys)}")
    (key,) = keys
    value = entries[key]
    if key == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
    if key == "source" and isinstance(value, Mapping):
        key, value = ("base64", value["data"]) if value.get("data") is not None else ("url", value.get("url"))
    if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
        value = f"data:;base64,{value}"
    return value


def image_columns(example: Mapping[str, Any], name: str) -> list[Any]:
    """
    The images in the image columns of a conversation. `None`, `""` and `[]` mean that there are none.

    Args:
        example: an example with `images` or `image`, each a single image or a list of them.
        name: name of the example, for error messages.

    Raises:
        Unusable: both columns hold images, or a list also has an empty entry.
    """
    found = {column: images_in(example.get(column), f"{name}: {column}") for column in ("images", "image")}
    if found["images"] and found["image"]:
        raise Unusable(UNPLACED, f"{name}: both images and image hold images. Put all of them into images, in order")
    return found["images"] or found["image"]


def place_images(chat: list[Message], images: list[Any], name: str) -> list[Message]:
    """
    Puts images into a chat, in order: into the image parts that hold no image yet, and at the marks `<image>` in the
    user's texts; or, if it has neither, before the text of the first user turn. In the texts of other roles, `<image>` is
    ordinary text.

    Args:
        chat: turns that [`read_messages`] returned. They are changed.
        images: the images from the image columns of the example.
        name: name of the example, for error messages.

    Returns:
        The chat, with an image in every image part.

    Raises:
        Unusable: the number of images differs from the number of places for them, or there is no user turn to put the
            images into.
    """
    parts = [part for message in chat for part in message["content"] if part["type"] == "image"]
    empty = [part for part in parts if "image" not in part]
    marks = sum(_marks(message) for message in chat)
    if marks and len(empty) + marks != len(images):
        held = len(parts) - len(empty)
        beside = f" that no part holds ({held} are in parts)" if held else ""
        raise Unusable(
            UNPLACED if images or parts else MARK_ALONE,
            f"{name} has {len(images)} images{beside}, but its user's texts have {marks} marks {MARK}"
            f"{f' and its parts {len(empty)} more places' if empty else ''}. Give one image for every mark; a text "
            "about the mark itself cannot be learned",
        )
    if marks:
        for message in chat:
            if message["role"] == "user":
                message["content"] = [piece for part in message["content"] for piece in _split(part)]
    elif images and not parts:
        _first_user(chat, images, name)
    empty = [
        part for message in chat for part in message["content"] if part["type"] == "image" and "image" not in part
    ]
    if len(empty) != len(images):
        raise Unusable(
            UNPLACED,
            f"{name} has {len(images)} images, but its chat has {len(empty)} places for images (parts of type 'image' "
            "that hold no image). Give exactly one image for every place",
        )
    order = [part.pop("index", number) for number, part in enumerate(empty)]
    if sorted(order) != list(range(len(images))):
        raise Unusable(UNPLACED, f"{name}: the indices of its image parts are {order!r:.100}, not those of its images")
    for part, index in zip(empty, order, strict=True):
        part["image"] = images[index]
    return chat


def _marks(message: Message) -> int:
    if message["role"] != "user":
        return 0
    return sum(part["text"].count(MARK) for part in message["content"] if part["type"] == "text")


def _split(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The pieces of a text part around its marks, with an empty image part for each mark."""
    if part["type"] == "image":
        return [part]
    first, *others = part["text"].split(MARK)
    pieces = [{"type": "text", "text": first}]
    for other in others:
        pieces += [{"type": "image"}, {"type": "text", "text": other}]
    return [piece for piece in pieces if piece.get("text") != ""]


def _first_user(chat: list[Message], images: list[Any], name: str) -> None:
    """Makes empty image parts at the start of the first user turn."""
    first_user = next((message for message in chat if message["role"] == "user"), None)
    if first_user is None:
        raise Unusable(
            UNPLACED, f"{name} has images, but no user turn to put them into. Add a user turn, or remove the images"
        )
    for message in chat:
        for part in message["content"]:
            pattern = _FOREIGN_MARK if message["role"] == "user" else re.compile(MARK)
            if part["type"] == "text" and (mark := pattern.search(part["text"])):
                raise Unusable(
                    UNPLACED,
                    f"{name} has {len(images)} images and the mark {mark[0]} in a text of the role {message['role']}. Mark "
                    f"the place of an image by {MARK} in the user's texts",
                )
    first_user["content"] = [*({"type": "image"} for _ in images), *first_user["content"]]
