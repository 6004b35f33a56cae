"""The processor of MM1, which turns text and images into model inputs, and chats into text."""

from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack

from .assistant_masks import apply_with_masks
from .image_processing_mm1 import MM1ImageProcessorKwargs
from .tiling import placeholder_text
from .versions import ALIGNS_ASSISTANT_MASKS


# ChatML. The generation marks enclose the assistant's messages and their end tokens: only these are trained on.
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
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' -}}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}{{- render(message.content) ~ '<|im_end|>' -}}{%- endgeneration -%}
        {{- '\\n' -}}
    {%- else -%}
        {{- render(message.content) ~ '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# Keys of a content part whose values are names or data of a file, rather than text for the model.
_MEDIA_KEYS = frozenset({"image", "url", "path", "base64"})
_ZERO_WIDTH_SPACE = "\u200b"


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
                as these tokens. Text that users wrote should go through [`~MM1Processor.apply_chat_template`], which
                reads special tokens spelt there as plain text.
            kwargs: arguments of the tokenizer and of the image processor.

        Returns:
            `input_ids` and `attention_mask` `(batch, sequence)`, and `pixel_values` `(tiles, 3, tile, tile)` if there
            are images.

        Raises:
            ValueError: a sample does not have one image for each `image_token`, or truncation would cut it inside the
                tokens of an image.
        """
        return super().__call__(images=images, text=text, **kwargs)

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
            ValueError: neither text nor images are given, `text` is neither a string nor a list of strings, or a text
                contains `image_token` although no images are given.
        """
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

        The text of a message can never become an image or a control token: where it spells a special token, a
        zero-width space is inserted into the spelling, with and without `tokenize`. Images are separate content parts,
        `{"type": "image", ...}`.
        """
        tokens = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        # Tokens of white space are not control tokens, and nothing can be inserted into a single character.
        tokens = [token for token in tokens if token.strip() and len(token) > 1]
        # Longer tokens first: a longer token is not found once a shorter token inside it has been broken up.
        tokens.sort(key=len, reverse=True)
        conversation = _keep_as_text(conversation, tokens)
        if not ALIGNS_ASSISTANT_MASKS and kwargs.get("return_assistant_tokens_mask") and kwargs.get("tokenize"):
            apply = super().apply_chat_template
            return apply_with_masks(apply, self, conversation, chat_template, *args, **kwargs)
        return super().apply_chat_template(conversation, chat_template, *args, **kwargs)


def _keep_as_text(value: Any, tokens: list[str]) -> Any:
    """Returns a copy of a conversation in which no text spells one of `tokens`."""
    if isinstance(value, str):
        for token in tokens:
            # Repeated, because `replace` changes only the first of two overlapping occurrences of a token.
            while token in value:
                value = value.replace(token, token[0] + _ZERO_WIDTH_SPACE + token[1:])
        return value
    if isinstance(value, dict):
        return {key: item if key in _MEDIA_KEYS else _keep_as_text(item, tokens) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return _keep_apart([_keep_as_text(item, tokens) for item in value], tokens)
    return value


def _keep_apart(items: list[Any], tokens: list[str]) -> list[Any]:
    """
    Changes content parts so that neighbouring parts do not spell one of `tokens` together, because templates write the
    texts of neighbouring parts without a gap.
    """
    said = ""
    for item in items:
        if isinstance(item, dict) and item.get("type") == "text" and isinstance(item.get("text"), str):
            if any(token in said + item["text"] for token in tokens):
                item["text"] = _ZERO_WIDTH_SPACE + item["text"]
            said += item["text"]
        else:
            said = ""
    return items


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
