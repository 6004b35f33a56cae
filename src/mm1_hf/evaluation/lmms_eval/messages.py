"""Requests of this package and lmms-eval's chat messages, each made of the other."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from PIL import Image

from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.requests import Part, Request, Turn
from mm1_hf.model.image_pixels import to_uint8_pixels


# What most of lmms-eval's models take where a task does not say it.
MAX_NEW_TOKENS = 1024
# Without effect on greedy decoding, or on other models than LLaVA.
_WITHOUT_EFFECT = ("do_sample", "image_aspect_ratio", "num_beams", "seed", "temperature", "top_k", "top_p")


def generation_settings(settings: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """
    Reads a task's `generation_kwargs`.

    Args:
        settings: the settings.

    Returns:
        The maximum length of an answer in tokens, and the strings that end it.

    Raises:
        ValueError: they ask for anything but greedy decoding, or hold an unknown setting.

    Example:

    ```python
    >>> from mm1_hf.evaluation.lmms_eval.messages import generation_settings

    >>> generation_settings({"max_new_tokens": 16, "until": ["\\n\\n"], "do_sample": False, "temperature": 0})
    (16, ('\\n\\n',))

    ```
    """
    unknown = [name for name in settings if name not in (*_WITHOUT_EFFECT, "max_new_tokens", "until")]
    if unknown:
        raise ValueError(
            f"The task's generation_kwargs have {', '.join(unknown)}, which this model does not know. It knows "
            f"max_new_tokens and until. Take them out of the task's file."
        )
    temperature = settings.get("temperature")
    sampling = (
        settings.get("do_sample") if temperature is None else settings.get("do_sample", True) and temperature > 0
    )
    if sampling or (settings.get("num_beams") or 1) > 1:
        raise ValueError(
            f"The task's generation_kwargs are {dict(settings)}, but this model decodes greedily. Add --gen_kwargs "
            "do_sample=False,temperature=0,num_beams=1."
        )
    until = settings.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(each for each in until if each)
    return settings.get("max_new_tokens") or MAX_NEW_TOKENS, stop


def turns_of(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """
    Reads chat messages.

    Args:
        messages: messages in lmms-eval's form, with texts and images.

    Raises:
        ValueError: they hold a video or sound, or do not end with a user's message.
    """
    turns = tuple(Turn(each["role"], tuple(_part(part) for part in each["content"])) for each in messages)
    if not turns or turns[-1].role != "user":
        raise ValueError(
            f"A chat must end with a user's message, but this one has the roles {[t.role for t in turns]}."
        )
    return turns


def messages_of(request: Request) -> list[dict[str, Any]]:
    """
    Writes the chat of a request as messages that any chat model of lmms-eval reads.

    Args:
        request: the request, whose prompt is a chat.

    Returns:
        The messages. Images are decoded, and RGB as MM1's own processor makes them, because models differ in what they
        do with other modes.

    Raises:
        ValueError: an image cannot be decoded.
    """
    return [
        {"role": turn.role, "content": [_content(part) for part in turn.parts]}
        for turn in cast(tuple[Turn, ...], request.prompt)
    ]


def completion(text: str, images: Sequence[Any]) -> tuple[Part, ...]:
    """
    The prompt of a text to continue. The images stand at the marks `<image>` of the text if there are as many, otherwise
    before it.

    Args:
        text: the text.
        images: the images, in any form that [`ImagePart`] takes.
    """
    pictures = [ImagePart(image) for image in images]
    first, *rest = text.split("<image>")
    if len(rest) != len(pictures):
        return (*pictures, text)
    parts: list[Part] = [first]
    for picture, piece in zip(pictures, rest, strict=True):
        parts += [picture, piece]
    return tuple(parts)


def _part(content: Mapping[str, Any]) -> Part:
    if content["type"] == "text":
        return content["text"]
    if content["type"] == "image":
        return ImagePart(content["url"])
    raise ValueError(f"The task asks about a {content['type']}; MM1 reads texts and images. Leave this task out.")


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "url": rgb_image(part)}


def rgb_image(part: ImagePart) -> Image.Image:
    """
    Decodes an image, and makes it RGB as MM1's own processor does.

    Args:
        part: the image.

    Raises:
        Unusable: it cannot be decoded.
    """
    image = part.load()
    if image.mode == "RGB":
        return image
    return Image.fromarray(to_uint8_pixels(image, 0, True, True, None).permute(1, 2, 0).numpy())
