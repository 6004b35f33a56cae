"""Dequantises decoders in GGUF files and saves them in their own class of transformers."""

from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_gguf_available

from mm1_hf.convert.checkpoint import naming
from mm1_hf.convert.engine import MAX_LAYERS, MAX_SHARD_SIZE, empty_model, new_folder
from mm1_hf.convert.gguf_header import read_header
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
        ValueError: `source` is not a GGUF file, is damaged, or does not hold a whole decoder; or the package `gguf`,
            which reads such files, is not installed.
    """
    path = Path(source)
    if path.suffix != ".gguf" or not path.is_file():
        raise ValueError(f"{source} is not a GGUF file. Give the path of the .gguf file itself.")
    if not is_gguf_available():
        raise ValueError(
            "Reading GGUF files needs the package gguf. Install it with: pip install 'mm1_hf[quickstart]'"
        )
    dtype = torch.bfloat16 if dtype is None else dtype
    with naming(path):
        _check(path)
    with new_folder(output) as partial, naming(path):
        model, loading = cast(Any, AutoModelForCausalLM).from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=dtype,
            output_loading_info=True,
            # Without dequantisation, the model could neither be trained nor saved.
            **DEQUANTIZE_GGUF,
        )
        if lacking := sorted(loading["missing_keys"]):
            raise ValueError(f"the file lacks {len(lacking)} of the decoder's weights, for example {lacking[0]}.")
        model.save_pretrained(partial, max_shard_size=max_shard_size)
        tokenizer = cast(Any, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name))
        tokenizer.save_pretrained(partial)


def _check(path: Path) -> None:
    """Refuses files that transformers would read without end, or with more memory than their weights take."""
    header = read_header(path)
    for name, value in header.values.items():
        if name.endswith(".block_count") and value > MAX_LAYERS:
            raise ValueError(f"{name} is {value:,}; decoders with at most {MAX_LAYERS} layers can be converted.")
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model_class = cast(Any, AutoModelForCausalLM)._model_mapping[type(config)]
    described = sum(weight.numel() for weight in empty_model(model_class, config).parameters())
    if described > header.elements:
        raise ValueError(
            f"its metadata describe a decoder of {described:,} weights, but it holds only {header.elements:,}. Download "
            "the whole file again, or check that it is not one part of several."
        )
