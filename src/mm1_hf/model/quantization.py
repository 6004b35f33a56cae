"""Loading in 4 and 8 bits: the modules that are not quantised."""

import copy
from typing import Any

from transformers.quantizers.auto import AutoQuantizationConfig


# Names from the model's root, as quantisers match them, for models with a head and for models without one.
PRECISE_MODULES = ["model.vision_tower", "model.connector", "vision_tower", "connector", "lm_head"]


def keep_precise(quantization_config: Any) -> Any:
    """
    Leaves the encoder, the connector and the head unquantised. They hold a small part of the weights, and their
    precision affects every image token.

    This works with the quantisers that compare names by transformers' own rule, among them bitsandbytes, torchao and
    quanto. FP-Quant and four-over-six list the head by default and compare names in their own way, so their
    configurations are not changed. transformers does not quantise with HQQ while it loads.

    Args:
        quantization_config:
            A quantisation configuration of transformers, for example for bitsandbytes or torchao, or its fields as a
            dict. It is not changed if it lists the modules to leave out itself, or has neither the field
            `llm_int8_skip_modules` nor `modules_to_not_convert`.

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
