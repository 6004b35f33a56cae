"""MM1 as a model that answers requests: it encodes each picture once, and may split only some images of a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.evaluation.models.features import FeatureCache, picture_key
from mm1_hf.evaluation.models.local import LocalModel, Ready
from mm1_hf.evaluation.models.prompts import Prompt
from mm1_hf.evaluation.requests import Answer
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.model.tiling import ImageLayout, images_to_split, placeholder_text
from mm1_hf.model.vision import encode


@dataclass(frozen=True)
class Picture:
    """
    A picture as the decoder reads it.

    Args:
        layout: how it is split.
        features: `(tiles, num_tokens, hidden)`, the connector's output.
    """

    layout: ImageLayout
    features: torch.Tensor


class MM1LocalModel(LocalModel):
    """
    An MM1 with its processor. The image tokens of each picture are computed once and kept, so that a demonstration's
    picture costs no encoding in later prompts.

    Which images are split is decided by the image processor's settings, or by a request (`Request.whole`; MM1,
    mixed-resolution in-context examples).

    Args:
        model: the model, on the device where it is to run.
        processor: its processor.
        cache_bytes: how much the image tokens that are kept may take on the model's device.
        settings: further arguments of [`LocalModel`].
    """

    def __init__(
        self,
        model: MM1ForConditionalGeneration,
        processor: MM1Processor,
        *,
        cache_bytes: int = 2**31,
        **settings: Any,
    ):
        super().__init__(model, processor, **settings)
        self.cache = FeatureCache(cache_bytes)

    def _require_mixed(self) -> None:
        if self.processor.image_processor.tiling_config().splitting == "none":
            raise ValueError(
                "Some images are to be split, but the image processor splits none (image_splitting is none). Evaluate this "
                "model without mixed resolution (--split-last), or set image_splitting in its preprocessor_config.json."
            )

    def _loaded(self, prompt: Prompt) -> Ready | Answer:
        try:
            pictures = [
                self._picture(part, split) for part, split in zip(prompt.images, self._splits(prompt), strict=True)
            ]
        except Unusable as error:
            return Answer(error=str(error))
        return Ready(prompt, pictures)

    def _picture(self, part: ImagePart, split: bool) -> Picture:
        key = (picture_key(part), split)
        picture = self.cache.get(key)
        if picture is None:
            picture = self._encoded(part, split)
            self.cache.put(key, picture, picture.features.numel() * picture.features.element_size())
        return picture

    def _splits(self, prompt: Prompt) -> list[bool]:
        number = len(prompt.images)
        config = self.processor.image_processor.tiling_config()
        if prompt.whole is None:
            return images_to_split(number, config)
        return [index not in prompt.whole for index in range(number)]

    def _encoded(self, part: ImagePart, split: bool) -> Picture:
        image = part.load()
        processor = self.processor.image_processor
        # Of one image by itself.
        settings: dict[str, Any] = (
            {"max_split_images": 1, "split_last": None} if split else {"image_splitting": "none"}
        )
        try:
            tiles = processor([[image]], return_tensors="pt", **settings)["pixel_values"]
            ((layout,),) = processor.get_layouts(processor.image_sizes([[image]]), **settings)
        except ValueError as error:
            raise Unusable("corrupt image", str(error)) from error
        # Each picture alone, because kernels round differently for other numbers of tiles: what is computed of a picture
        # must depend neither on what is in the cache nor on where a run was resumed.
        return Picture(layout, self.model.get_image_features(tiles.to(self.model.device)).pooler_output)

    def _encode(self, readies: Sequence[Ready], texts: Sequence[str], special: bool, side: str) -> dict[str, Any]:
        inputs = self.tokenizer(
            [self._with_placeholders(text, ready.images) for text, ready in zip(texts, readies, strict=True)],
            padding=True,
            padding_side=side,
            add_special_tokens=special,
            return_tensors="pt",
        ).to(self.model.device)
        encoded: dict[str, Any] = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        features = [picture.features for ready in readies for picture in ready.images]
        if features:
            encoded["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=torch.cat(features))}
        return encoded

    def _with_placeholders(self, text: str, pictures: Sequence[Picture]) -> str:
        processor = self.processor
        config = processor.image_processor.tiling_config()
        pieces = text.split(processor.image_token)
        written = [pieces[0]]
        for index, (picture, piece) in enumerate(zip(pictures, pieces[1:], strict=True)):
            written += [
                placeholder_text(picture.layout, index, config, processor.image_token, processor.num_image_tokens),
                piece,
            ]
        return "".join(written)

    def _embed(self, part: ImagePart) -> torch.Tensor:
        tiles = self.processor.image_processor([[part.load()]], image_splitting="none", return_tensors="pt")
        _, patches = encode(
            self.model.model.vision_tower,
            tiles["pixel_values"].to(self.model.device),
            final_norm=self.model.config.vision_feature_norm,
        )
        return patches[0]

    def _tiling(self) -> dict[str, Any]:
        return vars(self.processor.image_processor.tiling_config()) | {
            "num_image_tokens": self.processor.num_image_tokens
        }
