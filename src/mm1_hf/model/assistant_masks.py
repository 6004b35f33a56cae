"""
Which tokens of a chat the assistant writes, where transformers does not find them: up to 5.17 it looks for them at the
positions that they have before the placeholder tokens of images are written out, and gives other tokens without an error.

Can go when 5.18 is the oldest release of the range.
"""

import inspect
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from transformers.processing_utils import ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template


def apply_with_masks(apply: Callable[..., Any], processor: Any, *args: Any, **kwargs: Any) -> Any:
    """
    Calls `apply_chat_template` with `return_assistant_tokens_mask=True` and `tokenize=True`.

    Args:
        apply: transformers' method, bound to the processor.
        processor: an [`MM1Processor`].
        args, kwargs: arguments of the method.

    Returns:
        As the method, with `assistant_masks` `(batch, sequence)`, 1 where the assistant writes.
    """
    given = inspect.signature(ProcessorMixin.apply_chat_template).bind(processor, *args, **kwargs)
    settings = dict(given.arguments)
    settings.pop("self")
    settings |= settings.pop("kwargs", {}) | {"return_assistant_tokens_mask": False}
    asked = {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
    settings["processor_kwargs"] = dict(settings.get("processor_kwargs") or {}) | asked
    conversation = settings.pop("conversation")
    out = apply(conversation, **settings)
    if not settings.get("return_dict"):
        return out
    is_batch = isinstance(conversation[0], list | tuple)
    template_settings = {
        name: value
        for name, value in settings.items()
        if name not in ("chat_template", "tokenize", "return_tensors", "return_dict", "processor_kwargs")
    }
    rendered: Any = render_jinja_template(
        conversations=conversation if is_batch else [conversation],
        chat_template=_template(processor.chat_template, settings.get("chat_template")),
        **cast(
            Any, {**processor.tokenizer.special_tokens_map, **template_settings, "return_assistant_tokens_mask": True}
        ),
    )
    spans = rendered[1]
    offsets: Any = out.pop("offset_mapping")
    offsets = offsets.tolist() if hasattr(offsets, "tolist") else offsets
    replacements = out.pop("text_replacement_offsets", None) or [[]] * len(spans)
    out["assistant_masks"] = [assistant_mask(*each) for each in zip(spans, offsets, replacements, strict=True)]
    return out.convert_to_tensors(tensor_type=settings.get("return_tensors"))


def _template(own: str | Mapping[str, str] | None, given: str | None) -> Any:
    if isinstance(own, Mapping):
        return own.get(given or "default", given)
    return own if given is None else given


def assistant_mask(
    spans: Sequence[Sequence[int]],
    offsets: Sequence[Sequence[int]],
    replacements: Sequence[Mapping[str, Sequence[int]]],
) -> list[int]:
    """
    Marks the tokens that overlap what the assistant writes.

    Args:
        spans: characters that the assistant writes, `(start, stop)` each, in the rendered chat.
        offsets: characters of each token, `(start, stop)` each, after images were written out; empty for padding.
        replacements: what was written out: `span` before and `new_span` after, in order.

    Returns:
        1 for each token that the assistant writes, 0 for the others.
    """
    ends = [replacement["span"][1] for replacement in replacements]
    gained = [0, *(replacement["new_span"][1] - replacement["span"][1] for replacement in replacements)]
    moved = [[character + gained[bisect_right(ends, character)] for character in span] for span in spans]
    return [int(any(start < last and stop > first for first, last in moved)) for start, stop in offsets]
