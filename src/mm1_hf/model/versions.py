"""
Everything that MM1's files ask about the installed transformers, each with the release from which the question can go.

They rely on what all releases of the tested range share, and branch here only where a name has changed.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from types import FunctionType
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers.integrations import peft as integration
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging


logger = logging.get_logger(__name__)

OLDEST_TESTED = "5.16.1"
NEWEST_TESTED = "5.24.0"

# The name of the cache in outputs and arguments: `cache` since 5.24, `past_key_values` before.
# Can go when 5.24 is the oldest release of the range.
CACHE = next(field.name for field in fields(BaseModelOutputWithPast) if field.name in ("cache", "past_key_values"))


# Whether transformers can write and read checkpoints of weights that are split over processes: since 5.20.
# Can go when 5.20 is the oldest release of the range.
SAVES_SPLIT_WEIGHTS = find_spec("transformers.distributed.checkpoint") is not None


# Whether a processor finds the assistant's tokens where images were written out: since 5.18.
# Can go when 5.18 is the oldest release of the range.
ALIGNS_ASSISTANT_MASKS = Version(transformers.__version__) >= Version("5.18")


# Whether `generate()` encodes images before its first step, and once for all beams: since 5.18.
# Can go when 5.18 is the oldest release of the range.
ENCODES_IMAGES_FIRST = ALIGNS_ASSISTANT_MASKS


# Whether `generate()` keeps the images of a prompt that it reads in chunks: since 5.24.
# Can go when 5.24 is the oldest release of the range.
CHUNKS_IMAGES = Version(transformers.__version__) >= Version("5.24")


# Base class with those of transformers' methods for adapters that ask for a newer PEFT than they need: all of 5.24 but
# `load_adapter` ask for 0.22, although they work with 0.20. They are copied, with the request lowered.
# Can go when 5.24 and PEFT 0.22 are the oldest releases of their ranges.
_OLDEST_PEFT = "0.20.0"
WorksWithOlderPeft: Any = type(
    "WorksWithOlderPeft",
    (),
    {"__doc__": "Base class with transformers' methods for adapters, for PEFT 0.20 and newer."}
    | {
        name: FunctionType(
            method.__code__, {**method.__globals__, "MIN_PEFT_VERSION": _OLDEST_PEFT}, name, method.__defaults__
        )
        for name, method in vars(integration.PeftAdapterMixin).items()
        if isinstance(method, FunctionType)
        and "MIN_PEFT_VERSION" in method.__code__.co_names
        and Version(integration.MIN_PEFT_VERSION) > Version(_OLDEST_PEFT)
    },
)


# The argument that makes `from_pretrained` dequantise a GGUF file, which transformers keeps quantised since 5.17.
# Can go when 5.17 is the oldest release of the range.
DEQUANTIZE_GGUF: dict[str, Any] = (
    {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
)

# The method by which the manager of a server's models lists them.
# Can go when 5.24 is the oldest release of the range.
LISTS_MODELS = "list_models" if CACHE == "cache" else "get_gen_models"

# The method by which a model computes activations again in the backward pass.
# Can go when 5.24 is the oldest release of the range.
ENABLES_CHECKPOINTING = (
    "activation_checkpointing_enable"
    if hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing_enable"
)


def takes_cache(forward: Callable) -> Callable:
    """
    Lets a forward method with an argument `past_key_values` take it as `cache` too, which transformers passes since 5.24;
    since then the old name is deprecated. Can go when 5.24 is the oldest release of the range.

    Args:
        forward: the method.

    Raises:
        ValueError: when it is called with both names.
    """

    @functools.wraps(forward)
    def renamed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if CACHE == "cache" and kwargs.get("past_key_values") is not None and not torch.compiler.is_compiling():
            warnings.warn("`past_key_values` is deprecated. Use `cache` instead.", FutureWarning, stacklevel=2)
        # Before 5.24, the cache of continuous batching goes to the attention under this name, past the model's layers.
        if "cache" in kwargs and (CACHE == "cache" or not is_paged(kwargs["cache"])):
            cache = kwargs.pop("cache")
            if cache is not None and kwargs.get("past_key_values") is not None:
                raise ValueError("cache and past_key_values are two names of one argument. Give one of them.")
            kwargs["past_key_values"] = kwargs.get("past_key_values") if cache is None else cache
        return forward(self, *args, **kwargs)

    # generate() looks up the installed name in the signature. It is noted on the wrapped function, where inspect finds
    # it: on the wrapper, torch's ahead-of-time compiler would take it for the wrapper's own arguments.
    signature = inspect.signature(forward)
    forward.__signature__ = signature.replace(  # ty: ignore[missing-attribute]
        parameters=[
            parameter.replace(name=CACHE) if parameter.name == "past_key_values" else parameter
            for parameter in signature.parameters.values()
        ]
    )
    return renamed


def is_paged(given: Any) -> bool:
    """
    Whether a cache is that of transformers' continuous batching, which holds many requests and has no length.

    Args:
        given: a cache, or None.
    """
    return given is not None and not hasattr(given, "get_seq_length")


def warn_if_untested() -> None:
    """Warns once if the installed transformers is outside of the tested range."""
    if not Version(OLDEST_TESTED) <= Version(transformers.__version__) <= Version(NEWEST_TESTED):
        logger.warning_once(
            f"MM1 was tested with transformers {OLDEST_TESTED} to {NEWEST_TESTED}; {transformers.__version__} is installed. "
            "If something fails, install a version of this range."
        )
