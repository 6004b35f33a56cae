"""Upcycling: a mixture of experts that begins as the dense model it is made from (MM1, section 4.3, leaves open how its
experts begin); and the way back, by averaging the experts."""

import copy
from typing import Any, TypeVar

import torch
from transformers.modeling_utils import PreTrainedModel

from .model.configuration_mm1 import MM1TextConfig


Model = TypeVar("Model", bound=PreTrainedModel)


def upcycle(model: Model, num_experts: int, *, noise: float = 0.0, **fields: Any) -> Model:
    """
    Makes the decoder of a dense model sparse: every expert of a sparse layer is a copy of the dense feed-forward layer, and
    the routers begin at random. With gates that sum to 1 (`norm_topk_prob`) and nothing dropped, the logits are the dense
    model's.

    Args:
        model: an MM1 with an `mm1_text` decoder, or such a decoder alone, with or without its head. It stays as it is.
        num_experts: experts of each sparse layer.
        noise:
            Standard deviation of what is added to each expert's weights, as a share of theirs. It makes the experts differ
            from the start, and the logits differ from the dense model's; 0 for none.
        fields: other fields of [`MM1TextConfig`], for example `moe_layer_period` or `router_aux_loss_coef`.

    Returns:
        A model of the same class, dtype and device.

    Raises:
        ValueError: the decoder is not a dense `mm1_text`, experts of another width than its feed-forward layers, or
            negative noise.

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
        raise ValueError(f"noise={noise} is negative; give a share of the weights' own spread, such as 0.01.")
    if dense.num_experts:
        raise ValueError(f"This decoder is sparse already, with num_experts={dense.num_experts}. Give a dense one.")
    if fields.setdefault("moe_intermediate_size", dense.intermediate_size) != dense.intermediate_size:
        raise ValueError(
            f"moe_intermediate_size={fields['moe_intermediate_size']}, but copies of the dense layers are "
            f"{dense.intermediate_size} wide. Leave it out."
        )
    # A dense decoder has none.
    fields.setdefault("router_aux_loss_coef", MM1TextConfig.router_aux_loss_coef)
    upcycled = _with_decoder(model, dense, {**fields, "num_experts": num_experts})
    weights = model.state_dict()
    upcycled.load_state_dict(weights | _experts(weights, upcycled), strict=False)
    if noise:
        _add_noise(upcycled, noise)
    return upcycled


def average_experts(model: Model) -> Model:
    """
    Makes the decoder of a sparse model dense: each feed-forward layer is the mean of the layer's experts. Of a model fresh
    from [`upcycle`] that is the dense one; of a trained one it is what experts are compared with.

    Args:
        model: an MM1 with a sparse `mm1_text` decoder, or such a decoder alone, with or without its head. It stays as it is.

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
        raise ValueError("This decoder is dense already: it has no experts to average.")
    if sparse.moe_layer_period > 1 and sparse.moe_intermediate_size != sparse.intermediate_size:
        raise ValueError(
            f"The experts are {sparse.moe_intermediate_size} wide and the dense layers {sparse.intermediate_size}; "
            "the layers of a dense mm1_text are all of one width."
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
            f"{function}() is about the sparse layers of mm1_text, and this decoder is {config.model_type!r}. Take a model "
            "whose text_config is an MM1TextConfig (mm1_hf.convert.convert_decoder makes one of others where they map)."
        )
    return config


def _with_decoder(model: Model, text_config: MM1TextConfig, fields: dict[str, Any]) -> Model:
    """A model like another one, with other fields of its decoder and fresh weights."""
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
    """The experts' weights out of those of the dense feed-forward layers; views, so no layer is held twice."""
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
