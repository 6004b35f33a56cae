"""The image encoder inside an MM1: any vision transformer of transformers, without the modules that MM1 does not use
and with position embeddings that are interpolated to the resolution of the tiles."""

import copy
import inspect
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.aimv2.modeling_aimv2 import Aimv2VisionEmbeddings
from transformers.models.clip.modeling_clip import CLIPVisionModel

from .configuration_aim import AIMVisionConfig
from .connectors import interpolate_grid
from .modeling_aim import AIMVisionModel
from .vision_sizes import vision_sizes


# The names that transformers' encoders give to the norm after their last layer and to the pooling after that norm.
_FINAL_NORMS = ("post_layernorm", "layernorm", "rms_norm", "norm")
_POOLERS = ("head", "pooler")


def build_vision_tower(config: PreTrainedConfig, feature_layer: int, final_norm: bool) -> PreTrainedModel:
    """
    Builds the encoder of a vision configuration up to the hidden state `feature_layer`.

    Layers after this hidden state are not built. The pooling head and, unless `final_norm`, the last norm are replaced
    by identities, and DINOv2's mask token is removed. The weights of these modules would get no gradient, which makes
    data-parallel training fail.

    Args:
        config: configuration of any vision transformer of transformers.
        feature_layer: index of the last hidden state: 0 is the output of the embeddings, -1 that of the last layer.
        final_norm: whether the norm after the last layer is used.
    """
    if feature_layer not in (-1, config.num_hidden_layers):
        config = copy.deepcopy(config)
        config.num_hidden_layers = (
            feature_layer if feature_layer >= 0 else config.num_hidden_layers + 1 + feature_layer
        )
    # AIM is built from its class in this package, which also loads from the Hub without the package; any other encoder
    # is built by its model type.
    is_aim = config.model_type == AIMVisionConfig.model_type
    tower = AIMVisionModel._from_config(config) if is_aim else AutoModel.from_config(config)
    for name in _POOLERS if final_norm else (*_POOLERS, *_FINAL_NORMS):
        if isinstance(getattr(tower, name, None), nn.Module):
            setattr(tower, name, nn.Identity())
    embeddings: Any = getattr(tower, "embeddings", None)
    if getattr(embeddings, "mask_token", None) is not None:
        embeddings.mask_token = None
    # Partials, because a bound method of another class can be copied but not pickled.
    if isinstance(getattr(embeddings, "position_embedding", None), nn.Embedding):
        if hasattr(embeddings, "interpolate_pos_encoding"):
            embeddings.interpolate_pos_encoding = partial(_interpolate_pos_encoding, embeddings)
        elif isinstance(embeddings, Aimv2VisionEmbeddings):
            embeddings.forward = partial(_embed_aimv2, embeddings)
    return tower


def require_tiles(pixel_values: object, vision_config: PreTrainedConfig) -> None:
    """
    Checks the form of tiles. Their values are not read.

    Args:
        pixel_values: what a model was given as tiles.
        vision_config: the encoder's configuration.

    Raises:
        ValueError: they are not `(tiles, channels, height, width)` in floating point or uint8, with as many channels as the
            encoder takes.
    """
    channels = getattr(vision_config, "num_channels", 3)
    if not isinstance(pixel_values, torch.Tensor):
        given = f"a {type(pixel_values).__name__}"
    elif pixel_values.dim() != 4 or pixel_values.shape[1] != channels:
        given = f"a tensor of shape {tuple(pixel_values.shape)}"
    elif not pixel_values.is_floating_point() and pixel_values.dtype != torch.uint8:
        given = f"values of type {pixel_values.dtype}"
    else:
        return
    raise ValueError(
        f"pixel_values must be the tiles of the whole batch, one after the other: a tensor of shape (tiles, {channels}, "
        f"height, width), in floating point or uint8; got {given}. A single tile needs a first dimension of 1. Let the "
        "model's processor make pixel_values from images."
    )


def encode(
    tower: PreTrainedModel, pixel_values: torch.Tensor, final_norm: bool, **kwargs
) -> tuple[BaseModelOutput, torch.Tensor]:
    """
    Runs the encoder.

    Args:
        tower: an encoder built by [`build_vision_tower`].
        pixel_values: `(tiles, 3, height, width)`, normalised as in the encoder's training.
        final_norm: whether to apply the encoder's last norm to the patches.
        kwargs: further arguments of the encoder.

    Returns:
        The encoder's output and the patches `(tiles, patches, width)`, without class and register tokens.

    Raises:
        ValueError: the tiles are not a square grid of whole patches.
    """
    height, width = pixel_values.shape[-2:]
    image_size, patch_size = vision_sizes(tower.config)
    # At its configured resolution an encoder may leave out a remainder of pixels, as SigLIP's so400m does: its 384
    # pixels are 27 patches of 14 pixels and 6 pixels more.
    if height != width or (height % patch_size and height != image_size):
        raise ValueError(
            f"The image encoder cuts square tiles into {patch_size} x {patch_size} patches; got tiles of "
            f"{height} x {width} pixels. Set the image processor's size to a multiple of {patch_size}."
        )
    if "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters:
        kwargs["interpolate_pos_encoding"] = True
    outputs = tower(pixel_values.to(tower.dtype), return_dict=True, **kwargs)
    features = outputs.last_hidden_state
    # In all of these encoders, class and register tokens come before the patches.
    features = features[:, features.shape[1] - (height // patch_size) * (width // patch_size) :]
    # CLIP applies its last norm only to the token that it pools, the other encoders apply theirs to all tokens.
    if final_norm and isinstance(tower, CLIPVisionModel):
        features = tower.post_layernorm(features)
    return outputs, features


def resize_positions(weights: dict[str, torch.Tensor], grid: int, new_grid: int) -> dict[str, torch.Tensor]:
    """
    Interpolates the position embedding among an encoder's weights to another resolution. Encoders with rotary
    positions have none, so their weights do not change.

    Args:
        weights: the encoder's weights by name.
        grid:
            number of patches along one side of the stored grid. The positions of class and register tokens, which come
            before the grid, are kept unchanged.
        new_grid: number of patches along one side of the new grid.

    Returns:
        The weights by name, with the interpolated position embedding.
    """
    resized = dict(weights)
    for name, weight in weights.items():
        if re.search(r"embeddings\.position_embedding(s|\.weight)$", name):
            table = weight.squeeze(0)
            prefix = table.shape[0] - grid**2
            table = torch.cat([table[:prefix], interpolate_grid(table[prefix:], new_grid, new_grid)])
            resized[name] = table.view(*weight.shape[:-2], *table.shape)
    return resized


def normalize_levels(
    pixel_values: torch.Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> torch.Tensor:
    """
    Scales 8-bit tiles to 0..1 and normalises them, as the image processor does.

    Args:
        pixel_values: `(tiles, channels, height, width)`, uint8.
        mean: mean of each channel, for pixel values in 0..1.
        std: standard deviation of each channel, for pixel values in 0..1.

    Returns:
        `(tiles, channels, height, width)` in float32.

    Raises:
        ValueError: `mean` or `std` is None.
    """
    if mean is None or std is None:
        raise ValueError(
            "pixel_values are uint8, but the model's configuration does not say how to normalise them. Set its "
            "pixel_mean and pixel_scale to the image processor's image_mean and image_std, or leave the image "
            "processor's do_rescale and do_normalize on."
        )
    # Plain Python numbers need no copy to the device, as a tensor of means would.
    channels = zip(pixel_values.unbind(1), mean, std, strict=True)
    return torch.stack([levels.float() * (1 / 255 / s) - m / s for levels, m, s in channels], dim=1)


def _position_table(embeddings: Any, height: int, width: int) -> torch.Tensor:
    """Position embeddings `(1, positions, dim)`, with a class token's first if there is one, for an image of `height`
    x `width` pixels."""
    # Calls the module instead of reading its weight: accelerate loads an offloaded weight when its module is called.
    table = embeddings.position_embedding(embeddings.position_ids.flatten())
    patch_size = embeddings.patch_size
    prefix = table.shape[0] - (embeddings.config.image_size // patch_size) ** 2
    grid = interpolate_grid(table[prefix:], height // patch_size, width // patch_size)
    return torch.cat([table[:prefix], grid]).unsqueeze(0)


def _interpolate_pos_encoding(
    embeddings: nn.Module, patch_embeds: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """Replaces the method of CLIP and SigLIP, which interpolates in the model's dtype instead of float32."""
    return _position_table(embeddings, height, width)


def _embed_aimv2(embeddings: Aimv2VisionEmbeddings, pixel_values: torch.Tensor) -> torch.Tensor:
    """Replaces the forward method of AIMv2, which supports only one resolution."""
    patches = embeddings.rms_norm(embeddings.patch_embed(pixel_values).flatten(2).transpose(1, 2))
    return patches + _position_table(embeddings, *pixel_values.shape[-2:])
