"""Loads a model to evaluate."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mm1_hf.evaluation.models.local import LocalModel
from mm1_hf.evaluation.models.mm1 import MM1LocalModel
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.training.machine import this_machine


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    batch_size: int | None = None,
    cache_bytes: int = 2**31,
) -> LocalModel:
    """
    Loads a model and its processor.

    Args:
        name: folder or Hub id of any image-text-to-text model of transformers.
        revision: branch, tag or commit of the Hub.
        dtype: dtype of the weights, such as `"float32"`; unset, what this machine computes fastest in.
        device: where to run it; unset, the accelerator if there is one.
        trust_remote_code: whether code of the model's repository may be run.
        batch_size: see [`LocalModel`].
        cache_bytes: see [`MM1LocalModel`].

    Raises:
        ValueError: the model is not one for images and text.
    """
    machine = this_machine()
    device = machine.device if device is None else device
    if dtype is None:
        # What this machine's accelerator computes fastest in need not suit another device.
        dtype = machine.dtype if torch.device(device).type == machine.device.type else torch.float32
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, **hub).to(device)
    processor = AutoProcessor.from_pretrained(name, **hub)
    settings: dict[str, Any] = {"batch_size": batch_size, "name": name, "revision": revision}
    if isinstance(model, MM1ForConditionalGeneration):
        return MM1LocalModel(model, processor, cache_bytes=cache_bytes, **settings)
    return LocalModel(model, processor, **settings)
