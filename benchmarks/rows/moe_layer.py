"""
A layer of experts, forward and backward, with the implementations that transformers has, compared with a dense layer of the
size that a token uses, and with the layers of Qwen3-MoE and Mixtral.
"""

from typing import Any

import torch
from torch import nn
from transformers import MixtralConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from benchmarks.measuring import Case, Report, empty, interleaved
from benchmarks.scales import Scale
from mm1_hf import MM1TextConfig
from mm1_hf.model.modeling_mm1_text import MM1TextMLP, MM1TextSparseMLP


CHOICES = 2


def layer(kind: type[nn.Module], config: Any, implementation: str, scale: Scale) -> nn.Module:
    """A layer with random weights."""
    config._experts_implementation = implementation
    with scale.device:
        module = kind(config).to(scale.dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    return module


def sizes(scale: Scale, experts: int) -> dict[str, int]:
    return {
        "hidden_size": scale.text["hidden_size"],
        "num_experts": experts,
        "num_experts_per_tok": CHOICES,
        "moe_intermediate_size": scale.expert_size,
    }


def layers(scale: Scale, experts: int) -> dict[str, nn.Module]:
    """The layers by name. The one of all experts in turn, `eager`, is the reference."""
    ours = sizes(scale, experts)
    # Mixtral's name of the width of an expert.
    mixtral = {"num_local_experts": experts, "intermediate_size": scale.expert_size} | {
        name: ours[name] for name in ("hidden_size", "num_experts_per_tok")
    }
    dense = MM1TextConfig(hidden_size=ours["hidden_size"], intermediate_size=CHOICES * scale.expert_size)
    return {
        "grouped": layer(MM1TextSparseMLP, MM1TextConfig(**ours), "grouped_mm", scale),
        "eager": layer(MM1TextSparseMLP, MM1TextConfig(**ours), "eager", scale),
        "dense": layer(MM1TextMLP, dense, "eager", scale),
        "Qwen3-MoE, grouped": layer(Qwen3MoeSparseMoeBlock, Qwen3MoeConfig(**ours), "grouped_mm", scale),
        "Mixtral, grouped": layer(MixtralSparseMoeBlock, MixtralConfig(**mixtral), "grouped_mm", scale),
    }


def step(module: nn.Module, states: torch.Tensor) -> Case:
    def run() -> None:
        module.zero_grad()
        output = module(states)
        # Some layers also return their router's logits.
        output = output[0] if isinstance(output, tuple) else output
        output.backward(states)

    return run


def compiled_layers(scale: Scale, found: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The grouped and the dense layer, compiled."""
    return {
        f"{name}, compiled": torch.compile(found[name], dynamic=True, backend=scale.backend)
        for name in ("grouped", "dense")
    }


def states_of(scale: Scale, tokens: int) -> torch.Tensor:
    shape = (1, tokens, scale.text["hidden_size"])
    return torch.randn(shape, device=scale.device, dtype=scale.dtype, requires_grad=True)


def prepare(scale: Scale) -> None:
    found = layers(scale, scale.experts[0])
    for module in compiled_layers(scale, found).values():
        for tokens in scale.layer_tokens[:2]:
            step(module, states_of(scale, tokens))()
    del found
    empty(scale.device)


def measure(scale: Scale, report: Report) -> None:
    width = scale.text["hidden_size"]
    for experts in scale.experts:
        found = layers(scale, experts)
        found |= compiled_layers(scale, found)
        expert_bytes = sum(weight.nbytes for weight in found["grouped"].experts.parameters())
        for tokens in scale.layer_tokens:
            states = states_of(scale, tokens)
            cases = {name: step(module, states) for name, module in found.items()}
            # Forward and backward: three products of a token with each matrix that it uses.
            flops = 3 * 2 * tokens * 3 * width * CHOICES * scale.expert_size
            for name, timed in interleaved(cases, scale.device, scale.rounds).items():
                dense = name.startswith("dense")
                # The weights are read twice, and their gradients written once.
                moved = (expert_bytes * CHOICES // experts if dense else expert_bytes) * 3
                case = {"experts": experts, "tokens": tokens}
                report.add("MoE layer", case, name, flops=flops, bytes=moved, **timed)
            del states, cases
        del found
        empty(scale.device)
