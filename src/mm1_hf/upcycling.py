"""Upcycling: a mixture of experts that begins as the dense model it is made from (MM1, section 4.3, leaves open how its
experts begin)."""

import copy
from typing import Any, TypeVar

import torch
from transformers.modeling_utils import PreTrainedModel

from .configuration_mm1 import MM1TextConfig


Model = TypeVar("Model", bound=PreTrainedModel)


def upcycle(model: Model, num_experts: int, **fields: Any) -> Model:
    """
    Makes the decoder of a dense model sparse: every expert of a sparse layer is a copy of the dense feed-forward layer, and
    the routers begin at random. With gates that sum to 1 (`norm_topk_prob`) and nothing dropped, the logits are the dense
    model's.

    Args:
        model: an MM1 with an `mm1_text` decoder, or such a decoder alone, with or without its head. It stays as it is.
        num_experts: experts of each sparse layer.
        fields: other fields of [`MM1TextConfig`], for example `moe_layer_period` or `router_aux_loss_coef`.

    Returns:
        A model of the same class, dtype and device.

    Raises:
        ValueError: the decoder is not a dense `mm1_text`, or experts of another width than its feed-forward layers.

    Example:

    ```python
    >>> from mm1_hf import MM1Config, MM1ForConditionalGeneration

    >>> dense = MM1ForConditionalGeneration(MM1Config.from_preset("mm1-tiny"))
    >>> sparse = upcycle(dense, 4, moe_layer_period=1)
    >>> sparse.config.text_config.num_experts
    4

    ```
    """
    dense = model.config.get_text_config()
    if not isinstance(dense, MM1TextConfig):
        raise ValueError(
            f"upcycle() makes the sparse layers of mm1_text, and this decoder is {dense.model_type!r}. Take a dense model "
            "whose text_config is an MM1TextConfig."
        )
    if dense.num_experts:
        raise ValueError(f"This decoder is sparse already, with num_experts={dense.num_experts}. Give a dense one.")
    if fields.setdefault("moe_intermediate_size", dense.intermediate_size) != dense.intermediate_size:
        raise ValueError(
            f"moe_intermediate_size={fields['moe_intermediate_size']}, but copies of the dense layers are "
            f"{dense.intermediate_size} wide. Leave it out."
        )
    # A dense decoder has none.
    fields.setdefault("router_aux_loss_coef", MM1TextConfig.router_aux_loss_coef)
    sparse = MM1TextConfig.from_dict({**dense.to_dict(), **fields, "num_experts": num_experts})
    sparse._attn_implementation = dense._attn_implementation
    config = sparse
    if dense is not model.config:
        config = copy.deepcopy(model.config)
        config.text_config = sparse
    upcycled = type(model)._from_config(config, dtype=model.dtype).to(model.device)
    weights = model.state_dict()
    upcycled.load_state_dict(weights | _experts(weights, upcycled), strict=False)
    if model.can_generate():
        upcycled.generation_config = copy.deepcopy(model.generation_config)
    return upcycled.train(model.training)


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


__all__ = ["upcycle"]
