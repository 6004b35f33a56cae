"""`mm1 serve` and `mm1 chat`: transformers' own commands, in a process where MM1 is registered."""

from collections.abc import Sequence

from transformers.utils.import_utils import is_serve_available

import mm1_hf  # noqa: F401 - registers MM1 with transformers


def run(arguments: Sequence[str]) -> None:
    """
    Passes the arguments on to transformers' command.

    Args:
        arguments: `serve` or `chat`, and the options of that command.

    Raises:
        ValueError: a package that transformers' server and chat need is not installed.
    """
    if not is_serve_available():
        raise ValueError("Serving needs more packages: pip install 'mm1_hf[serve]'.")
    from transformers.cli.transformers import app

    app(list(arguments), prog_name="mm1")
