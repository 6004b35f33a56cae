"""LoRA for MM1: which parts get low-rank updates, and which are trained whole and saved with the adapter."""

import re
from typing import Literal

from peft import LoraConfig
from torch import nn

from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration


LoraPreset = Literal["decoder", "decoder+connector", "all", "experts"]
# For each preset, the parts that get low-rank updates, and whether the connector is trained whole.
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
    A LoRA configuration that names the adapted modules by their full names. The layers of the image encoder have the
    same short names as the decoder's, so short names would adapt the encoder by accident.

    Args:
        model: the model to adapt.
        preset:
            `"decoder"`: low-rank updates of every linear layer of the decoder, but not of its head, routers and
            experts. `"decoder+connector"`: the same, and the connector is trained whole and saved with the adapter.
            `"all"`: the same as `"decoder+connector"`, and low-rank updates of the experts and of every linear layer
            of the encoder. `"experts"`: low-rank updates of the experts only.
        r: rank of the updates, for experts as for other layers.
        lora_alpha: the updates are scaled by `lora_alpha / r`; unset, `lora_alpha` is twice the rank.
        lora_dropout: dropout before the updates. It must be 0 if experts are adapted.

    Returns:
        A configuration for `peft.get_peft_model` and TRL's trainers.

    Raises:
        ValueError: the preset does not exist; the preset is `"experts"`, but the decoder has no experts; or dropout
            together with updates of experts.

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
            f"lora_dropout is {lora_dropout}, but updates of experts have no dropout. Set lora_dropout to 0, or "
            "choose a preset that does not adapt the experts."
        )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=2 * r if lora_alpha is None else lora_alpha,
        lora_dropout=lora_dropout,
        # An empty list tells PEFT that no module is adapted.
        target_modules="|".join(targets) or [],
        target_parameters=experts or None,
        modules_to_save=["model.connector"] if with_connector else None,
    )


def _linear_layers(part: str, module: nn.Module) -> str:
    """A regular expression that matches the full names of the linear layers of a part."""
    layers = sorted(
        {name.rsplit(".", 1)[-1] for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    )
    return rf"model\.{part}\..*\.({'|'.join(map(re.escape, layers))})"


def _expert_weights(model: MM1ForConditionalGeneration) -> list[str]:
    """Full names of the decoder's fused expert weights, each of shape `(experts, ...)`."""
    prefix = "model.language_model."
    return [
        prefix + name
        for name, weight in model.model.language_model.named_parameters()
        if name.split(".")[-2] == "experts" and weight.ndim == 3
    ]
