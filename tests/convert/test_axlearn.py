import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from mm1_hf import MM1TextForCausalLM
from mm1_hf.convert import convert_axlearn


V, D, N, K, H, HIDDEN, E, LAYERS = 48, 32, 4, 2, 8, 40, 4, 4
IDS = torch.randint(0, V, (2, 12), generator=torch.Generator().manual_seed(0))


def random_layers(sparse=False):
    """One dictionary per layer, every second of experts, in AXLearn's names and shapes."""
    layers = []
    for layer in range(LAYERS):
        shapes = {
            "self_attention/norm/scale": (D,),
            "self_attention/attention/i_proj/i_proj/q_proj/weight": (D, N, H),
            "self_attention/attention/i_proj/i_proj/k_proj/weight": (D, K, H),
            "self_attention/attention/i_proj/i_proj/v_proj/weight": (D, K, H),
            "self_attention/attention/o_proj/weight": (D, N, H),
            "feed_forward/norm/scale": (D,),
        }
        if sparse and layer % 2:
            experts = {"gate_weight": (D, E), "wi_0_weight": (E, D, HIDDEN), "wi_1_weight": (E, D, HIDDEN)}
            shapes |= {f"feed_forward/{name}": shape for name, shape in experts.items()}
            shapes["feed_forward/wo_weight"] = (E, HIDDEN, D)
        else:
            shapes |= {f"feed_forward/linear1_{i}/weight": (D, HIDDEN) for i in (0, 1)}
            shapes["feed_forward/linear2/weight"] = (HIDDEN, D)
        generator = torch.Generator().manual_seed(layer)
        layers.append({name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()})
    return layers


def random_ends(tied=False):
    generator = torch.Generator().manual_seed(99)
    shapes = {"emb/token_emb/weight": (V, D), "output_norm/scale": (D,)} | ({} if tied else {"lm_head/weight": (V, D)})
    return {f"decoder/{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def logits(ends, layers, ids):
    """What AXLearn's decoder computes: neighbouring channels are the pairs that rotary positions turn."""

    def norm(x, scale):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * scale

    def rotate(x):
        angles = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(H // 2) * 2 / H)
        turned = (
            torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            * torch.polar(torch.ones_like(angles), angles)[None, :, None]
        )
        return torch.view_as_real(turned).flatten(-2)

    def swiglu(x, gate, up, down):
        return (F.silu(x @ gate) * (x @ up)) @ down

    x = ends["decoder/emb/token_emb/weight"][ids]
    mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
    for layer in layers:
        y = norm(x, layer["self_attention/norm/scale"])
        query, key, value = (
            torch.einsum("btd,dnh->btnh", y, layer[f"self_attention/attention/i_proj/i_proj/{name}/weight"])
            for name in ("q_proj", "k_proj", "v_proj")
        )
        query, key = rotate(query), rotate(key).repeat_interleave(N // K, dim=2)
        value = value.repeat_interleave(N // K, dim=2)
        scores = torch.einsum("bqnh,bknh->bnqk", query, key) / H**0.5 + mask
        attended = torch.einsum("bnqk,bknh->bqnh", scores.softmax(-1), value)
        x = x + torch.einsum("bqnh,dnh->bqd", attended, layer["self_attention/attention/o_proj/weight"])
        y = norm(x, layer["feed_forward/norm/scale"])
        if "feed_forward/gate_weight" not in layer:
            parts = [layer[f"feed_forward/{name}/weight"] for name in ("linear1_0", "linear1_1", "linear2")]
            x = x + swiglu(y, *parts)
            continue
        gates, chosen = (y @ layer["feed_forward/gate_weight"]).softmax(-1).topk(2, dim=-1)
        gates = gates / gates.sum(-1, keepdim=True)
        names = ("wi_0_weight", "wi_1_weight", "wo_weight")
        every = torch.stack(
            [swiglu(y, *(layer[f"feed_forward/{name}"][e] for name in names)) for e in range(E)], dim=2
        )
        x = x + (every.gather(2, chosen[..., None].expand(-1, -1, -1, D)) * gates[..., None]).sum(2)
    head = ends.get("decoder/lm_head/weight", ends["decoder/emb/token_emb/weight"])
    return norm(x, ends["decoder/output_norm/scale"]) @ head.T


def flat(layers, layout):
    """The layers' part of the tree, one by one, stacked, or stacked by repeats of two."""
    if layout == "layers":
        return {
            f"decoder/transformer/layer{i}/{name}": w for i, layer in enumerate(layers) for name, w in layer.items()
        }
    if layout == "stacked":
        return {
            f"decoder/transformer/repeat/layer/{name}": torch.stack([e[name] for e in layers]) for name in layers[0]
        }
    return {
        f"decoder/transformer/repeat/layer/layer{place}/{name}": torch.stack([each[name] for each in layers[place::2]])
        for place in (0, 1)
        for name in layers[place]
    }


def check(folder, ends, layers):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(model) is MM1TextForCausalLM
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, logits(ends, layers, IDS), atol=1e-4, rtol=1e-4)
    return model


@pytest.mark.parametrize("layout", ["layers", "stacked", "repeats"])
def test_a_dense_decoder_in_a_numpy_archive(layout, tmp_path):
    ends, layers = random_ends(tied=layout == "stacked"), random_layers()
    tree = {**ends, **flat(layers, layout)}
    np.savez(tmp_path / "params.npz", **{name: weight.numpy() for name, weight in tree.items()})
    convert_axlearn(tmp_path / "params.npz", tmp_path / "converted")
    model = check(tmp_path / "converted", ends, layers)
    assert model.config.tie_word_embeddings == (layout == "stacked")


@pytest.mark.parametrize("layout", ["layers", "repeats"])
def test_a_mixture_of_experts_in_safetensors(layout, tmp_path):
    ends, layers = random_ends(), random_layers(sparse=True)
    tree = {name.replace("/", "."): weight for name, weight in {**ends, **flat(layers, layout)}.items()}
    save_file({f"model.{name}": weight for name, weight in tree.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    convert_axlearn(tmp_path, tmp_path / "converted", max_shard_size="20KB")
    config = check(tmp_path / "converted", ends, layers).config
    assert (config.num_experts, config.moe_layer_period, config.max_position_embeddings) == (E, 2, 64)


@pytest.mark.parametrize("grouped", [False, True])
def test_fused_projections(grouped, tmp_path):
    ends, layers = random_ends(), random_layers()
    prefix = "self_attention/attention/i_proj/i_proj"
    fused = []
    for layer in layers:
        if not grouped:
            for name in ("k_proj", "v_proj"):
                layer[f"{prefix}/{name}/weight"] = layer[f"{prefix}/{name}/weight"].repeat_interleave(N // K, dim=1)
        parts = [layer[f"{prefix}/{name}/weight"] for name in ("q_proj", "k_proj", "v_proj")]
        rest = {name: weight for name, weight in layer.items() if prefix not in name}
        fused.append({**rest, f"{prefix}/qkv_proj/weight": torch.cat(parts, 1) if grouped else torch.stack(parts)})
    np.savez(tmp_path / "a.npz", **{name: w.numpy() for name, w in {**ends, **flat(fused, "stacked")}.items()})
    if grouped:
        with pytest.raises(ValueError, match="Give num_key_value_heads"):
            convert_axlearn(tmp_path / "a.npz", tmp_path / "converted")
    convert_axlearn(tmp_path / "a.npz", tmp_path / "converted", **({"num_key_value_heads": K} if grouped else {}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "converted").eval()
    assert model.config.num_key_value_heads == (K if grouped else N)
    if not grouped:
        for layer in layers:
            for name in ("k_proj", "v_proj"):
                layer[f"{prefix}/{name}/weight"] = layer[f"{prefix}/{name}/weight"][:, :: N // K]
    check(tmp_path / "converted", ends, layers)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tree: tree.pop("decoder/output_norm/scale"), "missing decoder.output_norm.scale"),
        (
            lambda tree: tree.update(
                {"decoder/transformer/layer0/self_attention/attention/scale_query/norm/scale": 0}
            ),
            "not used decoder/transformer/layer0/self_attention/attention/scale_query/norm/scale",
        ),
        (lambda tree: tree.pop("decoder/emb/token_emb/weight"), "is not a decoder of AXLearn"),
        (lambda tree: tree.pop("decoder/transformer/layer2/feed_forward/linear2/weight"), "missing .*layer2.*linear2"),
    ],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
    tree = {**random_ends(), **flat(random_layers(), "layers")}
    change(tree)
    np.savez(tmp_path / "a.npz", **{name: np.asarray(weight, np.float32) for name, weight in tree.items()})
    with pytest.raises(ValueError, match=message):
        convert_axlearn(tmp_path / "a.npz", tmp_path / "converted")
