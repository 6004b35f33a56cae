"""MM1 as a model that answers requests: it encodes each picture once, and may split only some images of a prompt."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.evaluation.models.encoding import TOGETHER, TileEncoder
from mm1_hf.evaluation.models.features import FeatureCache, picture_key
from mm1_hf.evaluation.models.local import LocalModel, Ready
from mm1_hf.evaluation.models.prompts import Prompt
from mm1_hf.evaluation.requests import Answer
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.model.tiling import ImageLayout, images_to_split, placeholder_text
from mm1_hf.model.vision import encode


# A picture's content, and whether it is split.
Key = tuple[bytes, bool]
# How a picture is split, and its tiles, which are not encoded yet.
Tiles = tuple[ImageLayout, torch.Tensor]
# The tiles of a whole batch of prompts may not fit in memory: one of 672 pixels takes 5 MB.
_WAITING_TILES = 32


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
        self._encoder = TileEncoder(model)

    def _require_mixed(self) -> None:
        if self.processor.image_processor.tiling_config().splitting == "none":
            raise ValueError(
                "Some images are to be split, but the image processor splits none (image_splitting is none). Evaluate this "
                "model without mixed resolution (--split-last), or set image_splitting in its preprocessor_config.json."
            )

    def _loaded(self, prompts: Sequence[Prompt], following: Iterable[Prompt]) -> list[Ready | Answer]:
        pictures: dict[Key, Picture] = {}
        waiting: dict[Key, Tiles] = {}
        keys: list[list[Key] | Answer] = []
        for prompt in prompts:
            try:
                keys.append(self._keys(prompt, pictures, waiting))
            except Unusable as error:
                keys.append(Answer(error=str(error)))
        self._fill(pictures, waiting, following)
        self._encode_waiting(pictures, waiting)
        return [
            own if isinstance(own, Answer) else Ready(prompt, [pictures[key] for key in own])
            for prompt, own in zip(prompts, keys, strict=True)
        ]

    def _keys(self, prompt: Prompt, pictures: dict[Key, Picture], waiting: dict[Key, Tiles]) -> list[Key]:
        """The names of a prompt's pictures, each of which is then among the encoded ones or waits with its tiles."""
        keys = []
        for part, split in self._images(prompt):
            key = (picture_key(part), split)
            keys.append(key)
            if key in pictures or key in waiting:
                continue
            if (kept := self.cache.get(key)) is not None:
                pictures[key] = kept
                continue
            waiting[key] = self._tiles(part, split)
            if _count(waiting) >= _WAITING_TILES:
                self._encode_waiting(pictures, waiting)
        return keys

    def _fill(self, pictures: Mapping[Key, Picture], waiting: dict[Key, Tiles], following: Iterable[Prompt]) -> None:
        """Lets pictures of the following prompts wait too, which would otherwise be encoded later, until the number of
        tiles is one that the encoder takes at once."""
        others = ((part, split) for prompt in following for part, split in self._images(prompt))
        while waiting and _count(waiting) % TOGETHER and _count(waiting) < _WAITING_TILES:
            part, split = next(others, (None, False))
            if part is None:
                return
            # What is wrong with a picture is the answer to its own prompt.
            with suppress(Unusable):
                key = (picture_key(part), split)
                if key not in pictures and key not in waiting and key not in self.cache:
                    waiting[key] = self._tiles(part, split)

    def _images(self, prompt: Prompt) -> list[tuple[ImagePart, bool]]:
        """The images of a prompt, and whether each is split."""
        number = len(prompt.images)
        config = self.processor.image_processor.tiling_config()
        if prompt.whole is None:
            splits = images_to_split(number, config)
        else:
            splits = [index not in prompt.whole for index in range(number)]
        return list(zip(prompt.images, splits, strict=True))

    def _tiles(self, part: ImagePart, split: bool) -> Tiles:
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
        return layout, tiles

    def _encode_waiting(self, pictures: dict[Key, Picture], waiting: dict[Key, Tiles]) -> None:
        if not waiting:
            return
        lengths = [len(tiles) for _, tiles in waiting.values()]
        features = self._encoder.encode(torch.cat([tiles for _, tiles in waiting.values()])).split(lengths)
        for (key, (layout, _)), own in zip(waiting.items(), features, strict=True):
            # A view would keep the image tokens of all others in memory.
            pictures[key] = Picture(layout, own.clone())
            self.cache.put(key, pictures[key], own.numel() * own.element_size())
        waiting.clear()

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


def _count(waiting: Mapping[Key, Tiles]) -> int:
    return sum(len(tiles) for _, tiles in waiting.values())
