"""Counts the parameters of a model by part."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, TypeVar, cast

import torch
from torch import nn

from mm1_hf.model.configuration_mm1 import MM1Config
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration, MM1Model


# Names of the number of experts, and of the number of experts per token, in the mixtures of experts of transformers.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k")

Kind = TypeVar("Kind", bound=nn.Module)


@dataclass(frozen=True)
class PartCount:
    """
    Numbers of parameters of one part.

    Args:
        parameters: number of all parameters.
        active: number of parameters that one token uses: all except the experts that it is not sent to.
        trainable: number of parameters with `requires_grad`.
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
    The parameters of a model by part.

    Args:
        encoder: the image encoder, as far as MM1 uses it (without the norm and the pooling after its last layer).
        connector: the connector between encoder and decoder.
        decoder: the decoder with its experts and routers, but without embeddings and head, which is the papers' N.
        embeddings: the decoder's token embeddings and, if it has them, its position embeddings.
        head: the projection to the vocabulary; 0 if it shares the weight of the embeddings.
        adapters: the parameters that PEFT added, for example LoRA's matrices.
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
        """Name and count of each part, in the order of the fields; adapters only if there are any."""
        for field in fields(self):
            part = getattr(self, field.name)
            if part.parameters or field.name != "adapters":
                yield "image encoder" if field.name == "encoder" else field.name, part


def count_parameters(model_or_config: nn.Module | MM1Config) -> ParameterCount:
    """
    Counts the parameters of an MM1.

    The model of a configuration is built on the meta device, which takes no memory; for the 64B preset this takes a
    fraction of a second. A model may be wrapped, for example by PEFT or for data parallelism. If PEFT trains a copy of
    a whole module, only the copy is counted. Packed weights, as in 4-bit quantisation, are counted as stored. If the
    configuration of another decoder does not state the number of experts per token, all its experts count as active.

    Args:
        model_or_config: an [`MM1Config`], [`MM1Model`] or [`MM1ForConditionalGeneration`].

    Raises:
        ValueError: `model_or_config` is not an MM1 and does not contain one.

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
            "Pass an MM1Config, an MM1Model or an MM1ForConditionalGeneration (it may be wrapped) to count its "
            f"parameters; got {type(model_or_config).__name__}. For any other model, call its num_parameters()."
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
            # A shared weight belongs to the first part that contains it: a tied head counts as embeddings.
            part_of.setdefault(parameter, name)

    experts, (chosen, number_of_experts) = expert_parameters(decoder), _routing(decoder.config)
    unused = _kept_originals(model)
    counts = {field.name: PartCount() for field in fields(ParameterCount)}
    for parameter in model.parameters():
        if parameter in unused:
            continue
        number = parameter.numel()
        active = number * chosen // number_of_experts if parameter in experts else number
        # A parameter of no part was added around the model, for example PEFT's prompt embeddings.
        name = part_of.get(parameter, "adapters")
        counts[name] += PartCount(number, active, number if parameter.requires_grad else 0)
    return ParameterCount(**counts)


def _first(model: nn.Module, kind: type[Kind]) -> Kind | None:
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return next((module for module in modules if isinstance(module, kind)), None)


def _adapter_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that PEFT added in its layers, without the copies of modules that PEFT trains as a whole."""
    adapters: set[nn.Parameter] = set()
    for module in model.modules():
        for path in getattr(module, "adapter_layer_names", ()):
            added = reduce(lambda inner, name: getattr(inner, name, None), path.split("."), module)
            if path != "modules_to_save" and isinstance(added, nn.Module):
                adapters.update(added.parameters())
    return adapters


def _kept_originals(model: nn.Module) -> set[nn.Parameter]:
    """Weights of the original modules that PEFT keeps beside their trained copies, and does not use."""
    return {
        parameter
        for module in model.modules()
        if "modules_to_save" in getattr(module, "adapter_layer_names", ())
        for parameter in cast(nn.Module, module.original_module).parameters()
    }


def expert_parameters(decoder: nn.Module) -> set[nn.Parameter]:
    """
    Returns the parameters of the routed experts. All decoders of transformers name the module of these `experts`.

    Args:
        decoder: any decoder; for a dense one the result is empty.
    """
    named = decoder.named_modules()
    return {
        parameter for name, module in named if name.split(".")[-1] == "experts" for parameter in module.parameters()
    }


def active_share(decoder: nn.Module) -> float:
    """
    The share of a sparse layer's experts that a token is sent to; 1 without experts, or if their number is unknown.

    Args:
        decoder: a decoder of transformers, with its configuration.
    """
    chosen, number = _routing(decoder.config)
    return chosen / number


def _routing(text_config: Any) -> tuple[int, int]:
    """The number of experts per token and the number of all experts; `(1, 1)` if one of them is not configured."""
    chosen, number = (
        next((getattr(text_config, name) for name in names if getattr(text_config, name, None)), None)
        for names in (_EXPERTS_PER_TOKEN, _EXPERTS)
    )
    return (chosen, number) if chosen and number else (1, 1)


def parameter_table(model_or_config: nn.Module | MM1Config) -> str:
    """
    Formats the parameters of each part as an aligned table for a terminal. If there are experts, a column shows the
    active parameters; if a model is given rather than a configuration, a column shows the trainable parameters.

    Args:
        model_or_config: a model or configuration, as for [`count_parameters`].

    Raises:
        ValueError: `model_or_config` is not an MM1 and does not contain one.

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
