"""
Changes the tile size of a model: its position embeddings are interpolated once, then trained and saved at the new
size.
"""

import copy
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from mm1_hf.model.configuration_mm1 import MM1Config, MM1ConnectorConfig
from mm1_hf.model.connectors import CAbstractor, interpolate_grid
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.model.vision import build_vision_tower, resize_positions
from mm1_hf.model.vision_sizes import vision_grid_size


def set_tile_size(model: MM1ForConditionalGeneration, processor: MM1Processor, tile_size: int) -> None:
    """
    Changes a loaded model, in place, to tiles of `tile_size` pixels, as MM1 changes from 378 to 672 pixels. The
    position embeddings of the encoder and of the C-Abstractor are interpolated (bicubic, in float32), and the
    configurations of encoder and connector and the processor are updated.

    A model accepts tiles of other sizes without this function too, but then it interpolates its position embeddings in
    every forward pass, and training updates the old, smaller grid. The number of image tokens per tile stays the same,
    except for connectors that do not reduce it: they make one token of each patch.

    Args:
        model: a model whose weights are not split over processes. Call this function before freezing parts, adding
            adapters or creating an optimizer.
        processor: processor of the model. Afterwards it makes tiles of the new size.
        tile_size: side of a tile in pixels. Static splitting at 1344 pixels makes tiles of 672 pixels.

    Raises:
        ValueError: `tile_size` is not a multiple of the encoder's patch size; a tile would have fewer patches than
            image tokens; or the model's weights were split over processes when it was loaded.

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
            f"tile_size={tile_size} is not a multiple of the encoder's patch size, {patch_size}. Take a multiple, "
            f"such as {max(round(tile_size / patch_size), 1) * patch_size}."
        )
    if model.is_distributed_loading_by_transformers:
        raise ValueError(
            "The model's weights were split over processes when it was loaded. Load the model without "
            "distributed_config, set its tile size, save it, and load the saved model with distributed_config."
        )
    new_grid = tile_size // patch_size
    # Raises an error if the connector does not support the tile size, before anything is changed.
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
    The configuration of a model's connector for tiles of another size. A connector that reduces the number of tokens
    keeps its number of tokens per tile; other connectors make one token of each patch.

    Args:
        config: configuration of the model.
        tile_size: side of a tile in pixels, a multiple of the encoder's patch size.

    Raises:
        ValueError: a tile would have fewer patches than image tokens.
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
    """
    A new encoder with the old weights. The encoder is built again because each model family stores its sizes in
    different attributes.
    """
    config, tower = model.config, model.model.vision_tower
    resized = build_vision_tower(config.vision_config, config.vision_feature_layer, config.vision_feature_norm)
    trained = {name: weight.requires_grad for name, weight in tower.named_parameters()}
    resized.load_state_dict(resize_positions(tower.state_dict(), grid, new_grid), assign=True)
    for name, weight in resized.named_parameters():
        weight.requires_grad_(trained[name])
    return resized.to(tower.device).train(tower.training)
