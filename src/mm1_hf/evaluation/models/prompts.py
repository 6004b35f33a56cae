"""Writes the prompt of a request as the text that a processor reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.requests import Part, Request, Turn
from mm1_hf.model.chat_text import keep_as_text, plain_texts
from mm1_hf.model.processing_mm1 import MM1Processor


# Texts around an image, to see what a chat template writes between them.
_BEFORE, _AFTER = "Zqa", "Zqz"


@dataclass(frozen=True)
class Prompt:
    """
    A prompt as text.

    Args:
        text: the text, with a mark at the place of each image.
        images: the images in reading order.
        whole: indices of the images that are not split, while all others are; None if the processor's settings decide.
        special: whether the tokenizer adds its special tokens, such as the one for beginnings, to those in the text.
    """

    text: str
    images: tuple[ImagePart, ...]
    whole: frozenset[int] | None
    special: bool


class PromptWriter:
    """
    Writes prompts for one processor. Text of a request never becomes an image or a control token: where it spells one,
    the spelling is broken up by a zero-width space.

    Args:
        processor: a processor of transformers for text and images.
    """

    def __init__(self, processor: Any):
        self._processor = processor
        tokenizer = processor.tokenizer
        template = processor.chat_template
        # Some processors have several templates by name.
        self.template: str | None = template.get("default") if isinstance(template, Mapping) else template
        self._bos: str | None = tokenizer.bos_token
        image_token = getattr(processor, "image_token", None) or getattr(tokenizer, "image_token", None)
        self.image_mark = self._mark_of_template() or image_token
        # Of a prompt that a tokenizer ends with its token for ends, a model continues nothing.
        self._beginning, self._ended = _special_tokens(tokenizer)
        self._texts, self._own_texts = plain_texts(tokenizer, self.template, image_token or self.image_mark or "")

    def write(self, request: Request) -> Prompt:
        """
        Writes the prompt of a request. Parts of text are joined without a gap.

        Args:
            request: the request.

        Raises:
            ValueError: the prompt is a chat, but the processor has no chat template; or it has an image, but the
                processor has no token for images.
        """
        if request.images and not self.image_mark:
            raise ValueError(
                f"The prompt has an image, but a {type(self._processor).__name__} has no image_token. Evaluate a model "
                "for images and text, or a task without images."
            )
        if request.prompt and isinstance(request.prompt[0], Turn):
            text = self._chat(request.prompt)
            # As transformers' processors do: their tokenizer adds its special tokens, unless the template has written the
            # first one. MM1's never does.
            begun = self._bos is not None and text.startswith(self._bos)
            special = not begun and not isinstance(self._processor, MM1Processor)
        else:
            text, special = self._completion(request.prompt), True
        if special and self._ended:
            text, special = self._beginning + text, False
        return Prompt(text, request.images, request.whole, special)

    def _completion(self, parts: Sequence[Any]) -> str:
        plain = [self._texts(part) if isinstance(part, str) else None for part in parts]
        texts = self._texts.apart(plain)
        return "".join(self.image_mark or "" if text is None else text for text in texts)

    def _chat(self, turns: Sequence[Any]) -> str:
        if self.template is None:
            raise ValueError(
                "The prompts are chats, but the model's processor has no chat template, as models that are not tuned on "
                "chats have none. Ask for completion prompts (style completion), or save the processor with a chat "
                "template."
            )
        messages = [{"role": turn.role, "content": [_content(part) for part in turn.parts]} for turn in turns]
        return self._render(keep_as_text(messages, self._texts, self._own_texts), add_generation_prompt=True)

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        return self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def _mark_of_template(self) -> str:
        """What the chat template writes for an image between two texts: some families put tokens of their own around
        the image token. Empty if there is no template, or if it writes all images before the texts."""
        if self.template is None:
            return ""
        content = [{"type": "text", "text": _BEFORE}, {"type": "image"}, {"type": "text", "text": _AFTER}]
        try:
            rendered = self._render([{"role": "user", "content": content}], add_generation_prompt=False)
        # A template may refuse what it likes in the way it likes.
        except Exception:
            return ""
        return rendered.partition(_BEFORE)[2].partition(_AFTER)[0].strip()


def _special_tokens(tokenizer: Any) -> tuple[str, bool]:
    """What the tokenizer writes before a text, and whether it writes something behind it."""
    plain = tokenizer(_BEFORE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(_BEFORE)["input_ids"]
    start = next((place for place in range(len(whole)) if whole[place : place + len(plain)] == plain), 0)
    return tokenizer.decode(whole[:start]), len(whole) > start + len(plain)


def _content(part: Part) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
