"""
Checks what a client asks of `mm1 serve` before transformers' server reads it, and fetches the images that it names.
Whatever is refused here is the client's fault, and the message says how to mend it.
"""

import base64
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

from transformers import ProcessorMixin

from mm1_hf.model.fetching import fetch_url
from mm1_hf.model.image_inputs import image_size


# Limits of one request. Text is counted in characters, with the names and the schemas of tools.
MAX_TEXT = 1_000_000
CHARACTERS_PER_TOKEN = 16
MAX_VALUES = 20_000
# Requests with more do not keep the others waiting.
LONG_TEXT = 50_000
LONG_VALUES = 2_000
MAX_DEPTH = 64
MAX_IMAGES = 32
MAX_PIXELS = 64_000_000
MAX_IMAGE_BYTES = 64 * 2**20
FETCH_SECONDS = 60
# Downloads of all requests at the same time, each of which takes memory.
MAX_FETCHES = 16
MAX_STOPS = 4
MAX_STOP_LENGTH = 256

_ROLES = ("system", "developer", "user", "assistant", "tool")
_LARGEST = 2**31 - 1
# Whether the setting is a whole number, its lowest and its highest value.
_Range = tuple[bool, float, float]
_TOKENS: _Range = (True, 1, _LARGEST)
_TEMPERATURE: _Range = (False, 0, 2)
_SHARE: _Range = (False, 0, 1)
_SEED: _Range = (True, -(2**63), 2**64 - 1)
# Below it, logits divided by the temperature may overflow; sampling is as good as greedy there.
_LOWEST_TEMPERATURE = 0.01
_NUMBERS: dict[str, _Range] = {
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    "max_output_tokens": _TOKENS,
    "temperature": _TEMPERATURE,
    "top_p": _SHARE,
    "seed": _SEED,
    # transformers takes 1 more than this as its penalty on repetition, which must be above 0.
    "frequency_penalty": (False, -0.9, 2),
}
_FLAGS = ("stream",)
# What a client may set of `generation_config`, which `mm1 chat` sends.
_GENERATION_NUMBERS: dict[str, _Range] = {
    "max_new_tokens": _TOKENS,
    "max_length": _TOKENS,
    "min_new_tokens": (True, 0, _LARGEST),
    "min_length": (True, 0, _LARGEST),
    "temperature": _TEMPERATURE,
    "top_k": (True, 0, _LARGEST),
    "top_p": _SHARE,
    "min_p": _SHARE,
    "typical_p": (False, 0.01, 1),
    "repetition_penalty": (False, 0.1, 10),
    "no_repeat_ngram_size": (True, 0, 1000),
    "num_beams": (True, 1, 8),
    "length_penalty": (False, -10, 10),
}
_GENERATION_FLAGS = ("do_sample", "early_stopping", "renormalize_logits", "use_cache")
_GENERATION_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_FETCHES = threading.BoundedSemaphore(MAX_FETCHES)
# Some formats take memory for their pixels as soon as they are opened.
_SIZES = threading.Lock()
# Arguments of a processor and its chat template that a client's `chat_template_kwargs` must not reach.
_TEMPLATE_ARGUMENTS = frozenset(
    {*signature(ProcessorMixin.apply_chat_template).parameters, *signature(ProcessorMixin.__call__).parameters}
    | {"messages", "conversations", "padding", "truncation", "max_length"}
)
# A Hub id, with a revision and a file of the repository where there are several.
_HUB_MODEL = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@\w[\w./-]*)?(:\w[\w./-]*)?", re.ASCII)
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image_url", "input_image")


@dataclass(frozen=True)
class Checked:
    """
    A request that was found right.

    Args:
        body: the request, with every image as a `data:` URL.
        pixels: number of pixels of its images.
        is_long: whether it has more text or parts than most.
    """

    body: dict[str, Any]
    pixels: int
    is_long: bool


def check_chat(body: dict[str, Any], template: str | None, max_text: int = MAX_TEXT) -> Checked:
    """
    Checks a request for a chat completion.

    Args:
        body: the request, as parsed from JSON.
        template: the model's chat template.
        max_text: largest number of characters of all texts together.

    Returns:
        The request, with every image as a `data:` URL.

    Raises:
        ValueError: the request is wrong, or one of its images cannot be read.
    """
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise ValueError("`messages` must be a list of at least one message.")
    body = _check_settings(body, template)
    images = _Images()
    messages = [_message(each, f"messages[{place}]", template, images) for place, each in enumerate(body["messages"])]
    body = {**body, "messages": messages}
    is_long = _check_size(body, max_text)
    images.read()
    return Checked(body, images.pixels, is_long)


def check_response(body: dict[str, Any], template: str | None, max_text: int = MAX_TEXT) -> Checked:
    """
    Checks a request of the Responses API.

    Args:
        body: the request, as parsed from JSON.
        template: the model's chat template.
        max_text: largest number of characters of all texts together.

    Returns:
        The request, with every image as a `data:` URL.

    Raises:
        ValueError: the request is wrong, or one of its images cannot be read.
    """
    given = body.get("input")
    if not isinstance(given, str | list) or not given:
        raise ValueError("`input` must be a text, or a list of at least one message or content part.")
    if not isinstance(body.get("instructions"), str | None):
        raise ValueError("`instructions` must be a text.")
    body = _check_settings(body, template)
    images = _Images()
    if isinstance(given, list):
        if all(isinstance(item, dict) and "role" not in item and item.get("type") in _parts() for item in given):
            given = _content(given, "input", images)
        else:
            given = [_item(each, f"input[{place}]", template, images) for place, each in enumerate(given)]
    body = {**body, "input": given}
    is_long = _check_size(body, max_text)
    images.read()
    return Checked(body, images.pixels, is_long)


def check_completion(body: dict[str, Any], template: str | None, max_text: int = MAX_TEXT) -> Checked:
    """
    Checks a request for the completion of a plain text.

    Args:
        body: the request, as parsed from JSON.
        template: the model's chat template, which is not used.
        max_text: largest number of characters of all texts together.

    Returns:
        The request.

    Raises:
        ValueError: the request is wrong.
    """
    if not isinstance(body.get("prompt"), str) or not body["prompt"]:
        raise ValueError("`prompt` must be a text of at least one character.")
    if not isinstance(body.get("suffix"), str | None):
        raise ValueError("`suffix` must be a text.")
    body = _check_settings(body, template)
    return Checked(body, 0, _check_size(body, max_text))


def check_decision(body: dict[str, Any], template: str | None, max_text: int = MAX_TEXT) -> Checked:
    """
    Checks a request for decisions, which transformers' server checks further.

    Args:
        body: the request, as parsed from JSON.
        template: the model's chat template, which is not used.
        max_text: largest number of characters of all texts together.

    Returns:
        The request.

    Raises:
        ValueError: the request is too large, or names images: they would be read without limits.
    """
    if body.get("assets"):
        raise ValueError("`assets` are not read: mm1 serve takes images at /v1/chat/completions and /v1/responses.")
    return Checked(body, 0, _check_size(body, max_text))


def _parts() -> tuple[str, ...]:
    return (*_TEXT_PARTS, *_IMAGE_PARTS)


class _Images:
    """The images of a request: they are collected first, and fetched when all the rest was found right."""

    def __init__(self) -> None:
        self.places: list[tuple[dict[str, Any], str]] = []
        self.pixels = 0

    def add(self, url: str) -> dict[str, Any]:
        """The content part of an image, whose data are filled in by `read`."""
        if len(self.places) == MAX_IMAGES:
            raise ValueError(f"The request has more than {MAX_IMAGES} images. Send fewer.")
        part: dict[str, Any] = {"type": "image_url", "image_url": {"url": ""}}
        self.places.append((part, url))
        return part

    def read(self) -> None:
        fetched = 0
        deadline = time.monotonic() + FETCH_SECONDS
        for number, (part, url) in enumerate(self.places):
            try:
                data = _image_data(url, deadline)
                with _SIZES:
                    height, width = image_size(data)
            except Exception as error:
                # Pillow's decoders raise exceptions of nearly any type for broken files.
                reason = str(error) or type(error).__name__
                raise ValueError(f"Image {number} of the request cannot be read: {reason}") from error
            fetched += len(data)
            self.pixels += height * width
            if self.pixels > MAX_PIXELS:
                raise ValueError(
                    f"The images of the request have more than {MAX_PIXELS:,} pixels together. Send smaller images."
                )
            if fetched > MAX_IMAGE_BYTES:
                raise ValueError(f"The images of the request have more than {MAX_IMAGE_BYTES:,} bytes together.")
            part["image_url"]["url"] = f"data:image;base64,{base64.b64encode(data).decode()}"


def _image_data(url: str, deadline: float) -> bytes:
    if url[:8].lower().startswith(("http://", "https://")):
        if not _FETCHES.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise ValueError(f"the images of the request were not fetched within {FETCH_SECONDS} seconds")
        try:
            return fetch_url(url)
        finally:
            _FETCHES.release()
    encoded = url.partition(",")[2] if url[:5].lower() == "data:" else url
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError:
        raise ValueError(
            f"{url[:60]!r} is neither a public http(s) URL nor a data: URL in base64. Files of the server are not read."
        ) from None


def _message(message: Any, where: str, template: str | None, images: _Images) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ValueError(f"{where} must be a message with `role` and `content`, but is {_kind(message)}.")
    role = message.get("role")
    if role not in _ROLES:
        raise ValueError(f"{where}.role is {_shortened(role)}; it must be one of {', '.join(_ROLES)}.")
    # OpenAI's newer name for the system's role, which few templates know.
    if role == "developer" and "developer" not in (template or ""):
        role = "system"
    if message.get("audio") is not None:
        raise ValueError(f"{where}.audio is not read: this model takes text and images.")
    calls = message.get("tool_calls")
    if calls:
        _check_calls(calls, f"{where}.tool_calls", template)
    content = message.get("content")
    if content is None and not calls:
        raise ValueError(f"{where}.content is missing. Give a text or a list of content parts.")
    if isinstance(content, list):
        content = _content(content, f"{where}.content", images)
    elif not isinstance(content, str | None):
        raise ValueError(f"{where}.content must be a text or a list of content parts, but is {_kind(content)}.")
    return {**message, "role": role, "content": content}


def _content(parts: list[Any], where: str, images: _Images) -> list[dict[str, Any]]:
    return [_part(part, f"{where}[{place}]", images) for place, part in enumerate(parts)]


def _part(part: Any, where: str, images: _Images) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS:
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{where}.text must be a text, but is {_kind(part.get('text'))}.")
        return {"type": "text", "text": part["text"]}
    if kind in _IMAGE_PARTS:
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if not isinstance(url, str) or not url:
            raise ValueError(f"{where}.image_url must be a URL, or an object with a `url`.")
        return images.add(url)
    if not isinstance(part, dict):
        raise ValueError(f"{where} must be a content part with a `type`, but is {_kind(part)}.")
    raise ValueError(f"{where} has the type {_shortened(kind)}; content parts of {', '.join(_parts())} are read.")


def _item(item: Any, where: str, template: str | None, images: _Images) -> dict[str, Any]:
    """An item of the Responses API: a message, or a call of a tool or its result from an earlier response."""
    kind = item.get("type") if isinstance(item, dict) else None
    if isinstance(item, dict) and "role" in item:
        return _message(item, where, template, images)
    texts = {
        "function_call": ("call_id", "name", "arguments"),
        "function_call_output": ("call_id", "output"),
    }
    if kind == "reasoning":
        content = item.get("content") or []
        if not isinstance(content, list) or not all(
            isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
        ):
            raise ValueError(f"{where}.content must be a list of parts with a `text`.")
        return item
    if kind not in texts:
        raise ValueError(
            f"{where} is {_shortened(kind) if kind else _kind(item)}; it must be a message with a `role`, or one of "
            f"{', '.join(texts)}, reasoning."
        )
    if wrong := [name for name in texts[kind] if not isinstance(item.get(name), str)]:
        raise ValueError(f"{where}.{wrong[0]} must be a text, but is {_kind(item.get(wrong[0]))}.")
    if kind == "function_call":
        _check_calls([{"function": item}], where, template)
    return item


def _check_calls(calls: Any, where: str, template: str | None) -> None:
    if "tool_calls" not in (template or ""):
        raise ValueError(f"{where}: the chat template of this model does not write calls of tools.")
    if not isinstance(calls, list):
        raise ValueError(f"{where} must be a list, but is {_kind(calls)}.")
    for place, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"{where}[{place}] must have a `function` with a `name`.")
        if isinstance(arguments, str):
            arguments = _parsed(arguments, f"{where}[{place}].function.arguments")
        if not isinstance(arguments, dict):
            raise ValueError(f"{where}[{place}].function.arguments must be an object, or one as JSON text.")


def _check_settings(body: dict[str, Any], template: str | None) -> dict[str, Any]:
    _check_numbers(body, _NUMBERS, "")
    _check_flags(body, _FLAGS, "")
    body = {**body, **_greedy(body)}
    stop = body.get("stop")
    if stop is not None:
        stops = [stop] if isinstance(stop, str) else stop
        if (
            not isinstance(stops, list)
            or not 1 <= len(stops) <= MAX_STOPS
            or not all(isinstance(each, str) and 1 <= len(each) <= MAX_STOP_LENGTH for each in stops)
        ):
            raise ValueError(f"`stop` must be 1 to {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters each.")
        body["stop"] = stops
    if body.get("logit_bias") is not None:
        body["logit_bias"] = _biases(body["logit_bias"])
    if body.get("generation_config") is not None:
        body["generation_config"] = _generation_config(body["generation_config"])
    if body.get("tools"):
        tools = body["tools"]
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise ValueError("`tools` must be a list of descriptions of functions.")
        if "tools" not in (template or ""):
            raise ValueError("`tools`: the chat template of this model does not write tools.")
    _check_template_arguments(body.get("chat_template_kwargs"), template)
    return body


def _check_numbers(values: Mapping[str, Any], ranges: dict[str, _Range], where: str) -> None:
    for name, (whole, lowest, highest) in ranges.items():
        value = values.get(name)
        if value is None:
            continue
        kind = int if whole else (int, float)
        # NaN is not in any range.
        if isinstance(value, bool) or not isinstance(value, kind) or not lowest <= value <= highest:
            noun = "whole number" if whole else "number"
            raise ValueError(
                f"`{where}{name}` is {_shortened(value)}; it must be a {noun} from {lowest:,} to {highest:,}."
            )


def _check_flags(values: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in names:
        if not isinstance(values.get(name), bool | None):
            raise ValueError(f"`{where}{name}` is {_shortened(values[name])}; it must be true or false.")


def _greedy(values: Mapping[str, Any]) -> dict[str, Any]:
    temperature = values.get("temperature")
    return {"temperature": 0.0} if temperature is not None and temperature < _LOWEST_TEMPERATURE else {}


def _biases(biases: Any) -> dict[str, float]:
    wanted = "`logit_bias` must give token ids, as texts, a number from -100 to 100 each"
    if not isinstance(biases, dict) or len(biases) > 1024:
        raise ValueError(f"{wanted}, for 1,024 tokens at most.")
    for token, bias in biases.items():
        if not re.fullmatch("[0-9]{1,9}", token):
            raise ValueError(f"{wanted}; {_shortened(token)} is not a token id.")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"{wanted}; that of token {token} is {_shortened(bias)}.")
    # transformers takes no integers.
    return {token: float(bias) for token, bias in biases.items()}


def _generation_config(text: Any) -> str:
    config = _parsed(text, "generation_config") if isinstance(text, str) else text
    if not isinstance(config, dict):
        raise ValueError("`generation_config` must be an object as JSON text.")
    # The version that saved the settings is of no matter.
    config = {name: value for name, value in config.items() if value is not None and name != "transformers_version"}
    known = {*_GENERATION_NUMBERS, *_GENERATION_FLAGS, *_GENERATION_IDS}
    if unknown := sorted(set(config) - known):
        raise ValueError(
            f"`generation_config` has settings that clients must not set: {_shortened(', '.join(unknown))}. These can be "
            f"set: {', '.join(sorted(known))}."
        )
    _check_numbers(config, _GENERATION_NUMBERS, "generation_config.")
    _check_flags(config, _GENERATION_FLAGS, "generation_config.")
    for name in _GENERATION_IDS:
        ids = config.get(name, [])
        for token in ids if isinstance(ids, list) else [ids]:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token <= _LARGEST:
                raise ValueError(f"`generation_config.{name}` must be a token id, or a list of them.")
    if _greedy(config):
        config = {**config, "do_sample": False, "temperature": 1.0}
    return json.dumps(config)


def _check_template_arguments(arguments: Any, template: str | None) -> None:
    """Only plain values for variables of the chat template: others would reach the processor's own arguments."""
    if arguments is None:
        return
    if not isinstance(arguments, dict):
        raise ValueError("`chat_template_kwargs` must be an object.")
    for name, value in arguments.items():
        used = name.isidentifier() and re.search(rf"\b{name}\b", template or "")
        if not used or name in _TEMPLATE_ARGUMENTS or name.endswith("_kwargs"):
            raise ValueError(f"`chat_template_kwargs`: the chat template has no variable {_shortened(name)}.")
        if not isinstance(value, str | int | float | bool | None):
            raise ValueError(f"`chat_template_kwargs.{name}` must be a text, a number, true or false.")


def _check_size(body: dict[str, Any], max_text: int) -> bool:
    """
    Text that is no Unicode, or too much of anything, fails late or takes long in template and tokenizer. Returns whether
    the request is longer than most.
    """
    characters = number = 0
    for number, text in enumerate(_values(body)):
        if number > MAX_VALUES:
            raise ValueError(f"The request has more than {MAX_VALUES:,} messages, parts and other values.")
        if isinstance(text, str):
            characters += len(text)
            if characters > max_text:
                raise ValueError(f"The texts of the request have more than {max_text:,} characters together.")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"A text of the request is not valid Unicode: it has half of a surrogate pair at character "
                    f"{error.start}."
                ) from None
        elif isinstance(text, float) and not math.isfinite(text):
            raise ValueError(f"The request has the number {text}, which JSON does not have.")
    return characters > LONG_TEXT or number > LONG_VALUES


def _values(body: Any) -> Iterator[Any]:
    """All values and names of nested JSON, without recursion."""
    waiting = [(body, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"The request is nested more than {MAX_DEPTH} levels deep.")
        yield value
        if isinstance(value, dict):
            waiting.extend((each, depth + 1) for pair in value.items() for each in pair)
        elif isinstance(value, list):
            waiting.extend((each, depth + 1) for each in value)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"`{where}` is not valid JSON.") from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "missing"}
    return names.get(type(value), "a number")


def _shortened(value: Any) -> str:
    text = repr(value) if len(repr(value)) <= 100 else f"{repr(value)[:100]}..."
    return text


def model_check(names: list[str], model: str | None) -> Callable[[Any], str]:
    """
    How the name of a model that a client asks for is checked.

    Args:
        names: names of the model that is served alone; empty if the server loads what clients name.
        model: the name that transformers' server has for that model.

    Returns:
        A function from the client's name of a model to the server's name of it.

    Raises:
        ValueError: from the returned function, for a model that clients must not load.
    """

    def check(name: Any) -> str:
        if model is not None:
            if name is not None and name not in (*names, model):
                raise ValueError(f"This server serves {names[0]!r} alone, not {_shortened(name)}.")
            return model
        if not isinstance(name, str) or ".." in name or not _HUB_MODEL.fullmatch(name):
            raise ValueError(f"`model` is {_shortened(name)}; it must be a Hub id, such as user/name.")
        if os.path.exists(name):
            raise ValueError(f"`model` is {name!r}, a path of the server. Name it when the server is started.")
        return name

    return check
