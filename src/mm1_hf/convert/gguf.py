"""Decoders in GGUF files, dequantised, in their own class."""

from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import is_gguf_available

from mm1_hf.convert.engine import MAX_SHARD_SIZE, new_folder


def convert_gguf(
    source: str | PathLike,
    output: str | PathLike,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """
    Writes the decoder and the tokenizer of a GGUF file as transformers' own, which [`mm1_hf.assemble`] takes, and
    [`convert_decoder`] where they map. Unlike the others, this conversion holds the whole model in memory.

    Args:
        source: the file.
        output: a folder, which must not exist.
        dtype: of the written weights; unset, bfloat16: quantised weights have no more to say.
        max_shard_size: bounds the files that are written.

    Raises:
        ValueError: it is no GGUF file, or the package that reads them is missing.
    """
    path = Path(source)
    if path.suffix != ".gguf" or not path.is_file():
        raise ValueError(f"{source} is no GGUF file. Give the .gguf file itself.")
    if not is_gguf_available():
        raise ValueError("GGUF files are read by the package gguf: pip install 'mm1_hf[quickstart]'.")
    dtype = torch.bfloat16 if dtype is None else dtype
    with new_folder(output) as partial:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=dtype,
            # Kept quantised, it could neither be trained nor saved.
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(partial, max_shard_size=max_shard_size)
        tokenizer = cast(Any, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name))
        tokenizer.save_pretrained(partial)
