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
from typing import Any

import torch
import transformers
from packaging.version import Version
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


# Whether a model's `load_adapter` loads the modules that an adapter holds whole: since 5.18.
# Can go when 5.18 is the oldest release of the range.
LOADS_WHOLE_MODULES = ALIGNS_ASSISTANT_MASKS


# The argument that makes `from_pretrained` dequantise a GGUF file, which transformers keeps quantised since 5.17.
# Can go when 5.17 is the oldest release of the range.
DEQUANTIZE_GGUF: dict[str, Any] = (
    {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
)

# The method by which the manager of a server's models lists them.
# Can go when 5.24 is the oldest release of the range.
LISTS_MODELS = "list_models" if CACHE == "cache" else "get_gen_models"


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
        if "cache" in kwargs:
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


def warn_if_untested() -> None:
    """Warns once if the installed transformers is outside of the tested range."""
    if not Version(OLDEST_TESTED) <= Version(transformers.__version__) <= Version(NEWEST_TESTED):
        logger.warning_once(
            f"MM1 was tested with transformers {OLDEST_TESTED} to {NEWEST_TESTED}; {transformers.__version__} is installed. "
            "If something fails, install a version of this range."
        )
