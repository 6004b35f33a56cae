"""
The `mm1` command: its parser, and what runs a verb. It lies beside the package, because importing `mm1_hf` registers MM1
with transformers, which takes seconds. So parsing and help import only the standard library, and the module of a verb,
`mm1_hf.cli.VERB`, is imported when the verb is run.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from .parser import build_parser
from .quiet import quieten


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 2 for a mistake that the user can mend."""
    parser = build_parser()
    namespace, unread = parser.parse_known_args(arguments)
    options = vars(namespace)
    verb, passes_on = (options.pop(name) for name in ("verb", "passes_on"))
    if passes_on:
        options["arguments"] = [verb, *unread]
    elif unread:
        parser.error(f"unrecognized arguments: {' '.join(unread)}")
    quieten()
    try:
        import_module(f"mm1_hf.cli.{verb}").run(**options)
    except (ValueError, OSError) as error:
        # Messages may quote what data and files hold. Imported only here, because it takes the package with it.
        printable = import_module("mm1_hf.reporting.printable").printable
        # Some messages of transformers have several lines.
        print(f"mm1 {verb}: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    return 0


__all__ = ["build_parser", "main"]
