"""The processor of MM1, which turns text and images into model inputs, and chats into text."""

import inspect
from collections.abc import Mapping
from typing import Any, cast

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import get_json_schema

from .assistant_masks import apply_with_masks
from .chat_media import require_placed
from .chat_text import keep_as_text, keep_values, plain_texts
from .image_processing_mm1 import MM1ImageProcessorKwargs
from .tiling import placeholder_text
from .versions import ALIGNS_ASSISTANT_MASKS


# ChatML, with tools, their calls and reasoning as Qwen's models write them. The generation marks enclose the assistant's
# messages and their end tokens: only these are trained on.
CHAT_TEMPLATE = """\
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}
                {{- '<image>' -}}
            {%- elif part.type == 'text' -%}
                {{- part.text -}}
            {%- else -%}
                {{- raise_exception("MM1 reads content parts of type 'text' and 'image', not '" ~ part.type ~ "'.") -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro call(tool_call) -%}
    {%- set function = tool_call.function or tool_call -%}
    {{- '<tool_call>\\n{"name": ' ~ function.name | tojson ~ ', "arguments": ' -}}
    {{- function.arguments if function.arguments is string else (function.arguments or {}) | tojson -}}
    {{- '}\\n</tool_call>' -}}
{%- endmacro -%}
{%- macro write(message) -%}
    {%- set reasoning = message.reasoning_content or message.reasoning or message.thinking -%}
    {%- if reasoning -%}
        {{- '<think>\\n' ~ reasoning ~ '\\n</think>\\n\\n' -}}
    {%- endif -%}
    {%- set content = render(message.content) if message.content else '' -%}
    {{- content -}}
    {%- for tool_call in message.tool_calls or [] -%}
        {{- '\\n' if content or not loop.first -}}
        {{- call(tool_call) -}}
    {%- endfor -%}
{%- endmacro -%}
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- if messages[0].role == 'system' -%}
        {{- render(messages[0].content) ~ '\\n\\n' -}}
    {%- endif -%}
    {{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' -}}
    {{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}
    {%- for tool in tools -%}
        {{- '\\n' ~ tool | tojson -}}
    {%- endfor -%}
    {{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' -}}
    {{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": ' -}}
    {{- '<args-json-object>}\\n</tool_call><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{- '<|im_start|>assistant\\n' -}}
        {%- generation -%}{{- write(message) ~ '<|im_end|>' -}}{%- endgeneration -%}
        {{- '\\n' -}}
    {%- elif message.role == 'tool' -%}
        {{- '' if loop.previtem and loop.previtem.role == 'tool' else '<|im_start|>user' -}}
        {{- '\\n<tool_response>\\n' ~ render(message.content) ~ '\\n</tool_response>' -}}
        {{- '' if loop.nextitem and loop.nextitem.role == 'tool' else '<|im_end|>\\n' -}}
    {%- elif not (tools and loop.first and message.role == 'system') -%}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ render(message.content) ~ '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_CHAT_ARGUMENTS = frozenset(inspect.signature(ProcessorMixin.apply_chat_template).parameters)


class MM1ProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of a call of [`MM1Processor`]: those of the tokenizer and those of the image processor."""

    images_kwargs: MM1ImageProcessorKwargs  # ty: ignore[invalid-typed-dict-field] -- narrowed, as transformers' own do
    # transformers before 5.20 reads it.
    _defaults = {}  # ty: ignore[invalid-typed-dict-statement] -- as transformers' own do


class MM1Processor(ProcessorMixin):
    """
    Turns text and images into `input_ids`, `attention_mask` and `pixel_values`; other outputs have to be asked for.

    In the text, each `image_token` marks the place of one image. It is replaced by the image tokens of all tiles of
    the image, together with the image processor's position indicators (MM1.5, dynamic image splitting). `pixel_values`
    `(tiles, 3, tile, tile)` holds the tiles of the whole batch, in the order of the images in the text.

    Args:
        image_processor ([`MM1ImageProcessor`]): splits images into tiles, and holds all settings of image splitting.
        tokenizer: any tokenizer in which `image_token` is one special token.
        num_image_tokens (`int`, defaults to 144): image tokens per tile; the model's `connector_config.num_tokens`.
        image_token (`str`, defaults to `"<image>"`): the token that marks the place of an image in the text.
        chat_template (`str`, *optional*): a Jinja template; unset, ChatML with image parts.

    Raises:
        ValueError: `image_token` is not one token of the tokenizer.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import GPT2Tokenizer
    >>> from mm1_hf import MM1ImageProcessor, MM1Processor

    >>> tokenizer = GPT2Tokenizer().train_new_from_iterator(["A cat."], vocab_size=300)
    >>> _ = tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    >>> image_processor = MM1ImageProcessor(size={"height": 56, "width": 56}, image_splitting="none")
    >>> processor = MM1Processor(image_processor, tokenizer, num_image_tokens=4)
    >>> inputs = processor(images=Image.new("RGB", (80, 60)), text="<image>A cat.", return_tensors="pt")
    >>> inputs["pixel_values"].shape, int((inputs["input_ids"] == processor.image_token_id).sum())
    (torch.Size([1, 3, 56, 56]), 4)

    ```
    """

    valid_processor_kwargs = MM1ProcessorKwargs

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int = 144,
        image_token: str = "<image>",
        chat_template: str | None = None,
    ):
        # Saving writes this attribute; set here, it makes a processor equal to its reloaded copy.
        self.auto_map = {"AutoProcessor": "processing_mm1.MM1Processor"}
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        # Generation needs padding on the left, but a tokenizer that was saved after training pads on the right.
        tokenizer.padding_side = "left"
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id is None or self.image_token_id == tokenizer.unk_token_id:
            raise ValueError(
                f"The tokenizer does not know {image_token!r}. Add it with tokenizer.add_special_tokens("
                f"{{'additional_special_tokens': [{image_token!r}]}}), or let mm1_hf.assemble do it."
            )
        if chat_template is None:
            chat_template = CHAT_TEMPLATE.replace("<image>", image_token)
            # Where the tokenizer begins every text with its token for beginnings, a chat begins with it too.
            if tokenizer.bos_token is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
                chat_template = "{{- bos_token -}}\n" + chat_template
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: ImageInput | list[list[Any]] | None = None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[MM1ProcessorKwargs],
    ) -> BatchFeature:
        """
        Prepares text and images for the model.

        Args:
            images:
                One image, a list of images, or one list of images for each text. A flat list is distributed over the
                texts in order: each text gets one image for each `image_token` in it. Without text, every image of a
                flat list is a sample of one image.
            text:
                One text or a list of texts. Special tokens that are spelt in a text, such as `image_token`, are read
                as these tokens. Texts that all begin with the tokenizer's token for beginnings are given no second
                one. Text that users wrote should go through [`~MM1Processor.apply_chat_template`], which
                reads special tokens spelt there as plain text.
            kwargs: arguments of the tokenizer and of the image processor.

        Returns:
            `input_ids` and `attention_mask` `(batch, sequence)`, and `pixel_values` `(tiles, 3, tile, tile)` if there
            are images.

        Raises:
            ValueError: a sample does not have one image for each `image_token`, or truncation would cut it inside the
                tokens of an image.
        """
        begin = self.tokenizer.bos_token
        given = [text] if isinstance(text, str) else text
        settings = {**kwargs, **kwargs.get("text_kwargs", {})}
        if (
            begin
            and "add_special_tokens" not in settings
            and isinstance(given, list)
            and given
            and all(isinstance(sample, str) and sample.startswith(begin) for sample in given)
        ):
            # A chat that was rendered as text begins with this token already.
            kwargs |= cast(Any, {"add_special_tokens": False})
        # Programs for models of all kinds pass an empty list where there are none.
        given: dict[str, Any] = dict(kwargs)
        for name in ("videos", "audio"):
            if isinstance(given.get(name), list) and not given[name]:
                del given[name]
        return super().__call__(images=images, text=text, **given)

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """
        Distributes the images into one list for each text.

        Raises:
            ValueError: there is not one image for each `image_token`.
        """
        images, text, videos, audio = super().prepare_inputs_layout(images, text, videos, audio, **kwargs)
        if images is None or not isinstance(text, list) or not all(isinstance(sample, str) for sample in text):
            return images, text, videos, audio
        places = [sample.count(self.image_token) for sample in text]
        if not isinstance(images, list | tuple):
            images = [images]
        if images and all(isinstance(sample, list | tuple) for sample in images):
            if len(images) == 1 < len(text):
                images = images[0]
            else:
                _require_equal([len(sample) for sample in images], places, self.image_token)
                return [list(sample) for sample in images], text, videos, audio
        if len(images) != sum(places):
            raise ValueError(
                f"The texts contain {self.image_token} {sum(places)} times (per sample: {places}), but {len(images)} "
                f"images were given. Pass one image for each {self.image_token}."
            )
        ends = [sum(places[: sample + 1]) for sample in range(len(places))]
        nested = [list(images[end - count : end]) for end, count in zip(ends, places, strict=True)]
        return nested, text, videos, audio

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """
        Checks the arguments of a call.

        Raises:
            ValueError: neither text nor images are given, `text` is neither a string nor a list of strings, a text
                contains `image_token` although no images are given, or there are videos or sounds.
        """
        for name, given in (("videos", videos), ("audio", audio)):
            if given is not None:
                raise ValueError(
                    f"MM1 reads text and images, but was given {name}. Leave it out, or pass frames as images."
                )
        if images is None and text is None:
            raise ValueError("Neither text nor images were given. Pass text, images or both.")
        if text is None:
            return
        if not isinstance(text, list) or not all(isinstance(sample, str) for sample in text):
            raise ValueError(f"text must be a string or a list of strings; got {type(text).__name__}: {text!r:.100}.")
        if images is None:
            _require_equal([0] * len(text), [sample.count(self.image_token) for sample in text], self.image_token)

    def _process_images(self, images, **kwargs):
        features = self.image_processor(images, **kwargs)
        config = self.image_processor.tiling_config(**kwargs)
        layouts = self.image_processor.get_layouts(self.image_processor.image_sizes(images), **kwargs)
        replacements = [
            placeholder_text(layout, index, config, self.image_token, self.num_image_tokens)
            for sample in layouts
            for index, layout in enumerate(sample)
        ]
        return features, replacements

    def _check_special_mm_tokens(self, text, text_inputs, modalities):
        """
        Checks that truncation has not removed image tokens.

        Raises:
            ValueError: truncation cut a sample inside the tokens of an image.
        """
        for index, (sample, ids) in enumerate(zip(text, text_inputs["input_ids"], strict=True)):
            ids = ids.tolist() if hasattr(ids, "tolist") else ids
            needed, kept = sample.count(self.image_token), ids.count(self.image_token_id)
            if needed != kept:
                length = len(self.tokenizer(sample)["input_ids"])
                raise ValueError(
                    f"Sample {index} has {length} tokens, {needed} of them for images, and truncation to {len(ids)} "
                    f"tokens would cut off {needed - kept} image tokens. Images must not be cut: set "
                    f"max_length={length} or more, drop the sample, or split its images into fewer tiles."
                )

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        """
        Returns the numbers of image tokens and tiles of the images of one sample, whose sizes are `(height, width)` in
        pixels. Serving engines call it.
        """
        if image_sizes is None:
            return MultiModalData()
        # Settings of a call come flat or grouped by modality.
        images_kwargs = {**kwargs, **kwargs.get("images_kwargs", {})}
        (layouts,) = self.image_processor.get_layouts([image_sizes], **images_kwargs)
        tiles = [layout.num_tiles for layout in layouts]
        return MultiModalData(
            num_image_tokens=[count * self.num_image_tokens for count in tiles], num_image_patches=tiles
        )

    def apply_chat_template(
        self, conversation: Any, chat_template: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """
        Renders a chat as text, or with `tokenize=True` as model inputs. See
        [`~transformers.ProcessorMixin.apply_chat_template`] for the arguments.

        The text of a message, and of tools and other values for the template, can never become an image or a control
        token: where it spells one, a zero-width space is inserted into the spelling, with and without `tokenize`. All
        other text stays as it is written. [`~mm1_hf.model.chat_text`] says which tokens these are. Images are separate
        content parts, `{"type": "image", ...}`.

        With `tokenize=True` the tokenizer adds no special tokens to those of the template, as
        `tokenizer.apply_chat_template` does not either.

        Raises:
            ValueError: an image, a video, a sound or a tool would not be in the prompt.
        """
        template = self._chosen_template(chat_template)
        require_placed(conversation, template, kwargs.get("tools", args[0] if args else None))
        texts, own_texts = plain_texts(self.tokenizer, template, self.image_token)
        conversation = keep_as_text(conversation, texts, own_texts)
        # A named special token is what the template is to write in place of the tokenizer's.
        kept = {"processor_kwargs", *self.tokenizer.special_tokens_map}
        if kwargs.get("tools"):
            kwargs["tools"] = [get_json_schema(tool) if callable(tool) else tool for tool in kwargs["tools"]]
        kwargs = {name: value if name in kept else keep_values(value, texts) for name, value in kwargs.items()}
        args = tuple(keep_values(value, texts) for value in args)
        if kwargs.get("tokenize"):
            _write_no_special_tokens(kwargs, template)
        if not ALIGNS_ASSISTANT_MASKS and kwargs.get("return_assistant_tokens_mask") and kwargs.get("tokenize"):
            apply = super().apply_chat_template
            return apply_with_masks(apply, self, conversation, chat_template, *args, **kwargs)
        return super().apply_chat_template(conversation, chat_template, *args, **kwargs)

    def _chosen_template(self, chat_template: str | None) -> str | None:
        """The template that a call renders: a text, or the name of one of the processor's templates."""
        if isinstance(self.chat_template, Mapping):
            return self.chat_template.get(chat_template or "default", chat_template)
        return self.chat_template if chat_template is None else chat_template

    @property
    def default_template(self) -> str | None:
        """The chat template that is rendered unless a call gives another."""
        return self._chosen_template(None)

    def get_vocab(self) -> dict[str, int]:
        """The tokenizer's vocabulary. transformers asks for it where a processor is given as a tokenizer."""
        return self.tokenizer.get_vocab()


def _write_no_special_tokens(kwargs: dict[str, Any], chat_template: str | None) -> None:
    """Lets the template alone write special tokens, as tokenizers do with chats. transformers' processors let the
    tokenizer write its own too, unless the chat begins with the token for beginnings."""
    processor_kwargs = dict(kwargs.get("processor_kwargs") or {})
    if "add_special_tokens" not in processor_kwargs.get("text_kwargs", {}):
        processor_kwargs.setdefault("add_special_tokens", kwargs.get("add_special_tokens", False))
    kwargs["processor_kwargs"] = processor_kwargs
    # Arguments of the processor that are given outside of `processor_kwargs` replace these up to some release.
    loose = any(name not in _CHAT_ARGUMENTS and name not in (chat_template or "") for name in kwargs)
    if loose and "add_special_tokens" in processor_kwargs:
        kwargs["add_special_tokens"] = processor_kwargs["add_special_tokens"]


def _require_equal(images: list[int], places: list[int], image_token: str) -> None:
    if len(images) != len(places):
        raise ValueError(
            f"There are {len(places)} texts, but {len(images)} lists of images. Pass one list of images for each text "
            "(an empty list for a text without images), or one flat list of images."
        )
    for index, (given, needed) in enumerate(zip(images, places, strict=True)):
        if given != needed:
            raise ValueError(
                f"Sample {index} contains {image_token} {needed} times, but {given} images were given for it. Pass "
                f"one image for each {image_token}; in a chat, pass each image as a separate content part."
            )


__all__ = ["MM1Processor"]
