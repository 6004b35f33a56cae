"""`mm1 serve` and `mm1 chat`: transformers' own commands, in a process where MM1 is registered."""

from collections.abc import Sequence

from transformers.utils.import_utils import is_serve_available

import mm1_hf  # noqa: F401 - registers MM1 with transformers
from mm1_hf.cli.models import find_model
from mm1_hf.hub.vllm_engine import serve_with_vllm


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
        from mm1_hf.hub.server import complete_server
        from mm1_hf.hub.server_guard import is_loopback

        host = _option(arguments, "--host")
        complete_server(local=host is None or is_loopback(host), pages="--enable-cors" in arguments)
    from transformers.cli.transformers import app

    app(list(arguments), prog_name="mm1")


def _option(arguments: Sequence[str], name: str) -> str | None:
    """The value of an option that the server reads, where it is given."""
    for place, argument in enumerate(arguments):
        if argument == name:
            return arguments[place + 1] if place + 1 < len(arguments) else None
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None
