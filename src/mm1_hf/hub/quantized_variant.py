"""Quantised variants of a saved model: the decoder's linear layers with small weights, all else as it was."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor, TorchAoConfig
from transformers.utils import is_torchao_available


SCHEMES = ("int8",)

# Few weights, and the ones that an answer about a picture hangs on.
_KEPT = ["model.vision_tower", "model.connector", "lm_head"]


def quantize(folder: str | Path, output: str | Path, scheme: str = "int8") -> None:
    """
    Saves a variant whose decoder has quantised linear layers. The image encoder, the connector, embeddings, the head and
    experts stay in the precision that they are saved in. Loading it needs torchao too.

    Args:
        folder: of a saved model and its processor.
        output: where the variant goes.
        scheme: `"int8"`: weights in 8 bits with one scale per row; activations are not quantised.

    Raises:
        ValueError: there is no such scheme, or torchao is not installed.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"There is no scheme {scheme!r}; choose one of {', '.join(SCHEMES)}.")
    if not is_torchao_available():
        raise ValueError("Quantising needs torchao: pip install 'mm1_hf[quantize]'.")
    from torchao.quantization import Int8WeightOnlyConfig

    config: Any = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=_KEPT)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", quantization_config=config)
    model.save_pretrained(output)
    AutoProcessor.from_pretrained(folder).save_pretrained(output)
