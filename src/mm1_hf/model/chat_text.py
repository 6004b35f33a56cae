"""
Keeps the text of a chat from becoming images or control tokens, and leaves all other text as it is written.

A control token is a special token of the tokenizer, or a token that the chat template writes around the messages. Added
tokens that are neither, such as `<think>` or `<tool_call>`, are ordinary text of any message. The assistant's own messages
may also hold special tokens that mark no turn, such as those around its reasoning.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template


# Put into the spelling of a control token, the first one that the tokenizer's normalisation leaves there.
_SEPARATORS = ("\u200b", "\u2060", " ", "_")
# What a template is asked to render, to see what it writes around it.
_SAID = "Zq"
# Keys of a content part whose values are names or data of a file, rather than text for the model.
_MEDIA_KEYS = frozenset({"image", "url", "path", "base64", "image_url"})
_MEDIA_TYPES = frozenset({"image", "image_url"})
# The tokens that a tokenizer has a name of its own for; others are only special.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Templates make tokens of roles, as '<|' ~ role ~ '|>'.
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython", "model", "context"})


class PlainText:
    """
    Breaks up the spelling of control tokens in texts.

    Args:
        tokens: the control tokens, of two or more characters each.
        normalized: those of them that the tokenizer looks for after its normalisation.
        normalize: the tokenizer's normalisation, if it has one.

    Example:

    ```python
    >>> plain = PlainText(("<image>",))
    >>> plain("An <image>.").replace("\\u200b", "|")
    'An <|image>.'
    >>> plain("<think>")
    '<think>'

    ```
    """

    def __init__(
        self, tokens: Iterable[str], normalized: Iterable[str] = (), normalize: Callable[[str], str] | None = None
    ):
        self.tokens = frozenset(tokens)
        self._written = _Spellings(self.tokens)
        self._normalize = normalize
        changed = [normalize(token) for token in normalized] if normalize is not None else []
        self._normalized = _Spellings(token for token in changed if len(token) > 1)
        self.separator = next((mark for mark in _SEPARATORS if self._survives(mark)), _SEPARATORS[-1])

    def _survives(self, mark: str) -> bool:
        normalize = self._normalize
        return normalize is None or not any(
            self._normalized.found(normalize(token[0] + mark + token[1:])) for token in self._normalized.tokens
        )

    def __call__(self, text: str) -> str:
        """
        Args:
            text: text of a message.

        Returns:
            The text, in which no control token is spelt. It is the same string if none was.
        """
        text = self._written.broken(text, self.separator)
        if self._normalize is None or not self._normalized.found(normal := self._normalize(text)):
            return text
        # Characters that look different, such as wide ones, become a control token. There is no way back from the
        # places in the normalised text to those in the text, so the normalised text is what is kept.
        return self._written.broken(self._normalized.broken(normal, self.separator), self.separator)

    def apart(self, texts: Iterable[str | None]) -> list[str | None]:
        """
        Keeps texts that a template writes one behind the other from spelling a control token together.

        Args:
            texts: texts in which no control token is spelt; None stands for something between two texts.

        Returns:
            The texts, some of them with a separator at their beginning.
        """
        kept: list[str | None] = []
        written = normal = ""
        for text in texts:
            if text is None:
                written = normal = ""
            else:
                changed = text if self._normalize is None else self._normalize(text)
                if self._written.joined(written, text) or self._normalized.joined(normal, changed):
                    text, changed = self.separator + text, self.separator + changed
                # Only the end can still belong to a spelling, so that the work grows with the text and not its square.
                written = (written + text)[-self._written.longest :]
                normal = (normal + changed)[-self._normalized.longest :]
            kept.append(text)
        return kept


class _Spellings:
    def __init__(self, tokens: Iterable[str]):
        self.tokens = tuple(tokens)
        self.longest = max(map(len, self.tokens), default=1)
        # Finds also occurrences that overlap.
        self._pattern = re.compile(f"(?={'|'.join(map(re.escape, self.tokens))})") if self.tokens else None

    def found(self, text: str) -> bool:
        return any(token in text for token in self.tokens)

    def broken(self, text: str, separator: str) -> str:
        if self._pattern is None or not self.found(text):
            return text
        pieces, end = [], 0
        for match in self._pattern.finditer(text):
            pieces.append(text[end : match.start() + 1])
            end = match.start() + 1
        return separator.join([*pieces, text[end:]])

    def joined(self, before: str, after: str) -> bool:
        return bool(before) and self.found(before + after[: self.longest])


def plain_texts(tokenizer: Any, chat_template: str | None, image_token: str) -> tuple[PlainText, PlainText]:
    """
    Finds the control tokens of a tokenizer and a chat template.

    Args:
        tokenizer: the tokenizer.
        chat_template: the template that is rendered, if there is one.
        image_token: the token that marks the place of an image.

    Returns:
        What keeps the text of all messages plain, and what keeps that of the assistant's own messages plain.
    """
    added = list(tokenizer.added_tokens_decoder.values())
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens) | {image_token}
    names = {name: str(token) for name in _NAMED if (token := getattr(tokenizer, name, None)) is not None}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = getattr(backend, "normalizer", None)
    written = set()
    if chat_template:
        written = _written_by(chat_template, tuple(sorted(token.content for token in added)), tuple(names.items()))
    named = set(names.values())
    raw = frozenset(token.content for token in added if not token.normalized)
    make = _plain_text if normalizer is None else partial(PlainText, normalize=normalizer.normalize_str)
    all_tokens, own_tokens = special | written | named, written | named | {image_token}
    return make(_breakable(all_tokens), _breakable(all_tokens - raw)), make(
        _breakable(own_tokens), _breakable(own_tokens - raw)
    )


def _breakable(tokens: Iterable[str]) -> tuple[str, ...]:
    # Tokens of white space are not control tokens, and nothing can be put into a single character.
    return tuple(sorted(token for token in tokens if token.strip() and len(token) > 1))


def plain_documents(tokenizer: Any, chat_template: str | None, image_token: str) -> PlainText:
    """
    Finds the control tokens that a tokenizer reads in a text even with `split_special_tokens=True`, because they were not
    added as special tokens.

    Args:
        tokenizer, chat_template, image_token: as [`plain_texts`] takes them.

    Returns:
        What keeps texts plain that are tokenised with `split_special_tokens=True`.
    """
    texts, _ = plain_texts(tokenizer, chat_template, image_token)
    ordinary = {token.content for token in tokenizer.added_tokens_decoder.values() if not token.special}
    return PlainText(sorted(texts.tokens & ordinary))


@lru_cache(maxsize=16)
def _plain_text(tokens: tuple[str, ...], normalized: tuple[str, ...]) -> PlainText:
    return PlainText(tokens, normalized)


@lru_cache(maxsize=16)
def _written_by(chat_template: str, added: tuple[str, ...], names: tuple[tuple[str, str], ...]) -> frozenset[str]:
    """The added tokens that a template writes around the messages of a chat. Tokens that it writes only around tools, or
    as the beginning of an answer, are no marks of a turn."""
    said: Any
    for said in ([{"type": "text", "text": _SAID}], _SAID):
        chat = [{"role": role, "content": said} for role in ("user", "assistant", "user")]
        try:
            (rendered,), _ = render_jinja_template(conversations=[chat], chat_template=chat_template, **dict(names))  # ty: ignore[invalid-argument-type]
        # A template may refuse what it likes in the way it likes.
        except Exception:
            continue
        if _SAID in rendered:
            return frozenset(token for token in added if token in rendered)
    return frozenset(token for token in added if token in chat_template)


def keep_as_text(conversation: Any, texts: PlainText, own_texts: PlainText) -> Any:
    """
    Copies a conversation, or a list of conversations, with plain texts.

    Args:
        conversation: messages, or lists of messages, as transformers' processors take them.
        texts: what keeps the text of all messages plain.
        own_texts: what keeps the text of the assistant's messages plain.

    Returns:
        Dicts and lists in place of mappings and tuples. Images and other values are not copied.
    """
    conversation = _as_data(conversation)
    if isinstance(conversation, list | tuple):
        return [keep_as_text(item, texts, own_texts) for item in conversation]
    if not isinstance(conversation, Mapping):
        return conversation
    plain = own_texts if conversation.get("role") == "assistant" else texts
    message = {}
    for key, value in conversation.items():
        if key == "content" and isinstance(value, list | tuple):
            message[key] = _parts(value, plain)
        elif key == "role":
            message[key] = _role(keep_values(value, texts), texts)
        else:
            # A name stands in the head of a message, which is not the assistant's to write.
            message[keep_values(key, texts)] = keep_values(value, texts if key == "name" else plain)
    return message


def keep_values(value: Any, plain: PlainText) -> Any:
    """
    Copies texts, lists and mappings with plain texts, also those of a mapping's keys.

    Args:
        value: what a template is given, such as tools.
        plain: what keeps texts plain.
    """
    if isinstance(value, str):
        return plain(value)
    value = _as_data(value)
    if isinstance(value, Mapping):
        return {keep_values(key, plain): keep_values(item, plain) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [keep_values(item, plain) for item in value]
    return value


def _parts(parts: Iterable[Any], plain: PlainText) -> list[Any]:
    kept = []
    for part in parts:
        part = _as_data(part)
        if isinstance(part, Mapping) and part.get("type") in _MEDIA_TYPES:
            kept.append({key: item if key in _MEDIA_KEYS else keep_values(item, plain) for key, item in part.items()})
        else:
            kept.append(keep_values(part, plain))
    # Templates write the texts of neighbouring parts without a gap.
    texts = plain.apart(_text_of(part) for part in kept)
    return [
        part if text is None else text if isinstance(part, str) else {**part, "text": text}
        for part, text in zip(kept, texts, strict=True)
    ]


def _text_of(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) and part.get("type") not in _MEDIA_TYPES else None
    return text if isinstance(text, str) else None


def _role(role: Any, texts: PlainText) -> Any:
    """A role of which no template can make a control token."""
    if not isinstance(role, str) or role in _ROLES or not role:
        return role
    makes_token = any(token.strip("<>|[]{}()/_ ") == role.strip() for token in texts.tokens)
    return role[0] + texts.separator + role[1:] if makes_token else role


def _as_data(value: Any) -> Any:
    """The messages of a conversation object, and the fields of a message object, as transformers reads them."""
    if hasattr(value, "messages") and not isinstance(value, Mapping):
        return value.messages
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return value.model_dump() if hasattr(value, "model_dump") else value
