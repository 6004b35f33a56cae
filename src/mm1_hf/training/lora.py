"""LoRA for MM1: which parts are adapted, and which are trained whole and saved with the adapter."""

import re
from typing import Literal

from peft import LoraConfig
from torch import nn

from mm1_hf.modeling_mm1 import MM1ForConditionalGeneration


LoraPreset = Literal["decoder", "decoder+connector"]
_PRESETS = ("decoder", "decoder+connector")


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
            are). `"decoder+connector"`: also the connector, trained whole and saved with the adapter.
        r: rank of the updates.
        lora_alpha: scale of the updates, divided by the rank; unset, twice the rank.
        lora_dropout: dropout before the updates.

    Returns:
        What `peft.get_peft_model` and TRL's trainers take.

    Raises:
        ValueError: the preset does not exist.

    Example:

    ```python
    >>> from mm1_hf import MM1Config, MM1ForConditionalGeneration
    >>> from mm1_hf.training.lora import lora_config

    >>> model = MM1ForConditionalGeneration(MM1Config.from_preset("mm1-tiny"))
    >>> lora_config(model).modules_to_save
    ['model.connector']

    ```
    """
    if preset not in _PRESETS:
        raise ValueError(f"There is no LoRA preset {preset!r}; choose one of {', '.join(_PRESETS)}.")
    decoder = model.model.language_model
    layers = sorted(
        {name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=2 * r if lora_alpha is None else lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=rf"model\.language_model\..*\.({'|'.join(map(re.escape, layers))})",
        modules_to_save=["model.connector"] if preset == "decoder+connector" else None,
    )
