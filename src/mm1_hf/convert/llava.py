"""Converts LLaVA-1.5 and LLaVA-NeXT to an MM1 with an MLP connector, which gives a trained model to start from."""

import copy
import re
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer, GenerationConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from mm1_hf.convert.checkpoint import Checkpoint, naming, read_configuration, read_json, source_folder
from mm1_hf.convert.engine import MAX_SHARD_SIZE, Made, empty_model, new_folder, target_names, write_model
from mm1_hf.model.configuration_mm1 import MM1Config, MM1ConnectorConfig
from mm1_hf.model.image_processing_mm1 import MM1ImageProcessor
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor


NEWLINE_TOKEN = "<image_newline>"

_KINDS = ("llava", "llava_next")
# Whether the encoder has a class token. MM1 always drops it, so LLaVA must drop it too:
# `vision_feature_select_strategy` must be "default" if there is a class token, and "full" if there is none.
_HAS_CLASS_TOKEN = {"clip_vision_model": True, "siglip_vision_model": False}
_VOCABULARY_MULTIPLE = 64
# Prefixes of tensor names in MM1, and what LLaVA has in their place.
_PREFIXES = {
    "model.vision_tower.": "vision_tower.",
    "model.connector.0.": "multi_modal_projector.linear_1.",
    "model.connector.2.": "multi_modal_projector.linear_2.",
    "model.language_model.": "language_model.",
    "lm_head.": "lm_head.",
}
# Modules after the last layer of the encoder, and buffers that old checkpoints hold.
_UNUSED = [r"vision_tower\.(.*\.)?(post_layernorm|head|position_ids)\b", r"rotary_emb\.inv_freq$"]


def convert_llava(
    source: str | PathLike,
    output: str | PathLike,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    allow_pickle: bool = False,
) -> None:
    """
    Converts a LLaVA-1.5 or LLaVA-NeXT of transformers to an [`MM1ForConditionalGeneration`]. If the source has a
    tokenizer and an image processor, an [`MM1Processor`] is written too. The logits are equal if images are not split.
    The embedding that LLaVA-NeXT inserts after each row of a split image becomes the embedding of an additional token,
    `<image_newline>`.

    Args:
        source: folder or Hub id of the model.
        output: folder to write. It must not exist yet, or be empty.
        dtype: dtype of the written weights; unset, the dtype in the checkpoint.
        max_shard_size: maximum size of a written file, which also bounds the memory that the conversion needs.
        allow_pickle: whether to read pickled weights.

    Raises:
        ValueError: the model does something that an MM1 does not, or the checkpoint does not have the tensors that its
            configuration describes.
    """
    folder = source_folder(source, ["*.txt", *(["*.bin"] if allow_pickle else [])])
    foreign, config = read_configuration(folder, _configuration)
    checkpoint = Checkpoint(folder, allow_pickle=allow_pickle)
    names = {_plain(name): name for name in checkpoint}
    tokenizer = _tokenizer(folder)
    newline = None
    if "image_newline" in names:
        old_rows = config.text_config.vocab_size
        newline = old_rows if tokenizer is None else len(tokenizer)
        rows = max(old_rows, -(-(newline + 1) // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE)
        config.text_config.vocab_size = rows
        if tokenizer is not None:
            tokenizer.add_special_tokens({"extra_special_tokens": [NEWLINE_TOKEN]}, replace_extra_special_tokens=False)
    processor = None if tokenizer is None else _processor(folder, foreign, config, tokenizer)

    with naming(folder / "config.json"):
        model = empty_model(MM1ForConditionalGeneration, config)
    plan = {}
    for target in target_names(model):
        prefix = next(prefix for prefix in _PREFIXES if target.startswith(prefix))
        wanted = _PREFIXES[prefix] + target.removeprefix(prefix)
        plan[target] = Made((names.get(wanted, wanted),), lambda tensor: tensor)
    if newline is not None:
        for target, made in plan.items():
            if target.endswith("embed_tokens.weight"):
                plan[target] = Made((*made.sources, names["image_newline"]), _WithRow(old_rows, rows, newline))
            elif target == "lm_head.weight":
                plan[target] = Made(made.sources, _WithRow(old_rows, rows, None))
    if (folder / "generation_config.json").is_file():
        with naming(folder / "generation_config.json"):
            model.generation_config = GenerationConfig.from_pretrained(folder)
    cast(Any, model.generation_config).suppress_tokens = [
        token for token in (config.image_token_id, newline) if token is not None
    ]
    with new_folder(output) as partial:
        write_model(
            partial,
            model,
            plan,
            checkpoint,
            unused=[*_UNUSED, *_unused_layers(foreign, config), *_tied(config)],
            dtype=dtype,
            max_shard_size=max_shard_size,
        )
        if processor is not None:
            processor.save_pretrained(partial)


def _configuration(foreign: PreTrainedConfig) -> MM1Config:
    if foreign.model_type not in _KINDS:
        raise ValueError(
            f"This is a {foreign.model_type!r} model, which cannot be converted to an MM1. The kinds that can are "
            f"{', '.join(_KINDS)}."
        )
    vision, layer = foreign.vision_config, foreign.vision_feature_layer
    strategy = foreign.vision_feature_select_strategy
    layers = vision.num_hidden_layers
    used = layers + 1 + layer if isinstance(layer, int) and layer < 0 else layer
    differing = {
        "vision_config.model_type": vision.model_type in _HAS_CLASS_TOKEN,
        "vision_feature_layer": isinstance(layer, int) and 1 <= used <= layers,
        "vision_feature_select_strategy": _HAS_CLASS_TOKEN.get(vision.model_type) == (strategy == "default"),
        "projector_hidden_act": foreign.projector_hidden_act == "gelu",
        "multimodal_projector_bias": foreign.multimodal_projector_bias,
    }
    for name, fits in differing.items():
        if not fits:
            value = vision.model_type if "." in name else getattr(foreign, name)
            raise ValueError(
                f"This {foreign.model_type!r} model cannot be converted to an MM1: {name} is {value!r}, which MM1 "
                "does not support."
            )
    vision = copy.deepcopy(vision)
    vision.num_hidden_layers = used
    if hasattr(vision, "vision_use_head"):
        vision.vision_use_head = False
    return MM1Config(
        vision_config=vision,
        text_config=copy.deepcopy(foreign.text_config),
        connector_config=MM1ConnectorConfig(connector_type="mlp"),
        image_token_id=foreign.image_token_index,
        tie_word_embeddings=bool(foreign.tie_word_embeddings),
    )


def _plain(name: str) -> str:
    """The name of a tensor in a form that is the same for all versions of transformers."""
    name = name.removeprefix("model.")
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", name)
    name = re.sub(r"^language_model\.model\.", "language_model.", name)
    return re.sub(r"^vision_tower\.vision_model\.", "vision_tower.", name)


def _unused_layers(foreign: PreTrainedConfig, config: MM1Config) -> list[str]:
    """Patterns for the names of encoder layers after the last one that MM1 uses."""
    layers = range(config.vision_config.num_hidden_layers, foreign.vision_config.num_hidden_layers)
    return [rf"vision_tower\..*layers\.{layer}\." for layer in layers]


def _tied(config: MM1Config) -> list[str]:
    # Some checkpoints hold the output head although it is tied to the embeddings.
    return [r"lm_head\.weight$"] if config.tie_word_embeddings else []


class _WithRow:
    """Extends an embedding table of `old_rows` rows to `rows`, with the old ones' mean. Row `row`, if set, is given."""

    def __init__(self, old_rows: int, rows: int, row: int | None):
        self.old_rows, self.rows, self.row = old_rows, rows, row

    def __call__(self, table: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        if table.shape[0] != self.old_rows:
            raise ValueError(f"the table has {table.shape[0]} rows, but vocab_size is {self.old_rows}")
        mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
        table = torch.cat([table, mean.expand(self.rows - table.shape[0], -1)])
        if self.row is not None and given is not None:
            table = torch.cat([table[: self.row], given[None].to(table.dtype), table[self.row + 1 :]])
        return table


def _tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer_config.json").is_file():
        return None
    with naming(folder / "tokenizer_config.json"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _processor(folder: Path, foreign: PreTrainedConfig, config: MM1Config, tokenizer: Any) -> MM1Processor | None:
    files = [folder / name for name in ("preprocessor_config.json", "processor_config.json")]
    described = next((file for file in files if file.is_file()), None)
    if described is None:
        return None
    with naming(described):
        return _make_processor(folder, foreign, config, tokenizer)


def _make_processor(folder: Path, foreign: PreTrainedConfig, config: MM1Config, tokenizer: Any) -> MM1Processor:
    given: Any = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    side = config.vision_config.image_size
    image_processor = MM1ImageProcessor(
        size={"height": side, "width": side},
        image_mean=list(given.image_mean),
        image_std=list(given.image_std),
        image_splitting="none",
        # LLaVA was trained on whole images, padded with the mean colour to a square.
        whole_image_resize="pad",
    )
    config.pixel_mean, config.pixel_scale = list(given.image_mean), list(given.image_std)
    return MM1Processor(
        image_processor,
        tokenizer,
        num_image_tokens=config.connector_config.num_tokens,
        image_token=tokenizer.convert_ids_to_tokens(foreign.image_token_index),
        chat_template=_chat_template(folder) or tokenizer.chat_template,
    )


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        with naming(folder / "chat_template.jinja"):
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    path = folder / "chat_template.json"
    return read_json(path).get("chat_template") if path.is_file() else None
