"""`mm1 convert`: a foreign checkpoint to a model or a part of one."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

import mm1_hf  # noqa: F401 - registers MM1 with the Auto classes
from mm1_hf import convert as conversions
from mm1_hf.cli.models import find_model


CONVERSIONS: dict[str, Callable[..., None]] = {
    "decoder": conversions.convert_decoder,
    "llava": conversions.convert_llava,
    "open_clip": conversions.convert_open_clip,
    "aim": conversions.convert_aim,
    "honeybee": conversions.convert_honeybee,
    "axlearn": conversions.convert_axlearn,
    "gguf": conversions.convert_gguf,
}


def run(kind: str, source: str, output: str, dtype: str | None, max_shard_size: str, allow_pickle: bool) -> None:
    """Converts a checkpoint; refuses an option that its kind does not have."""
    function = CONVERSIONS[kind]
    options: dict[str, Any] = {"max_shard_size": max_shard_size, "allow_pickle": allow_pickle}
    taken = inspect.signature(function).parameters
    if allow_pickle and "allow_pickle" not in taken:
        raise ValueError(
            f"--allow-pickle does nothing for the kind {kind}, whose checkpoints are not pickles. Leave it out."
        )
    options = {name: value for name, value in options.items() if name in taken}
    function(find_model(source), output, dtype=None if dtype is None else getattr(torch, dtype), **options)
    print(f"{kind}: {source} -> {output}")
