"""Converts decoders of transformers to `mm1_text` if the two compute the same: the weights are renamed, and the logits
stay equal. Other decoders are refused with the name of the field that differs; [`mm1_hf.assemble`] accepts them in
their own class."""

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig

from mm1_hf.convert.checkpoint import Checkpoint, naming, read_configuration, source_folder
from mm1_hf.convert.engine import (
    MAX_SHARD_SIZE,
    TOKENIZER_FILES,
    Made,
    copy_files,
    empty_model,
    new_folder,
    rows_of,
    target_names,
    write_model,
)
from mm1_hf.model.configuration_mm1 import MM1TextConfig
from mm1_hf.model.modeling_mm1_text import MM1TextForCausalLM


# Fields that are copied from the foreign configuration if it has them.
_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_bias",
    "attention_dropout",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
# Old checkpoints hold this buffer; newer versions of transformers compute it.
_UNUSED = (r"rotary_emb\.inv_freq$",)

Plan = dict[str, Made]


@dataclass(frozen=True)
class Family:
    """
    A kind of decoder that can be converted to `mm1_text`.

    Args:
        fixed: fields of [`MM1TextConfig`] whose value is the same for all decoders of this kind, and is not a field of
            their configuration.
        required: fields of the decoder's configuration that must have the given value, or be missing.
        plan: function that returns how each tensor is made; unset, all tensors have the same names in `mm1_text`.
    """

    fixed: dict[str, Any] = field(default_factory=dict)
    required: dict[str, Any] = field(default_factory=dict)
    plan: Callable[[MM1TextConfig, list[str]], Plan] | None = None


def _same_names(config: MM1TextConfig, targets: list[str]) -> Plan:
    return {name: Made((name,), lambda tensor: tensor) for name in targets}


def _phi3_plan(config: MM1TextConfig, targets: list[str]) -> Plan:
    """Phi-3 fuses the query, key and value projections, and the gate and up projections."""
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    width = config.intermediate_size
    rows = {
        "q_proj": ("qkv_proj", 0, queries),
        "k_proj": ("qkv_proj", queries, queries + keys),
        "v_proj": ("qkv_proj", queries + keys, queries + 2 * keys),
        "gate_proj": ("gate_up_proj", 0, width),
        "up_proj": ("gate_up_proj", width, 2 * width),
    }
    plan = _same_names(config, targets)
    for name in targets:
        for part, (fused, start, stop) in rows.items():
            if f".{part}." in name:
                plan[name] = Made((name.replace(part, fused),), rows_of(start, stop))
    return plan


def _mixtral_plan(config: MM1TextConfig, targets: list[str]) -> Plan:
    """Mixtral stores each expert's matrices separately: `w1` is the gate, `w3` the up and `w2` the down projection."""
    plan = _same_names(config, targets)
    for name in targets:
        layer, found, kind = name.partition(".mlp.")
        if not found:
            continue
        sparse = f"{layer}.block_sparse_moe"
        experts = [f"{sparse}.experts.{number}" for number in range(config.num_experts)]
        if kind == "gate.weight":
            plan[name] = Made((f"{sparse}.gate.weight",), lambda tensor: tensor)
        elif kind == "experts.gate_up_proj":
            plan[name] = Made(
                tuple(f"{expert}.{part}.weight" for expert in experts for part in ("w1", "w3")), _in_pairs
            )
        else:
            plan[name] = Made(tuple(f"{expert}.w2.weight" for expert in experts), lambda *each: torch.stack(each))
    return plan


def _in_pairs(*gates_and_ups: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.cat(pair) for pair in zip(gates_and_ups[::2], gates_and_ups[1::2], strict=True)])


# The table in `conversion/README.md` lists these kinds; a test compares the two.
FAMILIES = {
    "llama": Family(required={"mlp_bias": False}),
    "mistral": Family(required={"sliding_window": None}),
    "mixtral": Family(
        required={"sliding_window": None}, fixed={"moe_layer_period": 1, "norm_topk_prob": True}, plan=_mixtral_plan
    ),
    "phi3": Family(required={"sliding_window": None}, plan=_phi3_plan),
    "qwen2": Family(fixed={"attention_bias": True, "attention_output_bias": False}),
    "qwen3": Family(fixed={"qk_norm": True}),
    "smollm3": Family(required={"mlp_bias": False}),
}

_GEMMA = (
    "query_pre_attn_scalar, layer_types: Gemma 3 has norms before and after attention and feed-forward layers, scaled "
    "embeddings and sliding windows"
)
# Other decoders that users ask for, and how they differ from `mm1_text`.
REFUSED = {
    "olmo2": (
        "post_feedforward_layernorm: OLMo 2 normalises the outputs of attention and feed-forward layers, mm1_text "
        "their inputs"
    ),
    "gemma3_text": _GEMMA,
    "gemma3": _GEMMA,
    "phi": "layer_norm_eps: Phi has LayerNorm, attention in parallel with the feed-forward layer, and no gate",
    "gpt_neox": "layer_norm_eps: GPT-NeoX has LayerNorm, biases in attention and feed-forward layers, and no gate",
}


def text_config_of(config: PreTrainedConfig) -> MM1TextConfig:
    """
    Configuration of the `mm1_text` that computes the same as a decoder of transformers.

    Args:
        config: configuration of the decoder.

    Raises:
        ValueError: no `mm1_text` computes the same; the message names the field that differs.

    Example:

    ```python
    >>> from transformers import LlamaConfig, Qwen3Config
    >>> from mm1_hf.convert import text_config_of

    >>> text_config_of(Qwen3Config()).qk_norm
    True
    >>> text_config_of(LlamaConfig(mlp_bias=True))
    Traceback (most recent call last):
    ...
    ValueError: This 'llama' decoder cannot be converted to mm1_text: mlp_bias is True, but must be False. ...

    ```
    """
    kind = config.model_type
    if kind not in FAMILIES:
        reason = REFUSED.get(kind, f"the kinds that can be converted are {', '.join(FAMILIES)}")
        raise _not_convertible(kind, reason)
    family = FAMILIES[kind]
    for name, value in family.required.items():
        if getattr(config, name, value) != value:
            raise _not_convertible(kind, f"{name} is {getattr(config, name)}, but must be {value}")
    other_layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if other_layers:
        raise _not_convertible(
            kind, f"layer_types contains {', '.join(sorted(other_layers))}, but all layers must be full_attention"
        )
    if not all(getattr(config, "no_rope_layers", None) or ()):
        raise _not_convertible(
            kind, "no_rope_layers has entries 0 (layers without rotary positions), but all entries must be 1"
        )
    share = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    if share != 1.0:
        raise _not_convertible(kind, f"partial_rotary_factor is {share}, but must be 1.0")

    given = config.to_dict()
    fields = {name: given[name] for name in _FIELDS if given.get(name) is not None} | family.fixed
    if kind == "mixtral":
        fields |= {
            "num_experts": config.num_local_experts,
            "num_experts_per_tok": config.num_experts_per_tok,
            "router_aux_loss_coef": config.router_aux_loss_coef,
            "router_z_loss_coef": 0.0,
        }
    return MM1TextConfig(**fields)


def _not_convertible(kind: str, reason: str) -> ValueError:
    return ValueError(
        f"This {kind!r} decoder cannot be converted to mm1_text: {reason}. Use it without conversion: mm1_hf.assemble "
        "accepts it in its own class."
    )


def convert_decoder(
    source: str | PathLike,
    output: str | PathLike,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    allow_pickle: bool = False,
) -> None:
    """
    Converts a decoder of transformers to an `mm1_text` with equal logits, and copies its tokenizer.

    Args:
        source: folder or Hub id of the decoder.
        output: folder to write. It must not exist yet, or be empty.
        dtype: dtype of the written weights; unset, the dtype in the checkpoint.
        max_shard_size: maximum size of a written file, which also bounds the memory that the conversion needs.
        allow_pickle: whether to read pickled weights.

    Raises:
        ValueError: the decoder cannot be converted, or the checkpoint does not have the tensors that its configuration
            describes.
    """
    folder = source_folder(source, ["*.txt", "*.tiktoken", *(["*.bin"] if allow_pickle else [])])
    foreign, config = read_configuration(folder, text_config_of)
    with naming(folder / "config.json"):
        model = empty_model(MM1TextForCausalLM, config)
        plan = (FAMILIES[foreign.model_type].plan or _same_names)(config, target_names(model))
    # Some checkpoints hold the output head although it is tied to the embeddings.
    unused = [*_UNUSED, r"^lm_head\.weight$"] if config.tie_word_embeddings else _UNUSED
    with new_folder(output) as partial:
        write_model(
            partial,
            model,
            plan,
            Checkpoint(folder, allow_pickle=allow_pickle),
            unused=unused,
            dtype=dtype,
            max_shard_size=max_shard_size,
        )
        copy_files(folder, partial, [*TOKENIZER_FILES, "generation_config.json"])
