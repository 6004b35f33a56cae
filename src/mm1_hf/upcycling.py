"""
Upcycling: makes a mixture of experts out of a dense model, with experts that start as copies of its feed-forward
layers. MM1, section 4.3, does not say how its experts are initialised. The reverse is to average the experts.
"""

import copy
from typing import Any, TypeVar

import torch
from transformers.modeling_utils import PreTrainedModel

from .model.configuration_mm1 import MM1TextConfig


Model = TypeVar("Model", bound=PreTrainedModel)


def upcycle(model: Model, num_experts: int, *, noise: float = 0.0, **fields: Any) -> Model:
    """
    Makes the decoder of a dense model sparse: every expert of a sparse layer is a copy of the dense feed-forward
    layer, and the routers are initialised at random. If the gates sum to 1 (`norm_topk_prob`) and no expert drops
    tokens, the logits are those of the dense model.

    Args:
        model: an MM1 with an `mm1_text` decoder, or such a decoder alone, with or without its head. It is not changed.
        num_experts: number of experts of each sparse layer.
        noise:
            Standard deviation of the noise that is added to the experts' weights, as a share of the standard deviation
            of these weights. With noise, the experts differ from the start, but the logits are not those of the dense
            model.
        fields: other fields of [`MM1TextConfig`], for example `moe_layer_period` or `router_aux_loss_coef`.

    Returns:
        A model of the same class, dtype and device.

    Raises:
        ValueError: the decoder is not a dense `mm1_text`, `moe_intermediate_size` is not the width of its feed-forward
            layers, or `noise` is negative.

    Example:

    ```python
    >>> from mm1_hf import MM1Config, MM1ForConditionalGeneration

    >>> dense = MM1ForConditionalGeneration(MM1Config.from_preset("mm1-tiny"))
    >>> sparse = upcycle(dense, 4, moe_layer_period=1)
    >>> sparse.config.text_config.num_experts
    4

    ```
    """
    dense = _mm1_text(model, "upcycle")
    if noise < 0:
        raise ValueError(
            f"noise={noise} is negative; pass 0, or a share of the weights' standard deviation, for example 0.01."
        )
    if dense.num_experts:
        raise ValueError(
            f"This decoder is sparse already, with num_experts={dense.num_experts}. Pass a dense decoder."
        )
    if fields.setdefault("moe_intermediate_size", dense.intermediate_size) != dense.intermediate_size:
        raise ValueError(
            f"moe_intermediate_size={fields['moe_intermediate_size']}, but copies of the dense layers are "
            f"{dense.intermediate_size} wide. Leave moe_intermediate_size out."
        )
    # The configuration of a dense decoder has this coefficient set to 0.
    fields.setdefault("router_aux_loss_coef", MM1TextConfig.router_aux_loss_coef)
    upcycled = _with_decoder(model, dense, {**fields, "num_experts": num_experts})
    weights = model.state_dict()
    upcycled.load_state_dict(weights | _experts(weights, upcycled), strict=False)
    if noise:
        _add_noise(upcycled, noise)
    return upcycled


def average_experts(model: Model) -> Model:
    """
    Makes the decoder of a sparse model dense: each sparse layer becomes a feed-forward layer with the mean of the
    experts' weights. For a new model of [`upcycle`] without noise, this is the dense model again; for a trained one,
    it is a dense baseline to compare the experts with.

    Args:
        model: an MM1 with a sparse `mm1_text` decoder, or such a decoder alone, with or without its head. It is not
            changed.

    Returns:
        A dense model of the same class, dtype and device.

    Raises:
        ValueError: the decoder is not a sparse `mm1_text`, or its experts are not as wide as its dense layers.

    Example:

    ```python
    >>> from mm1_hf import MM1Config, MM1ForConditionalGeneration, average_experts

    >>> sparse = MM1ForConditionalGeneration(MM1Config.from_preset("mm1-tiny-moe"))
    >>> average_experts(sparse).config.text_config.num_experts
    0

    ```
    """
    sparse = _mm1_text(model, "average_experts")
    if not sparse.num_experts:
        raise ValueError("This decoder is dense already: it has no experts to average. Pass a sparse decoder.")
    if sparse.moe_layer_period > 1 and sparse.moe_intermediate_size != sparse.intermediate_size:
        raise ValueError(
            f"The experts are {sparse.moe_intermediate_size} wide and the dense layers {sparse.intermediate_size}; "
            "they cannot be averaged, because all layers of a dense mm1_text have the same width."
        )
    fields = {"num_experts": 0, "intermediate_size": sparse.moe_intermediate_size, "expert_capacity_factor": None}
    dense = _with_decoder(model, sparse, fields)
    weights = model.state_dict()
    means = {}
    for name, experts in weights.items():
        layer, found, kind = name.partition(".experts.")
        if found:
            mean = experts.float().mean(dim=0).to(experts.dtype)
            kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
            means |= {f"{layer}.{each}.weight": part for each, part in zip(kinds, mean.chunk(len(kinds)), strict=True)}
    dense.load_state_dict(weights | means, strict=False)
    return dense


def _mm1_text(model: PreTrainedModel, function: str) -> MM1TextConfig:
    config = model.config.get_text_config()
    if not isinstance(config, MM1TextConfig):
        raise ValueError(
            f"{function}() works only on mm1_text decoders, and this decoder is {config.model_type!r}. Pass a model "
            "whose text_config is an MM1TextConfig; mm1_hf.convert.convert_decoder converts some other decoders to it."
        )
    return config


def _with_decoder(model: Model, text_config: MM1TextConfig, fields: dict[str, Any]) -> Model:
    """Returns a model of the same class with new weights and with changed fields of its decoder's configuration."""
    changed = MM1TextConfig.from_dict({**text_config.to_dict(), **fields})
    changed._attn_implementation = text_config._attn_implementation
    config = changed
    if text_config is not model.config:
        config = copy.deepcopy(model.config)
        config.text_config = changed
    made = type(model)._from_config(config, dtype=model.dtype).to(model.device)
    if model.can_generate():
        made.generation_config = copy.deepcopy(model.generation_config)
    return made.train(model.training)


@torch.no_grad()
def _add_noise(model: PreTrainedModel, noise: float) -> None:
    for name, weight in model.named_parameters():
        if ".experts." in name:
            weight.add_(torch.randn_like(weight) * (noise * weight.float().std()).to(weight.dtype))


def _experts(weights: dict[str, torch.Tensor], upcycled: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The experts' weights, from the dense feed-forward layers; the experts of a layer are views of one tensor."""
    copies = {}
    for name, parameter in upcycled.named_parameters():
        layer, found, kind = name.partition(".experts.")
        if not found:
            continue
        names = ["gate_proj", "up_proj"] if kind == "gate_up_proj" else [kind]
        weight = torch.cat([weights[f"{layer}.{each}.weight"] for each in names])
        copies[name] = weight.expand_as(parameter)
    return copies


__all__ = ["average_experts", "upcycle"]
