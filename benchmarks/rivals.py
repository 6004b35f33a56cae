"""
transformers' own models with an encoder and a decoder of the suite's sizes, and the inputs of a prompt with images for each.
A rival's image becomes as many tokens as its own model makes of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from benchmarks.scales import Scale, build, mm1_config, vision_config
from mm1_hf import MM1ForConditionalGeneration


@dataclass
class Contestant:
    """
    Args:
        model: the model, in evaluation.
        images: makes the model's image inputs of so many square images of `side` times the encoder's resolution.
        image_token: its placeholder token.
    """

    model: PreTrainedModel
    images: Callable[[int, int], dict[str, Any]]
    image_token: int

    def prompt(self, number: int, side: int, words: int) -> dict[str, Any]:
        """
        Inputs of one row: the images, each with as many placeholders as the model makes tokens of it, then words.

        Args:
            number: number of images.
            side: side of an image, in sides of the encoder's tiles.
            words: number of text tokens.
        """
        images = self.images(number, side)
        with torch.no_grad():
            tokens = count(self.model.get_image_features(**images)) // number
        device = self.model.device
        text = torch.randint(3, self.image_token - 4, (words,), generator=torch.Generator().manual_seed(0)).tolist()
        # A word before each image keeps neighbouring images apart, as the marks around them do that most models have.
        ids = torch.tensor([[*([3, *[self.image_token] * tokens] * number), *text]], device=device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}
        if isinstance(self.model, Qwen3VLForConditionalGeneration):
            inputs["mm_token_type_ids"] = (ids == self.image_token).int()
        return inputs


def count(features: Any) -> int:
    """Number of image tokens in the output of `get_image_features`."""
    given = getattr(features, "pooler_output", features)
    given = given if isinstance(given, list | tuple) else [given]
    return sum(each.shape[:-1].numel() for each in given)


def tiles_of(side: int) -> int:
    """Tiles of an image: one, or the grid and an overview."""
    return 1 if side == 1 else side**2 + 1


def pixels(scale: Scale, *shape: int) -> torch.Tensor:
    return torch.rand(shape, device=scale.device, dtype=scale.dtype) * 2 - 1


def flat_tiles(scale: Scale, rows: bool = False) -> Callable[[int, int], dict[str, Any]]:
    """Tiles one after the other, as most models take them; with `rows`, with a first dimension for the rows."""
    edge = scale.grid * scale.patch

    def make(number: int, side: int) -> dict[str, Any]:
        tiles = pixels(scale, number * tiles_of(side), 3, edge, edge)
        return {"pixel_values": tiles[None] if rows else tiles}

    return make


def any_resolution(scale: Scale, model: Any, several_alone: bool) -> Callable[[int, int], dict[str, Any]]:
    """Tiles of each image as LLaVA's later models take them, in the grids of their own configuration."""
    edge = scale.grid * scale.patch

    def make(number: int, side: int) -> dict[str, Any]:
        size = (side * edge, side * edge)
        whole = several_alone and number > 1
        tiles = 1 if whole else image_size_to_num_patches(size, model.config.image_grid_pinpoints, edge)
        inputs = {
            "pixel_values": pixels(scale, number, tiles, 3, edge, edge),
            "image_sizes": torch.tensor([size] * number, device=scale.device),
        }
        if several_alone:
            inputs["batch_num_images"] = torch.tensor([number], device=scale.device)
        return inputs

    return make


def grid_pinpoints(edge: int, largest: int) -> list[list[int]]:
    """Resolutions of all grids with up to `largest` tiles along each side."""
    sides = range(1, largest + 1)
    return [[rows * edge, columns * edge] for rows in sides for columns in sides]


def mm1(scale: Scale, tokens: int) -> Contestant:
    config = mm1_config(scale, scale.grid, tokens)
    return Contestant(
        build(MM1ForConditionalGeneration, config, scale).eval(), flat_tiles(scale), config.image_token_id
    )


def llava(scale: Scale) -> Contestant:
    token = scale.text["vocab_size"] - 1
    config = LlavaConfig(
        vision_config=vision_config(scale), text_config=LlamaConfig(**scale.text), image_token_index=token
    )
    return Contestant(build(LlavaForConditionalGeneration, config, scale).eval(), flat_tiles(scale), token)


def llava_next(scale: Scale) -> Contestant:
    token, edge = scale.text["vocab_size"] - 1, scale.grid * scale.patch
    # Its five default grids, at this encoder's resolution.
    grids = [[edge, 2 * edge], [2 * edge, edge], [2 * edge, 2 * edge], [3 * edge, edge], [edge, 3 * edge]]
    config = LlavaNextConfig(
        vision_config=vision_config(scale),
        text_config=LlamaConfig(**scale.text),
        image_token_index=token,
        image_grid_pinpoints=grids,
    )
    model = build(LlavaNextForConditionalGeneration, config, scale).eval()
    return Contestant(model, any_resolution(scale, model, several_alone=False), token)


def llava_onevision(scale: Scale) -> Contestant:
    token, edge = scale.text["vocab_size"] - 1, scale.grid * scale.patch
    vision = SiglipVisionConfig(image_size=edge, patch_size=scale.patch, vision_use_head=False, **scale.vision)
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**scale.text),
        image_token_index=token,
        video_token_index=token - 1,
        image_grid_pinpoints=grid_pinpoints(edge, 6),
    )
    model = build(LlavaOnevisionForConditionalGeneration, config, scale).eval()
    return Contestant(model, any_resolution(scale, model, several_alone=True), token)


def idefics3(scale: Scale) -> Contestant:
    token = scale.text["vocab_size"] - 1
    config = Idefics3Config(
        image_token_id=token,
        vision_config={"image_size": scale.grid * scale.patch, "patch_size": scale.patch, **scale.vision},
        text_config=LlamaConfig(**scale.text).to_dict(),
        pad_token_id=0,
        scale_factor=2,
    )
    model = build(Idefics3ForConditionalGeneration, config, scale).eval()
    return Contestant(model, flat_tiles(scale, rows=True), token)


def internvl(scale: Scale) -> Contestant:
    token, edge = scale.text["vocab_size"] - 1, scale.grid * scale.patch
    config = InternVLConfig(
        vision_config={"image_size": [edge, edge], "patch_size": [scale.patch] * 2, **scale.vision},
        text_config=Qwen2Config(**scale.text).to_dict(),
        image_token_id=token,
        image_seq_length=scale.grid**2 // 4,
        tie_word_embeddings=False,
    )
    return Contestant(build(InternVLForConditionalGeneration, config, scale).eval(), flat_tiles(scale), token)


def qwen3_vl(scale: Scale) -> Contestant:
    """Its encoder sees an image whole, in patches of 16 pixels: here in as many as the tiles of the others have."""
    token, vision = scale.text["vocab_size"] - 1, scale.vision
    layers = vision["num_hidden_layers"]
    half = scale.text["head_dim"] // 2
    third = half // 3
    config = Qwen3VLConfig(
        vision_config={
            "depth": layers,
            "hidden_size": vision["hidden_size"],
            "intermediate_size": vision["intermediate_size"],
            "num_heads": vision["num_attention_heads"],
            "out_hidden_size": scale.text["hidden_size"],
            "deepstack_visual_indexes": sorted({layers // 4, layers // 2, 3 * layers // 4}),
        },
        text_config={
            **scale.text,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half - 2 * third, third, third],
                "mrope_interleaved": True,
            },
        },
        image_token_id=token,
        video_token_id=token - 1,
        vision_start_token_id=token - 2,
        vision_end_token_id=token - 3,
    )
    model = build(Qwen3VLForConditionalGeneration, config, scale).eval()

    def make(number: int, side: int) -> dict[str, Any]:
        grid = side * scale.grid
        return {
            "pixel_values": pixels(scale, number * grid**2, 3 * 2 * 16**2),
            "image_grid_thw": torch.tensor([[1, grid, grid]] * number, device=scale.device),
        }

    return Contestant(model, make, token)


CONTESTANTS: dict[str, Callable[[Scale], Contestant]] = {
    "MM1": lambda scale: mm1(scale, scale.image_tokens),
    "MM1, every patch's token": lambda scale: mm1(scale, scale.grid**2),
    "LLaVA": llava,
    "LLaVA-NeXT": llava_next,
    "LLaVA-OneVision": llava_onevision,
    "Idefics3": idefics3,
    "InternVL": internvl,
    "Qwen3-VL": qwen3_vl,
}
