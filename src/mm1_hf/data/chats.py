"""Conversations in TRL's columns: what a record says, where its images stand, and what of it is learned."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mm1_hf.data.documents import Document


Message = dict[str, Any]

# Under one of these a part of a message holds its own image.
IMAGE_KEYS = ("image", "url", "path", "base64")


@dataclass(frozen=True)
class Chat(Document):
    """
    A conversation. As a document it is its words and images, in reading order.

    Args:
        messages:
            its turns as chat templates take them, each content a list of parts; the images themselves are left out, and are
            the document's.
        given_turns: the assistant's first so many turns are a prompt's, and not learned.
    """

    messages: tuple[Message, ...] = ()
    given_turns: int = 0


def require_generation_marks(chat_template: str | Mapping[str, str] | None) -> None:
    """
    Checks that a template says what the assistant writes.

    Args:
        chat_template: a processor's.

    Raises:
        ValueError: it does not.
    """
    template = chat_template.get("default") if isinstance(chat_template, Mapping) else chat_template
    if template is None or not re.search(r"\{%-?\s*generation\s*-?%\}", template):
        raise ValueError(
            "Only what the assistant writes is learned, and this processor's chat template has no {% generation %} marks "
            "that say what that is. Put {% generation %} and {% endgeneration %} around the assistant's words and their "
            "end mark, as in mm1_hf.model.processing_mm1.CHAT_TEMPLATE."
        )


def images_of(example: Mapping[str, Any]) -> list[Any]:
    """
    The images beside a conversation.

    Args:
        example: with `images`, a list, or a single `image`, or neither.
    """
    if example.get("image") is not None:
        return [example["image"]]
    return list(example.get("images") or [])


def read_messages(example: Mapping[str, Any], name: str) -> tuple[list[Message], int] | None:
    """
    The turns of a record, and how many of the assistant's are given.

    Args:
        example: with `messages`, or `prompt` and `completion`, both lists of messages.
        name: the record's, for messages.

    Returns:
        `None` for what is no conversation.

    Raises:
        ValueError: a prompt and completion that are not conversations, or turns that are not messages.
    """
    if example.get("messages") is not None:
        return _messages(example["messages"], name), 0
    if example.get("prompt") is None or example.get("completion") is None:
        return None
    if not all(isinstance(example[part], list) for part in ("prompt", "completion")):
        raise ValueError(f"{name}: prompt and completion must be chats, lists of messages.")
    prompt, completion = _messages(example["prompt"], name), _messages(example["completion"], name)
    return prompt + completion, sum(message["role"] == "assistant" for message in prompt)


def _messages(value: Any, name: str) -> list[Message]:
    """Turns whose content is a list of parts, without the empty keys that tables fill in."""
    messages = []
    for message in value if isinstance(value, list) else [value]:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str | list):
            raise ValueError(
                f"{name}: a message is {message!r:.100}; give it a role, and a content of text or of parts."
            )
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = [{key: item for key, item in part.items() if item is not None} for part in parts]
        messages.append({**message, "content": parts})
    return messages


def place_images(chat: list[Message], images: list[Any], name: str) -> list[Message]:
    """
    Puts images into a chat: in the places that it has for them, or before the first user's words.

    Args:
        chat: turns as [`read_messages`] gives them, which are changed.
        images: those that stand beside it.
        name: the record's, for messages.

    Returns:
        The chat, whose every image part has an image.

    Raises:
        ValueError: other numbers of images and of places for them, or no user's turn to put them into.
    """
    places = [part for message in chat for part in message["content"] if part["type"] == "image"]
    empty = [part for part in places if not any(key in part for key in IMAGE_KEYS)]
    if images and not places:
        first_user = next((message for message in chat if message["role"] == "user"), None)
        if first_user is None:
            raise ValueError(f"{name} has images, but no user turn to put them into.")
        empty = [{"type": "image"} for _ in images]
        first_user["content"][:0] = empty
    if len(empty) != len(images):
        raise ValueError(
            f"{name} has {len(images)} images, but its chat has {len(empty)} places for one (parts of type 'image' without "
            "an image of their own). Give one image for every place."
        )
    for part, image in zip(empty, images, strict=True):
        part["image"] = image
    return chat
