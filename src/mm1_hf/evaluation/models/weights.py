"""By what a model's weights are recognised."""

import hashlib

from torch import nn


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
