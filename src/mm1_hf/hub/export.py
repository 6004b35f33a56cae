"""Exports an MM1 to ONNX with transformers' exporter, as three graphs: image features, embeddings and decoder."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.versions import CACHE


IMAGE_FEATURES = "image_features"
EMBED_TOKENS = "embed_tokens"
DECODER = "decoder"


class ImageFeatures(nn.Module):
    """
    The image encoder and the connector of a model, as one module.

    Args:
        model: the model that they belong to.
    """

    def __init__(self, model: MM1ForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values: `(tiles, 3, height, width)`, normalised.

        Returns:
            Image tokens `(tiles, num_tokens, hidden)`.
        """
        return self.model.get_image_features(pixel_values).pooler_output


def export_onnx(model: MM1ForConditionalGeneration, folder: str | Path) -> None:
    """
    Writes three ONNX graphs, each in a folder that `transformers.exporters.base.ExportedModel.from_pretrained` can
    load:

    - `image_features` maps `pixel_values` `(tiles, 3, size, size)` to image tokens `(tiles, num_tokens, hidden)`;
    - `embed_tokens` maps `input`, token ids `(batch, sequence)`, to embeddings `(batch, sequence, hidden)`, in which
      the caller then replaces the embeddings of the placeholder tokens by the image tokens, in order;
    - `decoder` maps `inputs_embeds`, `attention_mask` and `past_key_values` to logits and the updated cache. With an
      empty cache it processes the prompt; with a filled cache it continues the sequence by one or several tokens.

    The number of tiles, the batch size and the sequence length are dynamic; the size of a tile is fixed.

    Args:
        model: the model, in evaluation mode.
        folder: folder to write the three folders `image_features`, `embed_tokens` and `decoder` to.
    """
    exporter, sizes = OnnxExporter(), model.config.vision_config
    side = model.config.connector_config.grid_size * sizes.patch_size
    tiles = torch.zeros(2, getattr(sizes, "num_channels", 3), side, side, dtype=model.dtype, device=model.device)
    # With a dynamic tile size, the side of the grid of patches would be a square root, which ONNX cannot round.
    free_tiles = OnnxConfig(dynamic_shapes={"pixel_values": {0: torch.export.Dim.AUTO}})
    input_ids = torch.zeros(2, 9, dtype=torch.long, device=model.device)
    embeddings: Any = model.get_input_embeddings()
    with torch.no_grad():
        embeds = embeddings(input_ids)
        past = model(inputs_embeds=embeds[:, :5], use_cache=True)[CACHE]
    decoder_inputs = {
        "inputs_embeds": embeds[:, 5:],
        "attention_mask": torch.ones_like(input_ids),
        CACHE: past,
        "use_cache": True,
    }
    graphs: dict[str, tuple[Any, dict[str, Any], OnnxConfig]] = {
        IMAGE_FEATURES: (ImageFeatures(model), {"pixel_values": tiles}, free_tiles),
        EMBED_TOKENS: (embeddings, {"input": input_ids}, OnnxConfig(dynamic=True)),
        DECODER: (model, decoder_inputs, OnnxConfig(dynamic=True)),
    }
    for name, (module, inputs, config) in graphs.items():
        exporter.export(module, inputs, config).save_pretrained(Path(folder) / name)
