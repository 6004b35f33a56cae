"""
Refuses chats with images, videos, sounds or tools that have no place in the prompt, because templates leave them out
without a word.
"""

import re
from collections.abc import Mapping
from typing import Any


_MEDIA = re.compile(
    r"(?:input_)?(?:images?|imgs?|pictures?|photos?|videos?|audios?|sounds?)"
    r"(?:_(?:urls?|paths?|files?|data|bytes|base64))?(?:_?\d+)?"
)
# The keys under which transformers looks for the image of a part.
_HELD = ("image", "url", "path", "base64")


def require_placed(conversation: Any, template: str | None, tools: Any = None) -> None:
    """
    Checks that everything in a chat that names an image, a video or a sound is a part of a message, and that the template
    writes tools and their calls.

    Args:
        conversation: a chat, or a list of chats, as for `apply_chat_template`.
        template: the template that will be rendered.
        tools: the tools that are given to the template.

    Raises:
        ValueError: something would be lost; the message names it and says where it belongs.
    """
    chats = conversation if conversation and isinstance(conversation[0], list | tuple) else [conversation]
    calls = False
    for chat in chats:
        for index, message in enumerate(chat or []):
            if isinstance(message, Mapping):
                _require_message(message, f"Message {index} of the chat")
                calls |= _is_given(message.get("tool_calls"))
    for name, given in (("tools", _is_given(tools)), ("tool_calls", calls)):
        if given and name not in (template or ""):
            raise ValueError(
                f"The chat has {name}, but the chat template does not write them. Give a template that does, such as "
                "mm1_hf.model.processing_mm1.CHAT_TEMPLATE, or leave them out."
            )


def _require_message(message: Mapping[str, Any], name: str) -> None:
    if lost := [key for key in message if key != "content" and _MEDIA.fullmatch(str(key)) and _is_given(message[key])]:
        raise ValueError(
            f"{name} has {', '.join(lost)} beside its content, which no template reads. Put every image into the content "
            "as a part {'type': 'image', 'image': ...}."
        )
    if not isinstance(message.get("content"), list | tuple):
        return
    for part in message["content"]:
        if not isinstance(part, Mapping) or part.get("type") is None:
            raise ValueError(
                f"{name} has the part {part!r:.100}; a part is a dictionary with a 'type', such as {{'type': 'text', "
                "'text': ...}."
            )
        _require_part(part, name)


def _require_part(part: Mapping[str, Any], name: str) -> None:
    given = [str(key) for key in part if _is_given(part[key])]
    media = [key for key in given if key in _HELD or (key != "type" and _MEDIA.fullmatch(key))]
    # Each kind of part, with the number of images that it may hold, and whether it may hold a text.
    most, has_text = {"text": (0, True), "image": (1, False), "image_url": (1, False)}.get(
        str(part["type"]), (None, True)
    )
    if most is not None and (len(media) > most or ("text" in given and not has_text)):
        raise ValueError(
            f"{name} has a part of the type {part['type']!r} with {', '.join(given)}. Write one part for every image and "
            "one for every text."
        )


def _is_given(value: Any) -> bool:
    return value is not None and not (isinstance(value, str | list | tuple | Mapping) and not value)
