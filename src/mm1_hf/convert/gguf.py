"""Dequantises decoders in GGUF files and saves them in their own class of transformers."""

from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_gguf_available

from mm1_hf.convert.engine import MAX_SHARD_SIZE, new_folder
from mm1_hf.model.versions import DEQUANTIZE_GGUF


def convert_gguf(
    source: str | PathLike,
    output: str | PathLike,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """
    Converts the decoder and the tokenizer of a GGUF file to their classes of transformers. [`mm1_hf.assemble`] accepts
    the result, and so does [`convert_decoder`] if it can convert this kind of decoder. Unlike the other conversions,
    this one holds the whole model in memory.

    Args:
        source: path of the GGUF file.
        output: folder to write. It must not exist yet, or be empty.
        dtype: dtype of the written weights; unset, bfloat16, because quantised weights are not more precise than that.
        max_shard_size: maximum size of a written file.

    Raises:
        ValueError: `source` is not a GGUF file, or the package `gguf`, which reads such files, is not installed.
    """
    path = Path(source)
    if path.suffix != ".gguf" or not path.is_file():
        raise ValueError(f"{source} is not a GGUF file. Give the path of the .gguf file itself.")
    if not is_gguf_available():
        raise ValueError(
            "Reading GGUF files needs the package gguf. Install it with: pip install 'mm1_hf[quickstart]'"
        )
    dtype = torch.bfloat16 if dtype is None else dtype
    with new_folder(output) as partial:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=dtype,
            # Without dequantisation, the model could neither be trained nor saved.
            **DEQUANTIZE_GGUF,
        )
        model.save_pretrained(partial, max_shard_size=max_shard_size)
        tokenizer = cast(Any, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name))
        tokenizer.save_pretrained(partial)
