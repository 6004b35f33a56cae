"""The sizes at which the suite runs, and the MM1 of each size."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import CLIPVisionConfig, PreTrainedConfig, PreTrainedModel

from mm1_hf import MM1Config, MM1TextConfig


@dataclass(frozen=True)
class Scale:
    """
    Args:
        name: name of the size.
        device, dtype: where models are, and the dtype of their weights.
        vision: fields of the encoder's configuration.
        text: fields of the decoder's configuration.
        connector: hidden size of the C-Abstractor.
        row: positions of a packed row; `rows` of them are a batch.
        training_grid: patches along one side of a tile in training: 27 of 14 pixels are MM1's 378.
        grid: patches along one side of a tile elsewhere.
        experts, expert_size: number of experts of a sparse layer, and the width of each.
        new_tokens: tokens that are generated.
        layer_tokens, attention_tokens: numbers of tokens of an MoE layer, and of a row of packed attention.
        vocabularies: sizes of the vocabulary of the loss head.
        positions: positions of the loss head, of which half have a target.
        rounds: rounds of each measurement.
        patch: side of a patch in pixels.
        batches: batch sizes of decoding.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    vision: dict[str, Any]
    text: dict[str, Any]
    connector: int
    row: int
    rows: int
    training_grid: int
    grid: int
    experts: tuple[int, ...]
    expert_size: int
    new_tokens: int
    layer_tokens: tuple[int, ...]
    attention_tokens: tuple[int, ...]
    vocabularies: tuple[int, ...]
    positions: int
    rounds: int
    patch: int = 14
    batches: tuple[int, ...] = (1, 16)

    @property
    def image_tokens(self) -> int:
        """Image tokens of a tile: the paper's 144, or a quarter of the patches of smaller tiles."""
        return min(144, self.grid**2 // 4)

    @property
    def backend(self) -> str:
        """The compiler. At toy size code is generated for nothing, which would take minutes on a CPU."""
        return "aot_eager" if self.name == "tiny" else "inductor"

    def shallow(self) -> "Scale":
        """The same sizes with as few layers as contain every kind of layer, which are compiled as the whole model's are."""
        return replace(
            self,
            vision=self.vision | {"num_hidden_layers": 1},
            text=self.text | {"num_hidden_layers": 2},
        )


def _vision(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _text(width: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": width // heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
    }


def scale(name: str, device: str) -> Scale:
    """
    The sizes under a name: `"gpu"` has an encoder of ViT-L's size and a decoder of 1.0 billion parameters, `"cpu"` one of
    ViT-S's size and one of 12 layers of width 576. `"tiny"` only shows that everything runs.

    Args:
        name: `"gpu"`, `"cpu"` or `"tiny"`.
        device: torch's name of the device.
    """
    where = torch.device(device)
    if name == "gpu":
        return Scale(
            name,
            where,
            torch.bfloat16,
            vision=_vision(1024, 24, 16),
            text=_text(2048, 8192, 16, 16, 8, 32128),
            connector=1024,
            row=4096,
            rows=2,
            training_grid=27,
            grid=24,
            experts=(64, 32),
            expert_size=1024,
            new_tokens=128,
            layer_tokens=(512, 2048, 8192, 32768),
            attention_tokens=(2048, 4096, 8192, 16384, 32768),
            vocabularies=(32_000, 128_000, 256_000),
            positions=8192,
            rounds=5,
        )
    if name == "cpu":
        return Scale(
            name,
            where,
            torch.float32,
            vision=_vision(384, 12, 6),
            text=_text(576, 1536, 12, 9, 3, 32128),
            connector=384,
            row=2048,
            rows=1,
            training_grid=24,
            grid=24,
            experts=(64, 32),
            expert_size=384,
            new_tokens=32,
            layer_tokens=(512, 2048, 4096),
            attention_tokens=(2048, 4096, 8192),
            vocabularies=(32_000, 128_000, 256_000),
            positions=1024,
            rounds=5,
        )
    return Scale(
        name,
        where,
        torch.float32 if where.type == "cpu" else torch.bfloat16,
        vision=_vision(32, 2, 2),
        text=_text(64, 128, 2, 4, 2, 512),
        connector=32,
        row=256,
        rows=2,
        training_grid=4,
        grid=4,
        experts=(8, 4),
        expert_size=32,
        new_tokens=4,
        layer_tokens=(16, 32),
        attention_tokens=(64, 128),
        vocabularies=(320, 640),
        positions=64,
        rounds=2,
        batches=(1, 2),
    )


def vision_config(sizes: Scale, grid: int | None = None) -> CLIPVisionConfig:
    side = sizes.patch * (sizes.grid if grid is None else grid)
    return CLIPVisionConfig(image_size=side, patch_size=sizes.patch, **sizes.vision)


def mm1_config(sizes: Scale, grid: int, num_tokens: int, **text: Any) -> MM1Config:
    """
    An MM1 of the scale's sizes.

    Args:
        sizes: the scale.
        grid: patches along one side of a tile.
        num_tokens: image tokens of a tile.
        text: further fields of the decoder's configuration.
    """
    return MM1Config(
        vision_config=vision_config(sizes, grid),
        text_config=MM1TextConfig(**sizes.text, **text),
        connector_config={"num_tokens": num_tokens, "hidden_size": sizes.connector},
        image_token_id=sizes.text["vocab_size"] - 1,
    )


def build(model_class: type[PreTrainedModel], config: PreTrainedConfig, sizes: Scale) -> PreTrainedModel:
    """A model with random weights, made on its device."""
    with sizes.device:
        return model_class._from_config(config, dtype=sizes.dtype).to(sizes.device)
