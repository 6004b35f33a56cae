"""Loss on batches that were not trained on."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> float:
    """
    The model's own loss per target.

    Args:
        model: an MM1, with or without adapters; it is left in evaluation mode.
        batches:
            as a collator or a [`~mm1_hf.data.mixture.Mixture`] makes them; what the model does not take is left out.

    Raises:
        ValueError: no batch has a target.
    """
    model.eval()
    total, targets = 0.0, 0
    for batch in batches:
        names = ("input_ids", "attention_mask", "labels", "segment_ids", "pixel_values")
        inputs = {name: batch[name].to(model.device) for name in names if name in batch}
        number = int((inputs["labels"][:, 1:] != -100).sum())
        total += float(model(**inputs).loss) * number
        targets += number
    if not targets:
        raise ValueError("There is nothing to measure on: no batch has a target.")
    return total / targets
