"""MM1's processor: text with images in it to the model's inputs, and chats to text."""

from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack

from .image_processing_mm1 import MM1ImageProcessorKwargs
from .tiling import placeholder_text


# ChatML. What the assistant writes, its end mark included, lies inside the generation marks: that is what is learned.
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

# Parts of a message that name a file or hold data, and are not text for the model.
_MEDIA_KEYS = frozenset({"image", "url", "path", "base64"})
_ZERO_WIDTH_SPACE = "\u200b"


class MM1ProcessorKwargs(ProcessingKwargs, total=False):
    """Call arguments of [`MM1Processor`]: the tokenizer's, and those of the image processor."""

    images_kwargs: MM1ImageProcessorKwargs  # ty: ignore[invalid-typed-dict-field] -- narrowed, as transformers' own do


class MM1Processor(ProcessorMixin):
    """
    Turns text and images into `input_ids`, `attention_mask` and `pixel_values`, and nothing else unless asked.

    In the text, `image_token` stands for an image; it becomes as many image tokens as the image's tiles yield, with the
    image processor's position indicators around them (MM1.5, dynamic image splitting). `pixel_values` are
    `(tiles, 3, tile, tile)` over the whole batch, in the order of their places in the text.

    Args:
        image_processor ([`MM1ImageProcessor`]): cuts images into tiles; holds all settings of the splitting.
        tokenizer: any tokenizer with `image_token` as one special token.
        num_image_tokens (`int`, defaults to 144): image tokens per tile, as `connector_config.num_tokens`.
        image_token (`str`, defaults to `"<image>"`): the image's place in the text.
        chat_template (`str`, *optional*): a Jinja template; unset, ChatML with image parts.

    Raises:
        ValueError: the tokenizer does not know `image_token` as one token.

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
        # As saving writes it, so that a processor equals its saved self.
        self.auto_map = {"AutoProcessor": "processing_mm1.MM1Processor"}
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        # For generation. A saved tokenizer comes back with the side that it padded on last, the right one after training.
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
        Args:
            images:
                One image, a list of images, or one list of images for each text. A flat list is dealt out to the texts in
                order, as many as each has places. Without text, every image of a flat list counts as a sample of its own.
            text:
                One text or a list. It is read as a template writes it: special tokens are what they spell, `image_token`
                among them. What users write goes through [`~MM1Processor.apply_chat_template`], which keeps it text.
            kwargs: arguments of the tokenizer and of the image processor.

        Returns:
            `input_ids` and `attention_mask` `(batch, sequence)`, and `pixel_values` `(tiles, 3, tile, tile)` if there
            are images.

        Raises:
            ValueError: a sample whose images and places differ in number, or that truncation would cut inside an image.
        """
        return super().__call__(images=images, text=text, **kwargs)

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """
        Sorts the images into one list for each text.

        Raises:
            ValueError: images and places for them differ in number.
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
                f"The texts have {sum(places)} places for an image ({self.image_token}; by sample: {places}), but "
                f"{len(images)} images came along. Give one image for every place."
            )
        ends = [sum(places[: sample + 1]) for sample in range(len(places))]
        nested = [list(images[end - count : end]) for end, count in zip(ends, places, strict=True)]
        return nested, text, videos, audio

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """
        Raises:
            ValueError: neither text nor images, text of another type, or places for images without any images.
        """
        if images is None and text is None:
            raise ValueError("Give the processor text, images or both.")
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
        Raises:
            ValueError: truncation cut a sample inside an image.
        """
        for index, (sample, ids) in enumerate(zip(text, text_inputs["input_ids"], strict=True)):
            ids = ids.tolist() if hasattr(ids, "tolist") else ids
            needed, kept = sample.count(self.image_token), ids.count(self.image_token_id)
            if needed != kept:
                length = len(self.tokenizer(sample)["input_ids"])
                raise ValueError(
                    f"Sample {index} has {length} tokens, {needed} of them for images, and truncation to {len(ids)} would "
                    f"cut {needed - kept} of those. Images are never cut: allow max_length={length} or more, leave out the "
                    "sample, or split its images into fewer tiles."
                )

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        """What serving engines ask: image tokens and tiles of single images of these `(height, width)` in pixels."""
        if image_sizes is None:
            return MultiModalData()
        images_kwargs = self._merge_kwargs(**kwargs)["images_kwargs"]
        tiles = [
            self.image_processor.get_number_of_image_patches(height, width, images_kwargs)
            for height, width in image_sizes
        ]
        return MultiModalData(
            num_image_tokens=[count * self.num_image_tokens for count in tiles], num_image_patches=tiles
        )

    def apply_chat_template(
        self, conversation: Any, chat_template: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """
        Renders a chat as text, and on `tokenize=True` as model inputs. See
        [`~transformers.ProcessorMixin.apply_chat_template`] for the arguments.

        What users and systems write can never become an image or a control token: where a message spells one, a
        zero-width space after its first character keeps it text, in every mode. Images are parts of their own,
        `{"type": "image", ...}`.
        """
        tokens = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        # Runs of blanks are no control tokens, and nothing can be put inside a single character.
        tokens = [token for token in tokens if token.strip() and len(token) > 1]
        # A longer token goes first: breaking a shorter one inside it would leave nothing to recognise.
        tokens.sort(key=len, reverse=True)
        return super().apply_chat_template(_keep_as_text(conversation, tokens), chat_template, *args, **kwargs)


def _keep_as_text(value: Any, tokens: list[str]) -> Any:
    """A conversation in which no text spells one of `tokens`."""
    if isinstance(value, str):
        for token in tokens:
            # Again, because a token that ends as it begins can share those characters with the next one.
            while token in value:
                value = value.replace(token, token[0] + _ZERO_WIDTH_SPACE + token[1:])
        return value
    if isinstance(value, dict):
        return {key: item if key in _MEDIA_KEYS else _keep_as_text(item, tokens) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return _keep_apart([_keep_as_text(item, tokens) for item in value], tokens)
    return value


def _keep_apart(items: list[Any], tokens: list[str]) -> list[Any]:
    """Content parts, of which no neighbours spell one of `tokens` together: templates write them without a gap."""
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
            f"There are {len(places)} texts, but {len(images)} lists of images. Give one list of images for each text "
            "(an empty one for text alone), or one flat list."
        )
    for index, (given, needed) in enumerate(zip(images, places, strict=True)):
        if given != needed:
            raise ValueError(
                f"Sample {index} has {needed} places for an image ({image_token}), but {given} images came with it. Give "
                "one image for every place; in a chat, make each image a part of its own."
            )


__all__ = ["MM1Processor"]
