"""Reads conversations in TRL's columns: their messages, their images, and which of their turns are trained on."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mm1_hf.data.documents import Document


Message = dict[str, Any]

# The keys under which an image part of a message may hold its image.
IMAGE_KEYS = ("image", "url", "path", "base64")


@dataclass(frozen=True)
class Chat(Document):
    """
    A conversation. As a document, it consists of the texts and images of all turns in reading order.

    Args:
        messages:
            the turns in the form that chat templates take, with a list of parts as each content. Image parts do not
            hold their images; those are in `parts`.
        given_turns: number of assistant turns that belong to the prompt. They are the first ones, and not trained on.
    """

    messages: tuple[Message, ...] = ()
    given_turns: int = 0


def require_generation_marks(chat_template: str | Mapping[str, str] | None) -> None:
    """
    Checks that a chat template marks what the assistant writes.

    Args:
        chat_template: the chat template of a processor.

    Raises:
        ValueError: the template has no generation marks.
    """
    template = chat_template.get("default") if isinstance(chat_template, Mapping) else chat_template
    if template is None or not re.search(r"\{%-?\s*generation\s*-?%\}", template):
        raise ValueError(
            "Only what the assistant writes is trained on, but this processor's chat template has no {% generation %} "
            "marks to find it. Put {% generation %} and {% endgeneration %} around the assistant's text and its end "
            "mark, as in mm1_hf.model.processing_mm1.CHAT_TEMPLATE."
        )


def images_of(example: Mapping[str, Any]) -> list[Any]:
    """
    The images in the image columns of a conversation.

    Args:
        example: an example with `images` (a list), with `image` (a single one), or with neither.
    """
    if example.get("image") is not None:
        return [example["image"]]
    return list(example.get("images") or [])


def read_messages(example: Mapping[str, Any], name: str) -> tuple[list[Message], int] | None:
    """
    Reads the turns of an example.

    Args:
        example: an example with `messages`, or with `prompt` and `completion`, each of them a list of messages.
        name: name of the example, for error messages.

    Returns:
        The turns, and the number of assistant turns in the prompt; or `None` if the example is not a conversation.

    Raises:
        ValueError: the prompt and completion are not lists of messages, or a turn is not a message.
    """
    if example.get("messages") is not None:
        return _messages(example["messages"], name), 0
    if example.get("prompt") is None or example.get("completion") is None:
        return None
    if not all(isinstance(example[part], list) for part in ("prompt", "completion")):
        raise ValueError(f"{name}: prompt and completion must be chats, that is, lists of messages.")
    prompt, completion = _messages(example["prompt"], name), _messages(example["completion"], name)
    return prompt + completion, sum(message["role"] == "assistant" for message in prompt)


def _messages(value: Any, name: str) -> list[Message]:
    """The messages, with a list of parts as content, and without the `None` entries that tables add to parts."""
    messages = []
    for message in value if isinstance(value, list) else [value]:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str | list):
            raise ValueError(
                f"{name}: a message is {message!r:.100}; give it a role, and a text or a list of parts as content."
            )
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = [{key: item for key, item in part.items() if item is not None} for part in parts]
        messages.append({**message, "content": parts})
    return messages


def place_images(chat: list[Message], images: list[Any], name: str) -> list[Message]:
    """
    Puts images into a chat: into its image parts that hold no image yet, or, if it has no image parts, before the text
    of the first user turn.

    Args:
        chat: turns that [`read_messages`] returned. They are changed.
        images: the images from the image columns of the example.
        name: name of the example, for error messages.

    Returns:
        The chat, with an image in every image part.

    Raises:
        ValueError: the number of images differs from the number of image parts that hold none, or there is no user
            turn to put the images into.
    """
    places = [part for message in chat for part in message["content"] if part["type"] == "image"]
    empty = [part for part in places if not any(key in part for key in IMAGE_KEYS)]
    if images and not places:
        first_user = next((message for message in chat if message["role"] == "user"), None)
        if first_user is None:
            raise ValueError(
                f"{name} has images, but no user turn to put them into. Add a user turn, or remove the images."
            )
        empty = [{"type": "image"} for _ in images]
        first_user["content"][:0] = empty
    if len(empty) != len(images):
        raise ValueError(
            f"{name} has {len(images)} images, but its chat has {len(empty)} places for images (parts of type 'image' "
            "that hold no image). Give exactly one image for every place."
        )
    for part, image in zip(empty, images, strict=True):
        part["image"] = image
    return chat
