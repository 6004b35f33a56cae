"""Converts the published checkpoints of AIM's encoders, version 1."""

from os import PathLike

import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mm1_hf.convert.checkpoint import Checkpoint, naming, read_json, source_folder
from mm1_hf.convert.engine import (
    MAX_SHARD_SIZE,
    Made,
    empty_model,
    expand,
    new_folder,
    part_of,
    target_names,
    write_model,
)
from mm1_hf.model.configuration_aim import AIMVisionConfig
from mm1_hf.model.modeling_aim import AIMVisionModel


# Width of an attention head in every published size (the model width is 1536 for 600M, 2048 for 1B, 3072 for 3B and
# 4096 for 7B).
_HEAD_WIDTH = 128
# By width and depth, the number of layers to keep: of AIM-600M's 24 layers, its authors probe the first 20, and MM1
# uses them.
_USED_LAYERS = {(1536, 24): 20}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_LAYER = "trunk.blocks.#"
_TABLE = {
    "embeddings.patch_embedding.weight": "preprocessor.patchifier.proj.weight",
    "embeddings.patch_embedding.bias": "preprocessor.patchifier.proj.bias",
    "embeddings.patch_norm.weight": "preprocessor.patchifier.norm.weight",
    "embeddings.patch_norm.bias": "preprocessor.patchifier.norm.bias",
    "layers.#.layer_norm1.weight": f"{_LAYER}.norm_1.weight",
    "layers.#.layer_norm1.bias": f"{_LAYER}.norm_1.bias",
    "layers.#.layer_norm2.weight": f"{_LAYER}.norm_2.weight",
    "layers.#.layer_norm2.bias": f"{_LAYER}.norm_2.bias",
    "layers.#.self_attn.q_proj.weight": Made((f"{_LAYER}.attn.qkv.weight",), part_of(0, 3)),
    "layers.#.self_attn.k_proj.weight": Made((f"{_LAYER}.attn.qkv.weight",), part_of(1, 3)),
    "layers.#.self_attn.v_proj.weight": Made((f"{_LAYER}.attn.qkv.weight",), part_of(2, 3)),
    "layers.#.self_attn.out_proj.weight": f"{_LAYER}.attn.proj.weight",
    "layers.#.mlp.fc1.weight": f"{_LAYER}.mlp.fc1.weight",
    "layers.#.mlp.fc2.weight": f"{_LAYER}.mlp.fc2.weight",
    "norm.weight": "trunk.post_trunk_norm.weight",
    "norm.bias": "trunk.post_trunk_norm.bias",
}


def convert_aim(
    source: str | PathLike,
    output: str | PathLike,
    *,
    num_layers: int | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    allow_pickle: bool = False,
) -> None:
    """
    Converts an AIM encoder, version 1, to an [`AIMVisionModel`] with an image processor. The probing head is dropped.

    Args:
        source: file, folder or Hub id of the checkpoint. The sizes of the model are read from the shapes of its
            weights.
        output: folder to write. It must not exist yet, or be empty.
        num_layers: number of layers to keep, from the first one on; unset, 20 of the 24 layers of AIM-600M, and all
            layers of the other sizes.
        dtype: dtype of the written weights; unset, the dtype in the checkpoint.
        max_shard_size: maximum size of a written file, which also bounds the memory that the conversion needs.
        allow_pickle: whether to read pickled weights.

    Raises:
        ValueError: the checkpoint is not one of AIM, version 1, or `num_layers` is not between 1 and its number of
            layers.
    """
    path = source_folder(source, ["*.pth", "*.bin"] if allow_pickle else [])
    checkpoint = Checkpoint(path, allow_pickle=allow_pickle)
    given = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    with naming(path):
        config = _configuration(checkpoint, given, num_layers)
        model = empty_model(AIMVisionModel, config)
    skipped = [rf"^trunk\.blocks\.{layer}\." for layer in range(config.num_hidden_layers, _depth(checkpoint))]
    with new_folder(output) as partial:
        write_model(
            partial,
            model,
            expand(_TABLE, target_names(model)),
            checkpoint,
            unused=[r"^head\.", *skipped],
            dtype=dtype,
            max_shard_size=max_shard_size,
        )
        side = {"height": config.image_size, "width": config.image_size}
        CLIPImageProcessorPil(
            size=side, do_center_crop=False, crop_size=side, image_mean=_MEAN, image_std=_STD
        ).save_pretrained(partial)


def _depth(checkpoint: Checkpoint) -> int:
    return 1 + max((int(name.split(".")[2]) for name in checkpoint if name.startswith("trunk.blocks.")), default=-1)


def _configuration(checkpoint: Checkpoint, given: dict, num_layers: int | None) -> AIMVisionConfig:
    patches, widening = "preprocessor.patchifier.proj.weight", "trunk.blocks.0.mlp.fc1.weight"
    if patches not in checkpoint or widening not in checkpoint:
        raise ValueError(
            f"{checkpoint.path} is not a checkpoint of AIM, version 1, which has the tensors {patches} and "
            f"{widening}. AIM version 2 needs no conversion: it is part of transformers, and mm1_hf.assemble accepts "
            "it."
        )
    width, channels, patch_size, _ = checkpoint.meta(patches).shape
    depth = _depth(checkpoint)
    layers = _USED_LAYERS.get((width, depth), depth) if num_layers is None else num_layers
    if not 1 <= layers <= depth:
        raise ValueError(
            f"num_layers={layers}, but {checkpoint.path} has {depth} layers. Give a number from 1 to {depth}."
        )
    return AIMVisionConfig(
        hidden_size=width,
        intermediate_size=checkpoint.meta(widening).shape[0],
        num_hidden_layers=layers,
        num_attention_heads=given.get("num_heads", max(width // _HEAD_WIDTH, 1)),
        num_channels=channels,
        image_size=given.get("img_size", 224),
        patch_size=patch_size,
    )
