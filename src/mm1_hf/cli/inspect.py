"""`mm1 inspect`: a training row as the model sees it."""

import os
import sys
from dataclasses import replace
from pathlib import Path

from mm1_hf.cli.models import find_model
from mm1_hf.inspection.row_page import write_page
from mm1_hf.inspection.sources import CHAT, Labels, inspect_data, inspect_mixture
from mm1_hf.inspection.terminal import render
from mm1_hf.training.settings import PretrainingSettings, SFTSettings, load_settings


def run(
    data: str | None,
    model: str | None,
    config: str | None,
    command: str | None,
    layout: str | None,
    image_folder: str | None,
    split: str | None,
    row: int,
    labels: Labels | None,
    html: str | None,
) -> None:
    """
    Prints a row of a data set, or of a run's mixture, and writes it as an HTML page if `html` names a file.

    Raises:
        ValueError: options that exclude each other, or a row that cannot be read.
    """
    if config is not None:
        if given := [
            name
            for name, value in (
                ("DATA", data),
                ("--model", model),
                ("--layout", layout),
                ("--image-folder", image_folder),
                ("--split", split),
                ("--labels", labels),
            )
            if value is not None
        ]:
            raise ValueError(f"--config says which data is read: leave out {', '.join(given)}.")
        kind = SFTSettings if command == "sft" else PretrainingSettings
        settings = load_settings(kind, config)
        inspected = inspect_mixture(replace(settings, model=find_model(settings.model)), row)
    elif command is not None:
        raise ValueError(
            f"--command {command} says what the file of --config is for: give --config too, or leave --command out."
        )
    elif data is None or model is None:
        raise ValueError("give DATA and --model, or the settings file of a run with --config.")
    else:
        inspected = inspect_data(
            find_model(model),
            data,
            layout=layout or CHAT,
            split=split or "train",
            row=row,
            labels=labels or "mm1",
            image_folder=image_folder,
        )
    print(render(inspected, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    if html is not None:
        write_page(Path(html), inspected)
        print(f"\npage: {html}")
