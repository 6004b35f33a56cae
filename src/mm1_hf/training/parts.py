"""The parts of an MM1 in training: which are frozen, at what rate each learns, and which weights decay."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn


PARTS = ("encoder", "connector", "decoder")


def part_of(name: str) -> str:
    """
    The part that a parameter belongs to; the head is the decoder's.

    Args:
        name: the parameter's, also in a wrapped model.
    """
    places = name.split(".")
    return "encoder" if "vision_tower" in places else "connector" if "connector" in places else "decoder"


def freeze(model: nn.Module, parts: Iterable[str]) -> None:
    """
    Excludes parts from training.

    Args:
        model: an MM1; it may be wrapped.
        parts: of `"encoder"`, `"connector"` and `"decoder"`.

    Raises:
        ValueError: there is no such part.

    Example:

    ```python
    >>> from mm1_hf import MM1Config, MM1ForConditionalGeneration
    >>> from mm1_hf.training.parts import freeze

    >>> model = MM1ForConditionalGeneration(MM1Config.from_preset("mm1-tiny"))
    >>> freeze(model, ["encoder", "decoder"])
    >>> {name.split(".")[1] for name, weight in model.named_parameters() if weight.requires_grad}
    {'connector'}

    ```
    """
    parts = _known(parts)
    for name, weight in model.named_parameters():
        if part_of(name) in parts:
            weight.requires_grad_(False)


def frozen_parts(model: nn.Module) -> set[str]:
    """
    The parts of which less than half of the weights is trained, such as those that only have adapters.

    Args:
        model: an MM1, or what PEFT made of one.
    """
    trained, whole = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for name, weight in model.named_parameters():
        whole[part_of(name)] += weight.numel()
        trained[part_of(name)] += weight.numel() * weight.requires_grad
    return {part for part in PARTS if 2 * trained[part] < whole[part]}


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, learning_rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """
    An optimizer's groups of what is trained. Matrices and token embeddings decay; norms, biases, class tokens, learned
    positions and queries do not.

    Args:
        model: an MM1; it may be wrapped.
        learning_rate: of every part that `learning_rates` does not name.
        weight_decay: of the weights that decay, as the optimizer takes it.
        learning_rates: of the parts that differ from `learning_rate`.

    Raises:
        ValueError: there is no such part.

    Example:

    ```python
    >>> from mm1_hf import MM1Config, MM1ForConditionalGeneration
    >>> from mm1_hf.training.parts import parameter_groups

    >>> model = MM1ForConditionalGeneration(MM1Config.from_preset("mm1-tiny"))
    >>> groups = parameter_groups(model, 1e-5, weight_decay=0.1, learning_rates={"connector": 1e-3})
    >>> sorted((group["lr"], group["weight_decay"]) for group in groups)
    [(1e-05, 0.0), (1e-05, 0.1), (0.001, 0.0), (0.001, 0.1)]

    ```
    """
    learning_rates = dict(learning_rates or {})
    _known(learning_rates)
    groups: dict[tuple, dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        rate = learning_rates.get(part_of(name), learning_rate)
        # Tables that are added or queried with come as (1, length, width), or as an embedding of positions.
        decays = (
            weight.ndim > 1 and not (weight.ndim == 3 and weight.shape[0] == 1) and "position_embedding" not in name
        )
        # A fused update takes weights of one device mesh only: experts may lie on a mesh of their own.
        key = rate, decays, getattr(weight, "device_mesh", None)
        group = groups.setdefault(key, {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0})
        group["params"].append(weight)
    return list(groups.values())


def _known(parts: Iterable[str]) -> set[str]:
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(f"There is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}.")
    return set(parts)
