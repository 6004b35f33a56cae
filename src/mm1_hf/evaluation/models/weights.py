"""By what a model's weights are recognised, and whether scores are those of a model."""

import hashlib
import json
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForImageTextToText


# Of each tensor, so that also the largest models take seconds. Training changes nearly all values.
_VALUES = 64


def weights_digest(model: nn.Module) -> str:
    """
    A digest of 64 evenly spread values of every parameter: a model that was trained further in the same folder has another
    one.

    Args:
        model: the model.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().reshape(-1)
        values = values[:: max(1, len(values) // _VALUES)].float().cpu()
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


def require_measured(results: str | Path, folder: str | Path) -> None:
    """
    Checks that the scores of a run are those of a model.

    Args:
        results: the `results.json` of the run.
        folder: folder of the model or adapter, which is loaded for it.

    Raises:
        ValueError: the run measured other weights, or it does not say which.
    """
    try:
        measured = json.loads(Path(results).read_text(encoding="utf-8"))["model"]
        name, digest, dtype = (measured.get(key) for key in ("name", "weights", "dtype"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{results} does not say which model it measured. Give the results.json that `mm1 eval` wrote, unchanged."
        ) from error
    if digest is None:
        raise ValueError(
            f"{results} is of the endpoint {name!r:.100}, which does not say what weights it has. Measure the folder "
            f"itself: mm1 eval --model {folder}."
        )
    dtype = getattr(torch, str(dtype), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{results} names no dtype of torch. Give the results.json that `mm1 eval` wrote, unchanged.")
    # In the dtype in which it was measured, because the values are rounded to it.
    own = weights_digest(AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype))
    if own != digest:
        raise ValueError(
            f"{results} is of {name!r:.100} with other weights ({digest}) than {folder} has ({own}): it was trained "
            f"further, or is another model. Measure it again: mm1 eval --model {folder}."
        )
