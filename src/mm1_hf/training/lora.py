"""LoRA for MM1: which parts are adapted, and which are trained whole and saved with the adapter."""

import re
from typing import Literal

from peft import LoraConfig
from torch import nn

from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration


LoraPreset = Literal["decoder", "decoder+connector", "all", "experts"]
# What each adapts by low-rank updates, and whether it trains the connector.
_PRESETS: dict[LoraPreset, tuple[tuple[str, ...], bool]] = {
    "decoder": (("language_model",), False),
    "decoder+connector": (("language_model",), True),
    "all": (("vision_tower", "language_model", "experts"), True),
    "experts": (("experts",), False),
}


def lora_config(
    model: MM1ForConditionalGeneration,
    preset: LoraPreset = "decoder+connector",
    *,
    r: int = 16,
    lora_alpha: int | None = None,
    lora_dropout: float = 0.0,
) -> LoraConfig:
    """
    A LoRA configuration that names its modules from the model's root, so that the image encoder, whose layers have the
    same names as the decoder's, is never adapted by accident.

    Args:
        model: the model to adapt.
        preset:
            `"decoder"`: low-rank updates of every linear layer of the decoder (its head, routers and experts stay as they
            are). `"decoder+connector"`: also the connector, trained whole and saved with the adapter. `"all"`: also the
            experts and every linear layer of the encoder. `"experts"`: the experts alone.
        r: rank of the updates, an expert's as any layer's.
        lora_alpha: scale of the updates, divided by the rank; unset, twice the rank.
        lora_dropout: dropout before the updates, which those of experts do not have.

    Returns:
        What `peft.get_peft_model` and TRL's trainers take.

    Raises:
        ValueError: the preset does not exist, or is `"experts"` where there are none; dropout with experts.

    Example:

    ```python
    >>> from mm1_hf import MM1Config, MM1ForConditionalGeneration
    >>> from mm1_hf.training.lora import lora_config

    >>> model = MM1ForConditionalGeneration(MM1Config.from_preset("mm1-tiny-moe"))
    >>> lora_config(model).modules_to_save
    ['model.connector']
    >>> lora_config(model, "experts").target_parameters[:2]
    ['model.language_model.layers.1.mlp.experts.gate_up_proj', 'model.language_model.layers.1.mlp.experts.down_proj']

    ```
    """
    if preset not in _PRESETS:
        raise ValueError(f"There is no LoRA preset {preset!r}; choose one of {', '.join(_PRESETS)}.")
    parts, with_connector = _PRESETS[preset]
    targets = [_linear_layers(part, getattr(model.model, part)) for part in parts if part != "experts"]
    experts = _expert_weights(model) if "experts" in parts else []
    if preset == "experts" and not experts:
        raise ValueError(
            f"The decoder ({model.config.text_config.model_type}) has no experts; choose another preset, such as "
            "'decoder+connector'."
        )
    if experts and lora_dropout:
        raise ValueError(
            f"lora_dropout is {lora_dropout}, but updates of experts have no dropout. Set it to 0, or choose a preset that "
            "leaves the experts as they are."
        )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=2 * r if lora_alpha is None else lora_alpha,
        lora_dropout=lora_dropout,
        # PEFT tells "none" by an empty list.
        target_modules="|".join(targets) or [],
        target_parameters=experts or None,
        modules_to_save=["model.connector"] if with_connector else None,
    )


def _linear_layers(part: str, module: nn.Module) -> str:
    """A pattern of the full names of a part's linear layers."""
    layers = sorted(
        {name.rsplit(".", 1)[-1] for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    )
    return rf"model\.{part}\..*\.({'|'.join(map(re.escape, layers))})"


def _expert_weights(model: MM1ForConditionalGeneration) -> list[str]:
    """Full names of the decoder's fused experts, `(experts, ...)` each."""
    prefix = "model.language_model."
    return [
        prefix + name
        for name, weight in model.model.language_model.named_parameters()
        if name.split(".")[-2] == "experts" and weight.ndim == 3
    ]
