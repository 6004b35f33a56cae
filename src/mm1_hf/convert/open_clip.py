"""Converts image encoders of open_clip to CLIP encoders of transformers."""

from os import PathLike
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import PILImageResampling
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mm1_hf.convert.checkpoint import WEIGHT_NAMES, Checkpoint, naming, read_json, source_folder
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
from mm1_hf.model.vision_sizes import vision_sizes


_NAMES = ("open_clip_model", "open_clip_pytorch_model", *WEIGHT_NAMES)
_LAYER = "visual.transformer.resblocks.#"
_TABLE = {
    "embeddings.class_embedding": "visual.class_embedding",
    "embeddings.patch_embedding.weight": "visual.conv1.weight",
    "embeddings.position_embedding.weight": "visual.positional_embedding",
    # transformers itself spells it `layrnorm`.
    "pre_layrnorm.weight": "visual.ln_pre.weight",
    "pre_layrnorm.bias": "visual.ln_pre.bias",
    "post_layernorm.weight": "visual.ln_post.weight",
    "post_layernorm.bias": "visual.ln_post.bias",
} | {
    f"encoder.layers.#.{ours}.{kind}": entry
    for kind in ("weight", "bias")
    for ours, entry in {
        "layer_norm1": f"{_LAYER}.ln_1.{kind}",
        "layer_norm2": f"{_LAYER}.ln_2.{kind}",
        "mlp.fc1": f"{_LAYER}.mlp.c_fc.{kind}",
        "mlp.fc2": f"{_LAYER}.mlp.c_proj.{kind}",
        "self_attn.q_proj": Made((f"{_LAYER}.attn.in_proj_{kind}",), part_of(0, 3)),
        "self_attn.k_proj": Made((f"{_LAYER}.attn.in_proj_{kind}",), part_of(1, 3)),
        "self_attn.v_proj": Made((f"{_LAYER}.attn.in_proj_{kind}",), part_of(2, 3)),
        "self_attn.out_proj": f"{_LAYER}.attn.out_proj.{kind}",
    }.items()
}
# The text encoder, and the projection that is only used to compare images with texts.
_UNUSED = (r"^(?!visual\.)", r"^visual\.proj$")
# Fields of `vision_cfg` that, if set, make the encoder compute something that transformers' CLIP encoder does not.
_FOREIGN = (
    "timm_model_name",
    "attentional_pool",
    "no_ln_pre",
    "ls_init_value",
    "act_kwargs",
    "norm_kwargs",
    "qk_norm",
    "scaled_cosine_attn",
)
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_RESAMPLING = {
    "bicubic": PILImageResampling.BICUBIC,
    "bilinear": PILImageResampling.BILINEAR,
    "random": PILImageResampling.BICUBIC,
}


def convert_open_clip(
    source: str | PathLike,
    output: str | PathLike,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    allow_pickle: bool = False,
) -> None:
    """
    Converts the image encoder of an open_clip checkpoint, such as DFN-5B's ViT-H/14 at 378 pixels, to a
    `CLIPVisionModel` with an image processor that resizes and normalises images as open_clip does.

    Args:
        source: folder or Hub id of the checkpoint, which must have an `open_clip_config.json`.
        output: folder to write. It must not exist yet, or be empty.
        dtype: dtype of the written weights; unset, the dtype in the checkpoint.
        max_shard_size: maximum size of a written file, which also bounds the memory that the conversion needs.
        allow_pickle: whether to read pickled weights.

    Raises:
        ValueError: the encoder is not a vision transformer of the kind that transformers' CLIP implements, or the
            checkpoint does not have the tensors that its configuration describes.
    """
    folder = source_folder(source, ["*.bin", "*.pt"] if allow_pickle else [])
    described = read_json(folder / "open_clip_config.json")
    with naming(folder / "open_clip_config.json"):
        config = _configuration(described["model_cfg"])
        image_processor = _image_processor(described.get("preprocess_cfg", {}), vision_sizes(config)[0])
        model = empty_model(CLIPVisionModel, config)
    with new_folder(output) as partial:
        write_model(
            partial,
            model,
            expand(_TABLE, target_names(model)),
            Checkpoint(folder, names=_NAMES, allow_pickle=allow_pickle),
            unused=_UNUSED,
            dtype=dtype,
            max_shard_size=max_shard_size,
        )
        image_processor.save_pretrained(partial)


def _configuration(model_cfg: dict[str, Any]) -> CLIPVisionConfig:
    vision = model_cfg["vision_cfg"]
    for name in _FOREIGN:
        if vision.get(name):
            raise ValueError(
                f"This open_clip encoder cannot be converted to a CLIP encoder of transformers: vision_cfg.{name} is "
                f"{vision[name]}, but only encoders without this setting can be converted."
            )
    if not isinstance(vision.get("layers", 12), int):
        raise ValueError(
            f"vision_cfg.layers is {vision['layers']}: this is a convolutional encoder, which has no patches. Use a "
            "checkpoint with a vision transformer (ViT)."
        )
    width = vision.get("width", 768)
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=int(width * vision.get("mlp_ratio", 4.0)),
        projection_dim=model_cfg["embed_dim"],
        num_hidden_layers=vision.get("layers", 12),
        num_attention_heads=width // vision.get("head_width", 64),
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 16),
        hidden_act="quick_gelu" if model_cfg.get("quick_gelu") else "gelu",
    )


def _image_processor(preprocess: dict[str, Any], side: int) -> CLIPImageProcessorPil:
    mode = preprocess.get("resize_mode", "shortest")
    if mode not in ("squash", "shortest"):
        raise ValueError(
            f"preprocess_cfg.resize_mode is {mode!r}. It must be 'squash' or 'shortest', because transformers' CLIP "
            "image processor can only squash or crop images."
        )
    square = {"height": side, "width": side}
    return CLIPImageProcessorPil(
        size=square if mode == "squash" else {"shortest_edge": side},
        do_center_crop=mode == "shortest",
        crop_size=square,
        resample=_RESAMPLING[preprocess.get("interpolation", "bicubic")],
        image_mean=list(preprocess.get("mean", _CLIP[0])),
        image_std=list(preprocess.get("std", _CLIP[1])),
    )
