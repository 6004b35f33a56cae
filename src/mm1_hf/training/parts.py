"""The parts of an MM1 in training: which parts are frozen, the learning rate of each part, and which weights decay."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn


PARTS = ("encoder", "connector", "decoder")


def part_of(name: str) -> str:
    """
    The part that a parameter belongs to. The head belongs to the decoder.

    Args:
        name: full name of the parameter, also in a wrapped model.
    """
    places = name.split(".")
    return "encoder" if "vision_tower" in places else "connector" if "connector" in places else "decoder"


def freeze(model: nn.Module, parts: Iterable[str]) -> None:
    """
    Excludes parts from training.

    Args:
        model: an MM1; it may be wrapped.
        parts: names of the parts: `"encoder"`, `"connector"`, `"decoder"`.

    Raises:
        ValueError: a name is not the name of a part.

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
    parts = known_parts(parts)
    for name, weight in model.named_parameters():
        if part_of(name) in parts:
            weight.requires_grad_(False)


def frozen_parts(model: nn.Module) -> set[str]:
    """
    The parts in which less than half of the weights are trained. A part counts as frozen if only its adapters are
    trained.

    Args:
        model: an MM1; it may be wrapped, for example by PEFT.
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
    The trained weights in parameter groups for an optimizer. Weight decay applies to matrices and token embeddings,
    but not to norms, biases, class tokens, position embeddings and the queries of the attention connector.

    Args:
        model: an MM1; it may be wrapped.
        learning_rate: learning rate of every part that `learning_rates` does not name.
        weight_decay: weight decay of the weights that decay, as the optimizer defines it.
        learning_rates: learning rates of the parts that differ from `learning_rate`, by name of the part.

    Raises:
        ValueError: a name in `learning_rates` is not the name of a part.

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
    known_parts(learning_rates)
    groups: dict[tuple, dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        rate = learning_rates.get(part_of(name), learning_rate)
        # Position embeddings and queries are (1, length, width), or have "position_embedding" in their names.
        decays = (
            weight.ndim > 1 and not (weight.ndim == 3 and weight.shape[0] == 1) and "position_embedding" not in name
        )
        # A fused update accepts only weights of one device mesh, and experts may have a different mesh.
        key = rate, decays, getattr(weight, "device_mesh", None)
        group = groups.setdefault(key, {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0})
        group["params"].append(weight)
    return list(groups.values())


def known_parts(parts: Iterable[str]) -> set[str]:
    """
    The names of parts, checked.

    Args:
        parts: the names.

    Raises:
        ValueError: a name is not the name of a part.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(f"There is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}.")
    return set(parts)
