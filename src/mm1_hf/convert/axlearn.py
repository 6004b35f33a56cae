"""Converts decoders that were trained in AXLearn, the framework of MM1's authors, to `mm1_text`.

The checkpoint is the parameter tree of AXLearn's causal language model, flattened to names whose parts are separated
by `/` or `.`, in an `.npz` or safetensors file. It has these tensors (V: vocabulary size, D: model width, N: attention
heads, K: key-value heads, H: width of a head, F: hidden width of the feed-forward layers, E: experts):

| name under `decoder/` | shape |
|---|---|
| `emb/token_emb/weight` | V, D |
| `transformer/layerI/...` for each layer I | |
| or `transformer/repeat/layer/...`, with all layers stacked along an additional first dimension | |
| or `transformer/repeat/layer/layerJ/...`, stacked likewise, if each repeat has several layers J | |
| `.../self_attention/norm/scale`, `.../feed_forward/norm/scale` | D |
| `.../self_attention/attention/i_proj/i_proj/q_proj/weight` (`k_proj`, `v_proj`) | D, N, H (D, K, H) |
| or `.../i_proj/i_proj/qkv_proj/weight` | 3, D, N, H, or grouped D, N + 2K, H |
| `.../self_attention/attention/o_proj/weight` | D, N, H |
| `.../feed_forward/linear1_0/weight` (the gate), `linear1_1/weight` | D, F |
| `.../feed_forward/linear2/weight` | F, D |
| `.../feed_forward/gate_weight` (the router), in a layer of experts | D, E |
| `.../feed_forward/wi_0_weight` (the gate), `wi_1_weight` | E, D, F |
| `.../feed_forward/wo_weight` | E, F, D |
| `output_norm/scale` | D |
| `lm_head/weight`, unless tied | V, D |

For rotary positions, AXLearn rotates pairs of neighbouring channels, and `mm1_text` pairs of channels that are half a
head apart. The conversion therefore reorders the rows of the query and key projections.
"""

import re
from collections.abc import Callable
from os import PathLike
from typing import Any

import torch

from mm1_hf.convert.checkpoint import Checkpoint, naming, read_json, source_folder
from mm1_hf.convert.engine import MAX_LAYERS, MAX_SHARD_SIZE, Made, empty_model, new_folder, target_names, write_model
from mm1_hf.model.configuration_mm1 import MM1TextConfig
from mm1_hf.model.modeling_mm1_text import MM1TextForCausalLM


_ATTENTION = "self_attention.attention"
_FUSED = f"{_ATTENTION}.i_proj.i_proj.qkv_proj.weight"


class _Tree:
    """A flattened parameter tree: its tensor names, relative to `decoder` and joined by dots, and its layer layout."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.names = {re.sub(r"^.*?\bdecoder\.", "", name.replace("/", ".")): name for name in checkpoint}
        if "emb.token_emb.weight" not in self.names:
            raise ValueError(
                f"{checkpoint.path} is not a decoder of AXLearn: it has no decoder/emb/token_emb/weight. Flatten the "
                "parameters of the model to names such as decoder/transformer/layer0/self_attention/norm/scale."
            )
        prefix, self.stacked = "transformer.", False
        if any(name.startswith("transformer.repeat.") for name in self.names):
            prefix, self.stacked = "transformer.repeat.layer.", True
        inner = {
            int(found[1]) for name in self.names if (found := re.match(rf"{re.escape(prefix)}layer(\d+)\.", name))
        }
        self.prefix, self.inner = prefix, len(inner)
        norm = self.names.get(self._below(0, "self_attention.norm.scale"), "")
        if norm not in checkpoint:
            raise ValueError(
                f"{checkpoint.path} has no decoder.{self._below(0, 'self_attention.norm.scale')}. Check that it holds "
                "the whole decoder."
            )
        repeats = checkpoint.meta(norm).shape[0] if self.stacked else 1
        self.num_layers = repeats * max(self.inner, 1)
        if not 1 <= self.num_layers <= MAX_LAYERS:
            raise ValueError(
                f"{checkpoint.path} has {self.num_layers} layers; from 1 to {MAX_LAYERS} can be converted. Check the shapes "
                "of its tensors."
            )

    def _below(self, layer: int, name: str) -> str:
        number = f"layer{layer % self.inner if self.stacked else layer}." if self.inner else ""
        return f"{self.prefix}{number}{name}"

    def has(self, layer: int, name: str) -> bool:
        return self._below(layer, name) in self.names

    def shape(self, layer: int, name: str) -> tuple[int, ...]:
        """Shape of one layer's tensor. It is all 0 for a missing tensor; all missing tensors are reported later."""
        full = self.names.get(self._below(layer, name))
        if full is None:
            return (0, 0, 0, 0)
        return tuple(self.checkpoint.meta(full).shape)[1 if self.stacked else 0 :]

    def made(self, layer: int, names: list[str], make: Callable[..., torch.Tensor]) -> Made:
        full = tuple(self.names.get(self._below(layer, name), f"decoder.{self._below(layer, name)}") for name in names)
        return Made(full, make, layer // max(self.inner, 1) if self.stacked else None)


def convert_axlearn(
    source: str | PathLike,
    output: str | PathLike,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    **fields: Any,
) -> None:
    """
    Converts a decoder of AXLearn, dense or with experts, to an `mm1_text`. Its sizes are read from the shapes of the
    weights.

    Args:
        source: file, folder or Hub id of the checkpoint. A `config.json` in the folder sets fields of
            [`MM1TextConfig`].
        output: folder to write. It must not exist yet, or be empty.
        dtype: dtype of the written weights; unset, the dtype in the checkpoint.
        max_shard_size: maximum size of a written file, which also bounds the memory that the conversion needs.
        fields: fields of [`MM1TextConfig`] that cannot be read from the weights, such as `rope_parameters`, or
            `num_key_value_heads` if the projections are fused and grouped. They override `config.json`.

    Raises:
        ValueError: the checkpoint is not a parameter tree of an AXLearn decoder, or has parts that `mm1_text` does not
            have.
    """
    path = source_folder(source)
    checkpoint = Checkpoint(path)
    given = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    with naming(path):
        tree = _Tree(checkpoint)
        config = _configuration(tree, {**given, **fields})
        model = empty_model(MM1TextForCausalLM, config)
        plan = _plan(tree, config)
    with new_folder(output) as partial:
        write_model(
            partial,
            model,
            {name: plan[name] for name in target_names(model)},
            checkpoint,
            dtype=dtype,
            max_shard_size=max_shard_size,
        )


def _configuration(tree: _Tree, fields: dict[str, Any]) -> MM1TextConfig:
    vocab_size, width = tree.checkpoint.meta(tree.names["emb.token_emb.weight"]).shape
    sparse = [layer for layer in range(tree.num_layers) if tree.has(layer, "feed_forward.gate_weight")]
    dense = sorted(set(range(tree.num_layers)) - set(sparse))
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": tree.num_layers,
        "tie_word_embeddings": "lm_head.weight" not in tree.names,
        **_heads(tree, fields.get("num_key_value_heads")),
    }
    if sparse:
        period = sparse[0] + 1
        if sparse != [layer for layer in range(tree.num_layers) if (layer + 1) % period == 0]:
            raise ValueError(
                f"mm1_text can have experts only in every n-th layer, but {tree.checkpoint.path} has them in the "
                f"layers {sparse} (counted from 0)."
            )
        expert_width = tree.shape(sparse[0], "feed_forward.wi_0_weight")[-1]
        sizes |= {
            "num_experts": tree.shape(sparse[0], "feed_forward.gate_weight")[-1],
            "moe_layer_period": period,
            "moe_intermediate_size": expert_width,
            "intermediate_size": expert_width,
        }
    if dense:
        sizes["intermediate_size"] = tree.shape(dense[0], "feed_forward.linear1_0.weight")[-1]
    return MM1TextConfig(**{**sizes, **fields})


def _heads(tree: _Tree, key_value_heads: int | None) -> dict[str, int]:
    if tree.has(0, _FUSED):
        shape = tree.shape(0, _FUSED)
        if len(shape) == 4:
            heads = keys = shape[2]
        else:
            if key_value_heads is None:
                raise ValueError(
                    f"{tree.checkpoint.path} fuses its queries, keys and values into {shape[1]} heads, which does not "
                    "tell how many of them are key heads. Give num_key_value_heads."
                )
            keys = key_value_heads
            heads = shape[1] - 2 * keys
    else:
        if not tree.has(0, f"{_ATTENTION}.i_proj.i_proj.q_proj.weight"):
            raise ValueError(
                f"{tree.checkpoint.path} has no {_ATTENTION}.i_proj.i_proj.q_proj, so its attention does not use "
                "rotary positions. It cannot be converted, because mm1_text always uses them."
            )
        shape = tree.shape(0, f"{_ATTENTION}.i_proj.i_proj.q_proj.weight")
        heads = shape[1]
        keys = tree.shape(0, f"{_ATTENTION}.i_proj.i_proj.k_proj.weight")[1]
    return {"num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": shape[-1]}


def _halves(weight: torch.Tensor) -> torch.Tensor:
    """`(D, heads, H)` to `(heads * H, D)`. The two channels of each neighbouring pair are moved half a head apart."""
    rows = weight.permute(1, 2, 0)
    return torch.cat([rows[:, ::2], rows[:, 1::2]], dim=1).flatten(0, 1)


def _rows(weight: torch.Tensor) -> torch.Tensor:
    """`(D, heads, H)` to `(heads * H, D)`."""
    return weight.permute(1, 2, 0).flatten(0, 1)


def _columns(weight: torch.Tensor) -> torch.Tensor:
    """`(D, heads, H)` to `(D, heads * H)`."""
    return weight.flatten(1)


def _transposed(weight: torch.Tensor) -> torch.Tensor:
    return weight.transpose(-1, -2)


def _gates_and_ups(gates: torch.Tensor, ups: torch.Tensor) -> torch.Tensor:
    return torch.cat([gates, ups], dim=-1).transpose(-1, -2)


def _plan(tree: _Tree, config: MM1TextConfig) -> dict[str, Made]:
    def top(name: str) -> Made:
        return Made((tree.names.get(name, f"decoder.{name}"),), lambda tensor: tensor)

    plan = {
        "model.embed_tokens.weight": top("emb.token_emb.weight"),
        "model.norm.weight": top("output_norm.scale"),
        "lm_head.weight": top("lm_head.weight"),
    }
    for layer in range(config.num_hidden_layers):
        entries = {
            "input_layernorm.weight": tree.made(layer, ["self_attention.norm.scale"], lambda tensor: tensor),
            "post_attention_layernorm.weight": tree.made(layer, ["feed_forward.norm.scale"], lambda tensor: tensor),
            "self_attn.o_proj.weight": tree.made(layer, [f"{_ATTENTION}.o_proj.weight"], _columns),
        }
        for index, (name, make) in enumerate((("q_proj", _halves), ("k_proj", _halves), ("v_proj", _rows))):
            if tree.has(layer, _FUSED):
                entries[f"self_attn.{name}.weight"] = tree.made(layer, [_FUSED], _fused(config, index, make))
            else:
                part = f"{_ATTENTION}.i_proj.i_proj.{name}.weight"
                entries[f"self_attn.{name}.weight"] = tree.made(layer, [part], make)
        if config.is_sparse_layer(layer):
            parts = ["feed_forward.wi_0_weight", "feed_forward.wi_1_weight"]
            entries["mlp.gate.weight"] = tree.made(layer, ["feed_forward.gate_weight"], _transposed)
            entries["mlp.experts.gate_up_proj"] = tree.made(layer, parts, _gates_and_ups)
            entries["mlp.experts.down_proj"] = tree.made(layer, ["feed_forward.wo_weight"], _transposed)
        else:
            for name, linear in (("gate_proj", "linear1_0"), ("up_proj", "linear1_1"), ("down_proj", "linear2")):
                entries[f"mlp.{name}.weight"] = tree.made(layer, [f"feed_forward.{linear}.weight"], _transposed)
        plan |= {f"model.layers.{layer}.{name}": made for name, made in entries.items()}
    return plan


def _fused(config: MM1TextConfig, index: int, make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Takes queries (`index` 0), keys (1) or values (2) from fused projections, `(3, D, N, H)` or `(D, N + 2K, H)`."""
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    start = (0, queries, queries + keys)[index]
    stop = (queries, queries + keys, queries + 2 * keys)[index]
    return lambda fused: make(fused[index] if fused.dim() == 4 else fused[:, start:stop])
