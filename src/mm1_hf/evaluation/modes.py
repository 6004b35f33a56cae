"""Measuring a model without changing the mode that its owner left it in."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """
    Context manager: all modules of a model are in evaluation mode, and afterwards each is again in the mode it was in.

    Args:
        model: any module; some of its modules may be in training mode and others not.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
