"""`mm1 serve` and `mm1 chat`: transformers' own, in a process that knows MM1."""

from collections.abc import Sequence

from transformers.utils.import_utils import is_serve_available

import mm1_hf  # noqa: F401 - registers MM1 with transformers


def run(arguments: Sequence[str]) -> None:
    """
    Hands `serve` or `chat`, with whatever follows, to transformers' command.

    Raises:
        ValueError: what transformers' server and chat need is not installed.
    """
    if not is_serve_available():
        raise ValueError("Serving needs more packages: pip install 'mm1_hf[serve]'.")
    from transformers.cli.transformers import app

    app(list(arguments), prog_name="mm1")
