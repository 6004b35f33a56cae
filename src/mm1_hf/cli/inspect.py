"""`mm1 inspect`: a training row as the model sees it."""

import os
import sys
from pathlib import Path

from mm1_hf.inspection.row_page import write_page
from mm1_hf.inspection.sources import CHAT, Labels, inspect_data, inspect_mixture
from mm1_hf.inspection.terminal import render
from mm1_hf.training import pretraining, sft


def inspect(
    data: str | None,
    model: str | None,
    config: str | None,
    command: str | None,
    layout: str | None,
    split: str | None,
    row: int,
    labels: Labels | None,
    html: str | None,
) -> None:
    """
    Prints a row of a data set, or of a run's mixture, and writes it as a page where one is asked for.

    Raises:
        ValueError: options that do not go together, or a row that cannot be read.
    """
    if config is not None:
        if given := [
            name
            for name, value in (
                ("DATA", data),
                ("--model", model),
                ("--layout", layout),
                ("--split", split),
                ("--labels", labels),
            )
            if value is not None
        ]:
            raise ValueError(f"a run's settings say what is read; leave out {', '.join(given)}.")
        settings = sft.load_settings(config) if command == "sft" else pretraining.load_settings(config)
        inspected = inspect_mixture(settings, row)
    elif command is not None:
        raise ValueError(f"--command {command} says whose settings --config names; give that, or leave it out.")
    elif data is None or model is None:
        raise ValueError("give DATA and --model, or a run's settings by --config.")
    else:
        inspected = inspect_data(
            model, data, layout=layout or CHAT, split=split or "train", row=row, labels=labels or "mm1"
        )
    print(render(inspected, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    if html is not None:
        write_page(Path(html), inspected)
        print(f"\npage: {html}")
