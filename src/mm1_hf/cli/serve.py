"""`mm1 serve` and `mm1 chat`: transformers' own commands, in a process where MM1 is registered."""

import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub.errors import CacheNotFound
from transformers.utils.import_utils import is_serve_available

import mm1_hf  # noqa: F401 - registers MM1 with transformers
from mm1_hf.cli.models import find_model
from mm1_hf.hub.vllm_engine import serve_with_vllm
from mm1_hf.model.versions import LISTS_MODELS


def run(arguments: Sequence[str], engine: str) -> None:
    """
    Starts a server.

    Args:
        arguments: `serve`, the model where one is to be served alone, and the options of the server.
        engine: whose server, `transformers` or `vllm`.

    Raises:
        ValueError: a package that the server needs is not installed, there is no such model, or vLLM is given none.
    """
    _, *options = arguments
    # Only the first argument is a model for certain: a later one may be the value of an option.
    model = options[0] if options and not options[0].startswith("-") else None
    # A revision or a file of the model is for transformers to find.
    if model is not None and not {"@", ":"} & set(model):
        find_model(model)
    if engine == "vllm":
        if model is None:
            raise ValueError("vLLM serves one model. Name it first: mm1 serve DIR --engine vllm.")
        serve_with_vllm(model, options[1:])
    run_transformers(arguments)


def run_transformers(arguments: Sequence[str]) -> None:
    """
    Passes the arguments on to transformers' command.

    Args:
        arguments: `serve` or `chat`, and the options of that command.

    Raises:
        ValueError: a package that transformers' server and chat need is not installed.
    """
    if not is_serve_available():
        raise ValueError("Serving needs more packages: pip install 'mm1_hf[serve]'.")
    if arguments[0] == "serve":
        _complete_server()
    from transformers.cli.transformers import app

    app(list(arguments), prog_name="mm1")


def _complete_server() -> None:
    """
    Makes transformers' server list the model that it serves, accept its folder's name too, and answer a request that
    cannot be read, such as one with a broken image, with the reason. transformers looks the changed function up when it
    starts the server.
    """
    server: Any = import_module("transformers.cli.serving.server")
    build = server.build_server

    def build_server(manager: Any, *parts: Any, **options: Any) -> Any:
        names = _served_names(manager.force_model)
        scan = getattr(manager, LISTS_MODELS)
        setattr(manager, LISTS_MODELS, lambda: _listed(names) if names else _cached_models(scan))
        for part in (*parts, *options.values()):
            if hasattr(part, "handle_request"):
                part.handle_request = _answering(part.handle_request, names, manager.force_model)
        return build(manager, *parts, **options)

    server.build_server = build_server


def _served_names(model: str | None) -> list[str]:
    """The names under which clients may ask for a model that is served alone. The first is the one that they are told."""
    if model is None:
        return []
    return [Path(model).resolve().name, model] if Path(model).is_dir() else [model]


def _listed(names: list[str]) -> list[dict]:
    return [{"id": names[0], "object": "model", "created": int(time.time()), "owned_by": ""}]


def _cached_models(scan: Callable[[], list[dict]]) -> list[dict]:
    try:
        return scan()
    except CacheNotFound:
        return []


def _answering(
    handle: Callable[..., Awaitable[Any]], names: list[str], model: str | None
) -> Callable[..., Awaitable[Any]]:
    from fastapi.responses import JSONResponse

    async def handle_request(body: Any, *arguments: Any) -> Any:
        # The body of a transcription is not read yet.
        if isinstance(body, dict) and body.get("model") in names:
            body = {**body, "model": model}
        try:
            return await handle(body, *arguments)
        except ValueError as error:
            return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, status_code=400)

    return handle_request
