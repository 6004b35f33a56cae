"""Decoders of transformers as `mm1_text`, where they compute the same: weights renamed, no logit changed. Those that do not
are refused by the name of the field that differs; [`mm1_hf.assemble`] takes them in their own class."""

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from mm1_hf.convert.checkpoint import Checkpoint, source_folder
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


# Taken over from the foreign configuration where it has them.
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
# Kept in old checkpoints, computed since.
_UNUSED = (r"rotary_emb\.inv_freq$",)

Plan = dict[str, Made]


@dataclass(frozen=True)
class Family:
    """
    One kind of decoder that maps onto `mm1_text`.

    Args:
        fixed: fields of `mm1_text` that the kind has without saying so.
        required: fields of the kind that must have this value, or be missing.
        plan: what tensors are made of, where they are not called what `mm1_text` calls them.
    """

    fixed: dict[str, Any] = field(default_factory=dict)
    required: dict[str, Any] = field(default_factory=dict)
    plan: Callable[[MM1TextConfig, list[str]], Plan] | None = None


def _same_names(config: MM1TextConfig, targets: list[str]) -> Plan:
    return {name: Made((name,), lambda tensor: tensor) for name in targets}


def _phi3_plan(config: MM1TextConfig, targets: list[str]) -> Plan:
    """Phi 3 fuses queries, keys and values, and gates with what they gate."""
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
    """Mixtral keeps each expert's matrices apart: `w1` is the gate, `w3` what it gates, `w2` the way back."""
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


# A table of what maps is in `conversion/README.md`, which a test holds to these.
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

_GEMMA = "query_pre_attn_scalar, layer_types: Gemma 3 has norms on both sides, scaled embeddings and sliding windows"
# What keeps the other decoders that users ask for from mapping, by what `mm1_text` does instead.
REFUSED = {
    "olmo2": "post_feedforward_layernorm: OLMo 2 norms what attention and feed-forward give, mm1_text what they take",
    "gemma3_text": _GEMMA,
    "gemma3": _GEMMA,
    "phi": "layer_norm_eps: Phi has LayerNorm, attention beside the feed-forward layer and no gate",
    "gpt_neox": "layer_norm_eps: GPT-NeoX has LayerNorm, biases everywhere and no gate",
}


def text_config_of(config: PreTrainedConfig) -> MM1TextConfig:
    """
    The `mm1_text` that computes what a decoder of transformers computes.

    Args:
        config: the decoder's.

    Raises:
        ValueError: there is none; the message names the field that differs.

    Example:

    ```python
    >>> from transformers import LlamaConfig, Qwen3Config
    >>> from mm1_hf.convert import text_config_of

    >>> text_config_of(Qwen3Config()).qk_norm
    True
    >>> text_config_of(LlamaConfig(mlp_bias=True))
    Traceback (most recent call last):
    ...
    ValueError: This 'llama' decoder is no mm1_text: mlp_bias is True, and has to be False. ...

    ```
    """
    kind = config.model_type
    if kind not in FAMILIES:
        reason = REFUSED.get(kind, f"the kinds that map are {', '.join(FAMILIES)}")
        raise _no_mm1_text(kind, reason)
    family = FAMILIES[kind]
    for name, value in family.required.items():
        if getattr(config, name, value) != value:
            raise _no_mm1_text(kind, f"{name} is {getattr(config, name)}, and has to be {value}")
    other_layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if other_layers:
        raise _no_mm1_text(kind, f"layer_types holds {', '.join(sorted(other_layers))}; all have to be full_attention")
    if not all(getattr(config, "no_rope_layers", None) or ()):
        raise _no_mm1_text(kind, "no_rope_layers leaves rotary positions out of some layers (0); all have to be 1")
    share = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    if share != 1.0:
        raise _no_mm1_text(kind, f"partial_rotary_factor is {share}, and has to be 1.0")

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


def _no_mm1_text(kind: str, reason: str) -> ValueError:
    return ValueError(
        f"This {kind!r} decoder is no mm1_text: {reason}. Use it in its own class, which mm1_hf.assemble takes as it is."
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
    Writes a decoder of transformers as an `mm1_text` with equal logits, its tokenizer beside it.

    Args:
        source: a folder or a Hub id.
        output: a folder, which must not exist.
        dtype: of the written weights; unset, the checkpoint's.
        max_shard_size: bounds the files that are written, and the memory.
        allow_pickle: whether to read pickled weights.

    Raises:
        ValueError: the decoder does not map, or the checkpoint does not hold what its configuration says.
    """
    folder = source_folder(source, ["*.txt", "*.tiktoken", *(["*.bin"] if allow_pickle else [])])
    foreign = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config = text_config_of(foreign)
    model = empty_model(MM1TextForCausalLM, config)
    plan = (FAMILIES[foreign.model_type].plan or _same_names)(config, target_names(model))
    # A tied head may be saved all the same.
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
