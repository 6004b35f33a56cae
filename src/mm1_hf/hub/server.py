"""
`mm1 serve` as a wrapper around transformers' server: clients reach it only through the checks of
[`mm1_hf.hub.client_requests`] and the limits of [`mm1_hf.hub.server_guard`].
"""

import inspect
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from huggingface_hub.errors import CacheNotFound
from jinja2 import TemplateError
from transformers.utils import logging

from mm1_hf.hub.client_requests import (
    CHARACTERS_PER_TOKEN,
    MAX_TEXT,
    Checked,
    check_chat,
    check_completion,
    check_decision,
    check_response,
    model_check,
)
from mm1_hf.hub.server_guard import Guard, error_content
from mm1_hf.model import image_inputs
from mm1_hf.model.versions import LISTS_MODELS


logger = logging.get_logger(__name__)

_CHECKS = {
    "chat_handler": check_chat,
    "completion_handler": check_completion,
    "response_handler": check_response,
    "systemone_handler": check_decision,
}
_MANY_PIXELS = 16_000_000
# What code that reads a request raises for one that was not foreseen.
_UNFORESEEN = (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def complete_server(local: bool, pages: bool) -> None:
    """
    Makes transformers' server check requests, list the model that it serves and accept its folder's name too.
    transformers looks the changed function up when it starts the server.

    Args:
        local: whether the server listens on this machine's own address alone.
        pages: whether web pages from anywhere may use the server.
    """
    # No request is answered from a file of this machine, whichever way its name would come in.
    image_inputs.LOCAL_FILES = False
    server: Any = import_module("transformers.cli.serving.server")
    build = server.build_server

    def build_server(*given: Any, **options: Any) -> Any:
        parts = inspect.signature(build).bind(*given, **options).arguments
        manager = parts["model_manager"]
        names = _served_names(manager.force_model)
        check_model = model_check(names, manager.force_model)
        scan = getattr(manager, LISTS_MODELS)
        setattr(manager, LISTS_MODELS, lambda: _listed(names) if names else _cached_models(scan))
        turns = _Turns()
        load = manager.load_model_and_processor

        def load_model_and_processor(*given: Any, **options: Any) -> Any:
            model, processor = load(*given, **options)
            return model, turns.processor(processor)

        manager.load_model_and_processor = load_model_and_processor
        _check_generation(parts["generation_state"], turns)
        for name, check in _CHECKS.items():
            if name in parts:
                handler = parts[name]
                handler.handle_request = _answering(handler.handle_request, check, check_model, manager, turns)
        app = build(*given, **options)
        _answer_in_openais_form(app)
        app.add_middleware(Guard, local=local, pages=pages, check_model=check_model)
        return app

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
    handle: Callable[..., Awaitable[Any]],
    check: Callable[[dict[str, Any], str | None, int], Checked],
    check_model: Callable[[Any], str],
    manager: Any,
    turns: "_Turns",
) -> Callable[..., Awaitable[Any]]:
    """As `handle`, but the request is checked before, and what it then finds wrong is told to the client."""
    from fastapi.responses import JSONResponse

    def refused(error: Exception) -> Any:
        return JSONResponse(error_content(str(error) or type(error).__name__, 400), status_code=400)

    async def handle_request(body: dict[str, Any], *arguments: Any) -> Any:
        try:
            body = {**body, "model": check_model(body.get("model"))}
            checked = check(body, *_limits(manager, body["model"]))
        except (ValueError, OSError) as error:
            return refused(error)
        try:
            with turns.turn(_lane(checked)):
                try:
                    return await handle(checked.body, *arguments)
                except _UNFORESEEN as error:
                    # Later, it is not the request that is at fault.
                    if not turns.is_held():
                        raise
                    logger.warning(
                        f"A request is refused for an error that was not foreseen:\n{traceback.format_exc()}"
                    )
                    return refused(error)
        except (ValueError, TemplateError) as error:
            return refused(error)

    return handle_request


def _limits(manager: Any, model: str) -> tuple[str | None, int]:
    """
    The chat template of a model, and how much text it can read. The model is loaded for that if it is not there yet, so that
    nobody has to wait for its turn meanwhile.
    """
    # A file of a repository is for transformers to find.
    name, _, gguf_file = model.partition(":") if not Path(model).exists() else (model, "", "")
    options = {"gguf_file": gguf_file} if gguf_file else {}
    loaded, processor = manager.load_model_and_processor(manager.process_model_name(name), **options)
    template = getattr(processor, "chat_template", None)
    if isinstance(template, dict):
        template = "\n".join(template.values())
    return template, min(MAX_TEXT, CHARACTERS_PER_TOKEN * (_context(loaded) or MAX_TEXT))


def _context(model: Any) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _lane(request: Checked) -> int:
    """Requests of text, with images and with much of either do not wait for each other."""
    return 2 if request.is_long or request.pixels > _MANY_PIXELS else 1 if request.pixels else 0


def _check_generation(state: Any, turns: "_Turns") -> None:
    """
    Has every request end its turn when its prompt is ready, and checks the prompt: then the answer of a stream has not
    begun yet, so the client can be told.
    """
    get = state.get_manager
    wrapped: set[int] = set()

    def get_manager(*given: Any, **options: Any) -> Any:
        manager = get(*given, **options)
        if id(manager) not in wrapped:
            wrapped.add(id(manager))
            for name in ("generate_streaming", "generate_non_streaming"):
                setattr(manager, name, checked(getattr(manager, name)))
            manager.async_submit = ending(manager.async_submit)
        return manager

    def checked(generate: Callable[..., Any]) -> Callable[..., Any]:
        def generate_checked(model: Any, processor: Any, inputs: Any, config: Any, *given: Any, **options: Any) -> Any:
            turns.end()
            _fit(model, inputs, config)
            return generate(model, processor, inputs, config, *given, **options)

        return generate_checked

    def ending(submit: Callable[..., Any]) -> Callable[..., Any]:
        def submit_after(*given: Any, **options: Any) -> Any:
            turns.end()
            return submit(*given, **options)

        return submit_after

    state.get_manager = get_manager


def _fit(model: Any, inputs: Any, config: Any) -> None:
    """
    Shortens the answer to what the model can still read after the prompt.

    Raises:
        ValueError: the prompt leaves no place for an answer, or holds image tokens without an image, or a token that the
            model does not have is to be preferred or avoided.
    """
    ids = inputs["input_ids"]
    length = len(ids) if isinstance(ids, list) else ids.shape[-1]
    limit = _context(model)
    if limit is not None:
        if length >= limit:
            raise ValueError(
                f"The prompt has {length:,} tokens, but the model reads {limit:,} tokens at most, with its answer. "
                "Send less."
            )
        config.max_new_tokens = min(config.max_new_tokens or limit, limit - length)
    tokens = model.get_input_embeddings().num_embeddings
    if unknown := [token for (token,) in config.sequence_bias or () if token >= tokens]:
        raise ValueError(f"`logit_bias` names the token {unknown[0]}, but the model has {tokens:,} tokens.")
    image_token = getattr(model.config, "image_token_id", None)
    if image_token is not None and inputs.get("pixel_values") is None and image_token in ids:
        raise ValueError("The prompt holds image tokens, but no image. Send images at /v1/chat/completions.")


def _answer_in_openais_form(app: Any) -> None:
    """Errors of the application itself: a body that is no JSON, an unknown field or path, and its own faults."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def answer(status: int, detail: Any) -> Any:
        return JSONResponse(error_content(str(detail), status), status_code=status)

    async def refused(request: Any, error: Any) -> Any:
        return answer(400 if error.status_code == 422 else error.status_code, error.detail)

    async def unread(request: Any, error: Any) -> Any:
        reasons = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        return answer(400, "; ".join(reasons))

    async def failed(request: Any, error: Exception) -> Any:
        return answer(500, "The server failed. Its log says why.")

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, unread)
    app.add_exception_handler(Exception, failed)


class _Turns:
    """
    Lets one request after the other turn its messages and images into a prompt: tokenizers are not made for several threads,
    and an image takes memory while it is decoded. Requests wait in lanes, each with a processor of its own.
    """

    def __init__(self) -> None:
        self.locks = [threading.Lock() for _ in range(3)]
        self.mine = threading.local()
        self.processors: WeakKeyDictionary[Any, dict[int, Any]] = WeakKeyDictionary()

    @contextmanager
    def turn(self, lane: int) -> Generator[None, None, None]:
        """
        Waits for the turn of this thread, and ends it at last.

        Args:
            lane: number of the lane to wait in.
        """
        self.locks[lane].acquire()
        self.mine.lane = lane
        try:
            yield
        finally:
            self.end()

    def is_held(self) -> bool:
        """Whether it is this thread's turn."""
        return getattr(self.mine, "lane", None) is not None

    def end(self) -> None:
        """Ends the turn of this thread, if it has one."""
        if self.is_held():
            lane, self.mine.lane = self.mine.lane, None
            self.locks[lane].release()

    def processor(self, processor: Any) -> Any:
        """
        The processor of this thread's lane.

        Args:
            processor: the one that was loaded, which is that of the first lane.
        """
        lane = getattr(self.mine, "lane", None)
        if not lane:
            return processor
        copies = self.processors.setdefault(processor, {})
        if lane not in copies:
            copies[lane] = deepcopy(processor)
        return copies[lane]
