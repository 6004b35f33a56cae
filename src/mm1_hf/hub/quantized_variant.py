"""Quantised variants of a saved model: only the linear layers of the decoder are quantised."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor, TorchAoConfig
from transformers.utils import is_torchao_available


SCHEMES = ("int8",)

# Modules that are not quantised: they have few weights, and answers about an image depend on them.
_KEPT = ["model.vision_tower", "model.connector", "lm_head"]


def quantize(folder: str | Path, output: str | Path, scheme: str = "int8") -> None:
    """
    Saves a variant of a model in which the linear layers of the decoder are quantised. The image encoder, the
    connector, the embeddings, the output head and the experts keep the precision in which they were saved. Loading the
    variant needs torchao, too.

    Args:
        folder: folder of a saved model and its processor.
        output: folder to write the variant to.
        scheme: `"int8"`, which stores weights in 8 bits with one scale per row; activations are not quantised.

    Raises:
        ValueError: the scheme is unknown, or torchao is not installed.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"There is no quantisation scheme {scheme!r}. Choose one of {', '.join(SCHEMES)}.")
    if not is_torchao_available():
        raise ValueError("Quantising needs torchao. Install it with: pip install 'mm1_hf[quantize]'")
    from torchao.quantization import Int8WeightOnlyConfig

    config: Any = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=_KEPT)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", quantization_config=config)
    model.save_pretrained(output)
    AutoProcessor.from_pretrained(folder).save_pretrained(output)
