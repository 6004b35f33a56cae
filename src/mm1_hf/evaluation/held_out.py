"""Cross-entropy on batches that were not trained on."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn

from mm1_hf.evaluation.modes import evaluation_mode
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.training.metrics import TargetLosses


_INPUTS = ("input_ids", "attention_mask", "labels", "segment_ids", "pixel_values")


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> float:
    """
    The mean cross-entropy over the targets of all batches, in nats per token. The z-loss and the router's losses, which
    training adds, are not part of it, so that dense and sparse models can be compared.

    Args:
        model: an MM1, with or without adapters around it. It is measured in evaluation mode, and left in the mode it was in.
        batches:
            batches of a collator or a [`~mm1_hf.data.mixture.Mixture`]; entries that the model does not take are ignored.

    Raises:
        ValueError: no batch has a target.
    """
    mm1 = next(module for module in model.modules() if isinstance(module, MM1ForConditionalGeneration))
    losses = TargetLosses()
    total, targets = 0.0, 0
    with evaluation_mode(model), losses.of(mm1):
        for batch in batches:
            inputs = {name: batch[name].to(mm1.device) for name in _INPUTS if name in batch}
            model(**inputs, skip_logits=True)
            found = cast(torch.Tensor, losses.last)
            total += found.double().sum().item()
            targets += found.numel()
    if not targets:
        raise ValueError("The held-out loss needs targets, and no batch has any: give batches with labels.")
    return total / targets
