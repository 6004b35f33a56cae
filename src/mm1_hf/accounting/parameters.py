"""Counts a model's parameters, part by part."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, TypeVar, cast

import torch
from torch import nn

from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration, MM1Model


# What transformers' mixtures of experts call their number of experts and how many of them a token takes.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k")

Kind = TypeVar("Kind", bound=nn.Module)


@dataclass(frozen=True)
class PartCount:
    """
    Numbers of parameters.

    Args:
        parameters: all of them.
        active: those that one token meets: all but the experts that it is not sent to.
        trainable: those with `requires_grad`.
    """

    parameters: int = 0
    active: int = 0
    trainable: int = 0

    def __add__(self, other: "PartCount") -> "PartCount":
        return PartCount(
            self.parameters + other.parameters, self.active + other.active, self.trainable + other.trainable
        )


@dataclass(frozen=True)
class ParameterCount:
    """
    A model's parameters by part.

    Args:
        encoder: the image encoder, as far as MM1 uses it (without the norm and the pooling after its last layer).
        connector: what lies between the encoder and the decoder.
        decoder: the decoder without embeddings and head, as the papers count N; experts and routers are in it.
        embeddings: the decoder's token embeddings, and learned positions where it has them.
        head: the projection to the vocabulary; 0 where it shares the embeddings' weight.
        adapters: what PEFT has added, such as LoRA's matrices.
    """

    encoder: PartCount
    connector: PartCount
    decoder: PartCount
    embeddings: PartCount
    head: PartCount
    adapters: PartCount

    @property
    def total(self) -> PartCount:
        """The sum over all parts."""
        return sum((part for _, part in self.parts()), PartCount())

    def parts(self) -> Iterator[tuple[str, PartCount]]:
        """Name and count of each part, in the order of the data; adapters only where there are any."""
        for field in fields(self):
            part = getattr(self, field.name)
            if part.parameters or field.name != "adapters":
                yield "image encoder" if field.name == "encoder" else field.name, part


def count_parameters(model_or_config: nn.Module | MM1Config) -> ParameterCount:
    """
    Counts the parameters of an MM1.

    A configuration is built on the meta device, which takes no memory: the 64B preset takes a fraction of a second. A
    model may be wrapped (PEFT, data parallelism). The copy that PEFT keeps of a module that it trains whole is not
    counted. Weights in packed storage, as 4-bit quantisation has them, count as stored. The experts of a foreign
    decoder that does not say how many of them a token takes count as active.

    Args:
        model_or_config: an [`MM1Config`], [`MM1Model`] or [`MM1ForConditionalGeneration`].

    Raises:
        ValueError: there is no MM1 in it.

    Example:

    ```python
    >>> from mm1_hf import MM1Config
    >>> from mm1_hf.accounting.parameters import count_parameters

    >>> count_parameters(MM1Config.from_preset("mm1-3b")).connector.parameters
    31056704

    ```
    """
    model = model_or_config
    if isinstance(model, MM1Config):
        with torch.device("meta"):
            model = MM1ForConditionalGeneration(model)
    core = _first(model, MM1Model)
    if core is None:
        raise ValueError(
            "Parameters are counted of an MM1Config, an MM1Model or an MM1ForConditionalGeneration, which may be "
            f"wrapped; got {type(model_or_config).__name__}. For any other model call its num_parameters()."
        )
    whole = _first(model, MM1ForConditionalGeneration)
    decoder = core.language_model
    modules: list[tuple[str, nn.Module]]
    modules = [("embeddings", module) for module in decoder.modules() if isinstance(module, nn.Embedding)]
    modules += [("encoder", core.vision_tower), ("connector", core.connector), ("decoder", decoder)]
    modules += [] if whole is None else [("head", whole.lm_head)]
    part_of: dict[nn.Parameter, str] = dict.fromkeys(_adapter_parameters(model), "adapters")
    for name, module in modules:
        for parameter in module.parameters():
            # A shared weight belongs to the first part that has it: a tied head counts as embeddings.
            part_of.setdefault(parameter, name)

    experts, (chosen, number_of_experts) = expert_parameters(decoder), _routing(decoder.config)
    unused = _kept_originals(model)
    counts = {field.name: PartCount() for field in fields(ParameterCount)}
    for parameter in model.parameters():
        if parameter in unused:
            continue
        number = parameter.numel()
        active = number * chosen // number_of_experts if parameter in experts else number
        # What belongs to no part was put around the model, such as a learned prompt.
        name = part_of.get(parameter, "adapters")
        counts[name] += PartCount(number, active, number if parameter.requires_grad else 0)
    return ParameterCount(**counts)


def _first(model: nn.Module, kind: type[Kind]) -> Kind | None:
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return next((module for module in modules if isinstance(module, kind)), None)


def _adapter_parameters(model: nn.Module) -> set[nn.Parameter]:
    """What PEFT's layers name as their own; a module that is trained whole stays a part of the model."""
    adapters: set[nn.Parameter] = set()
    for module in model.modules():
        for path in getattr(module, "adapter_layer_names", ()):
            added = reduce(lambda inner, name: getattr(inner, name, None), path.split("."), module)
            if path != "modules_to_save" and isinstance(added, nn.Module):
                adapters.update(added.parameters())
    return adapters


def _kept_originals(model: nn.Module) -> set[nn.Parameter]:
    """The weights that PEFT keeps beside the trained copy of a module, and does not use."""
    return {
        parameter
        for module in model.modules()
        if "modules_to_save" in getattr(module, "adapter_layer_names", ())
        for parameter in cast(nn.Module, module.original_module).parameters()
    }


def expert_parameters(decoder: nn.Module) -> set[nn.Parameter]:
    """
    The parameters of routed experts: all of transformers' decoders call their module `experts`.

    Args:
        decoder: any; a dense one has none.
    """
    named = decoder.named_modules()
    return {
        parameter for name, module in named if name.split(".")[-1] == "experts" for parameter in module.parameters()
    }


def active_share(decoder: nn.Module) -> float:
    """
    The share of a sparse layer's experts that a token is sent to; 1 where there are none.

    Args:
        decoder: with a configuration of transformers'.
    """
    chosen, number = _routing(decoder.config)
    return chosen / number


def _routing(text_config: Any) -> tuple[int, int]:
    """How many experts a token takes, and of how many."""
    chosen, number = (
        next((getattr(text_config, name) for name in names if getattr(text_config, name, None)), None)
        for names in (_EXPERTS_PER_TOKEN, _EXPERTS)
    )
    return (chosen, number) if chosen and number else (1, 1)


def parameter_table(model_or_config: nn.Module | MM1Config) -> str:
    """
    The parameters of each part as an aligned table for a terminal: all, those of them that a token meets where there
    are experts, and those that are trained where a model is given.

    Args:
        model_or_config: as [`count_parameters`] takes it.

    Raises:
        ValueError: there is no MM1 in it.

    Example:

    ```python
    >>> from mm1_hf import MM1Config
    >>> from mm1_hf.accounting.parameters import parameter_table

    >>> print(parameter_table(MM1Config.from_preset("mm1-tiny")))
    part           parameters  share
    image encoder      36,544  13.3%
    connector          25,264   9.2%
    decoder           148,032  53.8%
    embeddings         32,768  11.9%
    head               32,768  11.9%
    total             275,376   100%

    ```
    """
    count = count_parameters(model_or_config)
    total = count.total
    has_experts, has_weights = total.active < total.parameters, isinstance(model_or_config, nn.Module)
    rows = [["part", "parameters", "share", *["active"] * has_experts, *["trained"] * has_weights]]
    for name, part in [*count.parts(), ("total", total)]:
        share = part.parameters / total.parameters
        row = [name, f"{part.parameters:,}", "100%" if name == "total" else f"{share:.1%}"]
        row += [f"{part.active:,}"] * has_experts + [f"{part.trainable:,}"] * has_weights
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )
