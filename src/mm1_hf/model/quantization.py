"""Loading in 4 and 8 bits: what keeps its precision."""

import copy
from typing import Any

from transformers.quantizers.auto import AutoQuantizationConfig


# As quantisers match them, from the model's root: with the head around it, and without.
PRECISE_MODULES = ["model.vision_tower", "model.connector", "vision_tower", "connector", "lm_head"]


def keep_precise(quantization_config: Any) -> Any:
    """
    Leaves the encoder, the connector and the head out of a quantisation. They are a small part of the weights, and what they
    lose shows in every image token.

    Args:
        quantization_config:
            bitsandbytes', torchao's or another of transformers, or its fields as a dict; one that names the modules to leave
            out itself stays as it is, and so does one that cannot.

    Returns:
        A configuration for `from_pretrained`.

    Example:

    ```python
    >>> from transformers import BitsAndBytesConfig
    >>> from mm1_hf.model.quantization import keep_precise

    >>> keep_precise(BitsAndBytesConfig(load_in_8bit=True)).llm_int8_skip_modules[:2]
    ['model.vision_tower', 'model.connector']

    ```
    """
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    for field in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if getattr(quantization_config, field, PRECISE_MODULES) is None:
            quantization_config = copy.copy(quantization_config)
            setattr(quantization_config, field, list(PRECISE_MODULES))
    return quantization_config
