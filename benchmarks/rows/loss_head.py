"""
The head and its loss, forward and backward, over positions of which half are images and so have no target: MM1's, which
computes only what has a target, in chunks; transformers' default, which computes all logits; torch's own fused loss where it
has one; and Liger's where it is installed.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from transformers.loss.loss_utils import ForCausalLMLoss

from benchmarks.measuring import Case, Report, empty, interleaved, peak_memory
from benchmarks.scales import Scale
from mm1_hf.model.losses import live_targets
from mm1_hf.model.modeling_mm1_text import NextTokenHeadMixin


class Head(NextTokenHeadMixin):
    """What the mixin asks of a model."""

    def __init__(self, head: nn.Linear):
        self.config = SimpleNamespace()
        self.lm_head = head
        self.loss_function = ForCausalLMLoss


def contestants(head: nn.Linear, states: torch.Tensor, labels: torch.Tensor) -> dict[str, Case]:
    """The losses by name, each as a forward and a backward pass."""
    number = int((labels != -100).sum())
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)

    def ours() -> torch.Tensor:
        loss = Head(head).logits_and_loss(states, live_targets(labels, None), True, 0, number, 0.0)[1]
        assert loss is not None
        return loss

    def default() -> torch.Tensor:
        return ForCausalLMLoss(head(states), labels, head.out_features, num_items_in_batch=number)

    losses = {"MM1": ours, "transformers": default}
    if hasattr(F, "linear_cross_entropy"):
        losses["torch, fused"] = lambda: F.linear_cross_entropy(
            states.flatten(0, 1), head.weight, shifted.flatten(), ignore_index=-100
        )
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        pass
    else:
        fused = LigerFusedLinearCrossEntropyLoss(ignore_index=-100)
        losses["Liger, fused"] = lambda: fused(head.weight, states.flatten(0, 1), shifted.flatten())

    def step(loss) -> Case:
        def run() -> None:
            head.zero_grad()
            states.grad = None
            loss().backward()

        return run

    return {name: step(loss) for name, loss in losses.items()}


def measure(scale: Scale, report: Report) -> None:
    width = scale.text["hidden_size"]
    for vocabulary in scale.vocabularies:
        torch.manual_seed(0)
        with scale.device:
            head = nn.Linear(width, vocabulary, bias=False, dtype=scale.dtype)
            states = torch.randn(1, scale.positions, width, dtype=scale.dtype, requires_grad=True)
            labels = torch.randint(vocabulary, (1, scale.positions))
        labels[:, : scale.positions // 2] = -100
        cases = contestants(head, states, labels)
        case = {"vocabulary": vocabulary, "positions": scale.positions, "targets": scale.positions // 2}
        flops = 3 * 2 * scale.positions // 2 * width * vocabulary
        for name, timed in interleaved(cases, scale.device, scale.rounds).items():
            head.zero_grad()
            states.grad = None
            memory = None if "error" in timed else peak_memory(cases[name], scale.device)
            report.add("loss head", case, name, flops=flops, memory=memory, **timed)
        del head, states, labels, cases
        empty(scale.device)
