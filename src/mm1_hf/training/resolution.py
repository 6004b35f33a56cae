"""A model for tiles of another size: its position embeddings interpolated once, to be trained and saved at that size."""

import copy
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from mm1_hf.model.configuration_mm1 import MM1Config, MM1ConnectorConfig, vision_grid_size
from mm1_hf.model.connectors import CAbstractor, interpolate_grid
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.model.vision import build_vision_tower, resize_positions


def set_tile_size(model: MM1ForConditionalGeneration, processor: MM1Processor, tile_size: int) -> None:
    """
    Makes a loaded model one for tiles of `tile_size` pixels, in place, as MM1 goes from 378 to 672: the position embeddings
    of encoder and C-Abstractor are interpolated (bicubic, in float32), and both configurations and the processor follow.

    Without it a model reads tiles of any size too, but interpolates anew in every pass and trains what lies underneath, the
    smaller grid. Image tokens per tile stay, but for connectors that do not reduce: theirs are as many as the patches.

    Args:
        model: with whole weights, before parts are frozen, adapters are added or an optimizer is made.
        processor: the model's; its images are cut into tiles of the new size.
        tile_size: side of a tile in pixels; static splitting at 1344 cuts tiles of 672.

    Raises:
        ValueError: not a multiple of the encoder's patch, tiles of fewer patches than image tokens, or a model whose weights
            were split at load.

    Example:

    ```python
    >>> from mm1_hf.training.resolution import set_tile_size

    >>> set_tile_size(model, processor, 672)  # doctest: +SKIP
    >>> model.save_pretrained("mm1-672"), processor.save_pretrained("mm1-672")  # doctest: +SKIP

    ```
    """
    config = model.config
    patch_size = config.vision_config.patch_size
    if tile_size < patch_size or tile_size % patch_size:
        raise ValueError(
            f"tile_size={tile_size} is not a multiple of the encoder's patch, {patch_size}: such as "
            f"{max(round(tile_size / patch_size), 1) * patch_size}."
        )
    if model.is_distributed_loading_by_transformers:
        raise ValueError(
            "The model's weights were split at load: set the tile size of a model that is whole, save it, and load that one."
        )
    new_grid = tile_size // patch_size
    # Raises where the connector cannot follow, before anything is changed.
    connector_config = connector_for(config, tile_size)
    inner, grid = model.model, vision_grid_size(config.vision_config)
    config.vision_config.image_size = tile_size
    config.connector_config.grid_size, config.connector_config.num_tokens = new_grid, connector_config.num_tokens
    inner.vision_tower = _resized_tower(model, grid, new_grid)
    if isinstance(inner.connector, CAbstractor):
        table = inner.connector.position_embedding
        inner.connector.position_embedding = nn.Parameter(
            interpolate_grid(table.detach()[0], new_grid, new_grid).unsqueeze(0), requires_grad=table.requires_grad
        )
    processor.image_processor.size = {"height": tile_size, "width": tile_size}
    processor.num_image_tokens = cast(int, connector_config.num_tokens)


def connector_for(config: MM1Config, tile_size: int) -> MM1ConnectorConfig:
    """
    A model's connector for tiles of another size: with as many tokens where it pools, and as many as patches where not.

    Args:
        config: the model's.
        tile_size: side in pixels, a multiple of the encoder's patch.

    Raises:
        ValueError: tiles of fewer patches than image tokens.
    """
    connector = copy.deepcopy(config.connector_config)
    connector.grid_size = None
    if connector.connector_type in ("linear", "mlp"):
        connector.num_tokens = None
    connector.fit(
        connector.vision_hidden_size, connector.text_hidden_size, tile_size // config.vision_config.patch_size
    )
    return connector


def _resized_tower(model: MM1ForConditionalGeneration, grid: int, new_grid: int) -> PreTrainedModel:
    """The encoder built anew, because every family keeps its sizes in places of its own, with the old one's weights."""
    config, tower = model.config, model.model.vision_tower
    resized = build_vision_tower(config.vision_config, config.vision_feature_layer, config.vision_feature_norm)
    trained = {name: weight.requires_grad for name, weight in tower.named_parameters()}
    resized.load_state_dict(resize_positions(tower.state_dict(), grid, new_grid), assign=True)
    for name, weight in resized.named_parameters():
        weight.requires_grad_(trained[name])
    return resized.to(tower.device).train(tower.training)
