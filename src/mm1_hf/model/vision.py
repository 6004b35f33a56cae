"""The image encoder inside an MM1: any of transformers' vision transformers, with what MM1 does not use taken off and
position embeddings that follow the resolution."""

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
from .configuration_mm1 import vision_sizes
from .connectors import interpolate_grid
from .modeling_aim import AIMVisionModel


# What transformers' encoders call the norm after their last layer, and the pooling that follows it.
_FINAL_NORMS = ("post_layernorm", "layernorm", "rms_norm", "norm")
_POOLERS = ("head", "pooler")


def build_vision_tower(config: PreTrainedConfig, feature_layer: int, final_norm: bool) -> PreTrainedModel:
    """
    Builds the encoder of a vision configuration up to the hidden state `feature_layer`, -1 for the last layer's.

    The layers behind it are left out, its pooling head and, unless `final_norm`, its last norm become identities, and
    DINOv2's mask token goes: they hold weights that no loss reaches, which data-parallel training refuses.

    Args:
        config: any of transformers' vision transformers'.
        feature_layer: which hidden state is the last.
        final_norm: whether the norm after the last layer is used.
    """
    if feature_layer not in (-1, config.num_hidden_layers):
        config = copy.deepcopy(config)
        config.num_hidden_layers = (
            feature_layer if feature_layer >= 0 else config.num_hidden_layers + 1 + feature_layer
        )
    # AIM by its own class, which also loads from the Hub without this package; any other encoder by its name.
    is_aim = config.model_type == AIMVisionConfig.model_type
    tower = AIMVisionModel._from_config(config) if is_aim else AutoModel.from_config(config)
    for name in _POOLERS if final_norm else (*_POOLERS, *_FINAL_NORMS):
        if isinstance(getattr(tower, name, None), nn.Module):
            setattr(tower, name, nn.Identity())
    embeddings: Any = getattr(tower, "embeddings", None)
    if getattr(embeddings, "mask_token", None) is not None:
        embeddings.mask_token = None
    # Partials, because bound methods of another class can be copied but not pickled.
    if isinstance(getattr(embeddings, "position_embedding", None), nn.Embedding):
        if hasattr(embeddings, "interpolate_pos_encoding"):
            embeddings.interpolate_pos_encoding = partial(_interpolate_pos_encoding, embeddings)
        elif isinstance(embeddings, Aimv2VisionEmbeddings):
            embeddings.forward = partial(_embed_aimv2, embeddings)
    return tower


def encode(
    tower: PreTrainedModel, pixel_values: torch.Tensor, final_norm: bool, **kwargs
) -> tuple[BaseModelOutput, torch.Tensor]:
    """
    Runs the encoder.

    Args:
        tower: what [`build_vision_tower`] built.
        pixel_values: `(tiles, 3, height, width)`, normalised as the encoder was trained.
        final_norm: whether to put the encoder's last norm on its patches.
        kwargs: other arguments of the encoder.

    Returns:
        The encoder's output and the patches `(tiles, patches, width)`, without class and register tokens.

    Raises:
        ValueError: the tiles are not a square grid of whole patches.
    """
    height, width = pixel_values.shape[-2:]
    image_size, patch_size = vision_sizes(tower.config)
    # At its own resolution an encoder may leave a remainder out, as SigLIP's so400m does with 384 = 27 * 14 + 6 pixels.
    if height != width or (height % patch_size and height != image_size):
        raise ValueError(
            f"The image encoder cuts square tiles into {patch_size} x {patch_size} patches; got tiles of "
            f"{height} x {width} pixels. Set the image processor's size to a multiple of {patch_size}."
        )
    if "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters:
        kwargs["interpolate_pos_encoding"] = True
    outputs = tower(pixel_values.to(tower.dtype), return_dict=True, **kwargs)
    features = outputs.last_hidden_state
    # Class and register tokens come first in every one of these encoders.
    features = features[:, features.shape[1] - (height // patch_size) * (width // patch_size) :]
    # CLIP norms only what it pools, the others all tokens.
    if final_norm and isinstance(tower, CLIPVisionModel):
        features = tower.post_layernorm(features)
    return outputs, features


def resize_positions(weights: dict[str, torch.Tensor], grid: int, new_grid: int) -> dict[str, torch.Tensor]:
    """
    An encoder's weights with its table of positions interpolated to another resolution; rotary positions need none.

    Args:
        weights: by name.
        grid: patches along one side of the table; those of class and register tokens stay as they are.
        new_grid: likewise, of the new one.
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
    Normalises 8-bit tiles as the image processor does.

    Args:
        pixel_values: `(tiles, channels, height, width)`, uint8.
        mean: one number per channel, of levels in 0..1.
        std: likewise.

    Returns:
        `(tiles, channels, height, width)` in float32.

    Raises:
        ValueError: mean and standard deviation are not known.
    """
    if mean is None or std is None:
        raise ValueError(
            "pixel_values are uint8, and the model's configuration does not say how to normalise them. Set its pixel_mean "
            "and pixel_scale to the image processor's image_mean and image_std, or leave its do_rescale and do_normalize on."
        )
    # Python numbers, unlike tensors made of them, need no copy to the device.
    channels = zip(pixel_values.unbind(1), mean, std, strict=True)
    return torch.stack([levels.float() * (1 / 255 / s) - m / s for levels, m, s in channels], dim=1)


def _position_table(embeddings: Any, height: int, width: int) -> torch.Tensor:
    """Position embeddings `(1, positions, dim)` for an image of `height` x `width` pixels; a class token's comes along."""
    # Through the module, where accelerate's offloading puts the weights in place.
    table = embeddings.position_embedding(embeddings.position_ids.flatten())
    patch_size = embeddings.patch_size
    prefix = table.shape[0] - (embeddings.config.image_size // patch_size) ** 2
    grid = interpolate_grid(table[prefix:], height // patch_size, width // patch_size)
    return torch.cat([table[:prefix], grid]).unsqueeze(0)


def _interpolate_pos_encoding(
    embeddings: nn.Module, patch_embeds: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """In place of CLIP's and SigLIP's own, which interpolate in the model's dtype."""
    return _position_table(embeddings, height, width)


def _embed_aimv2(embeddings: Aimv2VisionEmbeddings, pixel_values: torch.Tensor) -> torch.Tensor:
    """In place of AIMv2's own, which knows one resolution only."""
    patches = embeddings.rms_norm(embeddings.patch_embed(pixel_values).flatten(2).transpose(1, 2))
    return patches + _position_table(embeddings, *pixel_values.shape[-2:])
