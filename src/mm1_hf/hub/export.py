"""An MM1 for ONNX Runtime, by transformers' exporter: tiles to image tokens, text to embeddings, decoder with its cache."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration


IMAGE_FEATURES = "image_features"
EMBED_TOKENS = "embed_tokens"
DECODER = "decoder"


class ImageFeatures(nn.Module):
    """
    Encoder and connector.

    Args:
        model: the model that they are of.
    """

    def __init__(self, model: MM1ForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values: `(tiles, 3, height, width)`, normalised.

        Returns:
            The image tokens `(tiles, num_tokens, hidden)`.
        """
        return self.model.get_image_features(pixel_values).pooler_output


def export_onnx(model: MM1ForConditionalGeneration, folder: str | Path) -> None:
    """
    Writes three graphs, each in a folder of its own that `transformers.exporters.base.ExportedModel.from_pretrained` runs:

    - `image_features`: tiles `(tiles, 3, size, size)` to image tokens `(tiles, num_tokens, hidden)`;
    - `embed_tokens`: `input_ids` `(batch, sequence)` to embeddings, in which image tokens' places are then filled in order;
    - `decoder`: `inputs_embeds`, `attention_mask` and `past_key_values` to logits and the cache; from an empty one it reads
      the prompt, from a filled one it goes on, one token or several at a time.

    Numbers of tiles, rows and positions are free; a tile's size is fixed.

    Args:
        model: in evaluation mode.
        folder: where the graphs go.
    """
    exporter, sizes = OnnxExporter(), model.config.vision_config
    side = model.config.connector_config.grid_size * sizes.patch_size
    tiles = torch.zeros(2, getattr(sizes, "num_channels", 3), side, side, dtype=model.dtype, device=model.device)
    # Of a free size, the grid of patches would be a root that ONNX cannot round.
    free_tiles = OnnxConfig(dynamic_shapes={"pixel_values": {0: torch.export.Dim.AUTO}})
    input_ids = torch.zeros(2, 9, dtype=torch.long, device=model.device)
    embeddings: Any = model.get_input_embeddings()
    with torch.no_grad():
        embeds = embeddings(input_ids)
        past = model(inputs_embeds=embeds[:, :5], use_cache=True).past_key_values
    decoder_inputs = {
        "inputs_embeds": embeds[:, 5:],
        "attention_mask": torch.ones_like(input_ids),
        "past_key_values": past,
        "use_cache": True,
    }
    graphs: dict[str, tuple[Any, dict[str, Any], OnnxConfig]] = {
        IMAGE_FEATURES: (ImageFeatures(model), {"pixel_values": tiles}, free_tiles),
        EMBED_TOKENS: (embeddings, {"input": input_ids}, OnnxConfig(dynamic=True)),
        DECODER: (model, decoder_inputs, OnnxConfig(dynamic=True)),
    }
    for name, (module, inputs, config) in graphs.items():
        exporter.export(module, inputs, config).save_pretrained(Path(folder) / name)
