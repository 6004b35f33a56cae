"""`mm1 data`: data sets from web pages, pairs, texts or PDF files."""

import hashlib
import json
import os
import sys
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any


_PACKAGES = ("datatrove", "selectolax", "warcio")


def run(
    name: str,
    inputs: list[str],
    output: str,
    tasks: int,
    workers: int,
    executor: Any,
    partition: str | None,
    time: str | None,
    way: str | None,
    **options: Any,
) -> None:
    """
    Builds a data set by one of the ways, or resumes a stopped run, and prints what every step kept and dropped.

    Raises:
        ValueError: options that a way refuses, a file that is no way, a folder that holds something else, or a package that
            is not installed.
    """
    if missing := [package for package in _PACKAGES if find_spec(package) is None]:
        raise ValueError(f"Building data sets needs more packages ({', '.join(missing)}): pip install 'mm1_hf[data]'.")
    from mm1_hf.corpus.report import text_counts
    from mm1_hf.corpus.stages import SlurmOptions, run_stages

    # A run is resumed from any folder.
    paths = tuple(map(os.path.abspath, inputs))
    module = import_module(f"mm1_hf.corpus.ways.{name}") if way is None else _own_way(way)
    settings = module.Settings(inputs=paths, output=os.path.abspath(output), **options)
    slurm = None if partition is None and time is None else SlurmOptions(partition or "", time or "")
    started_with = {"way": name if way is None else _digest(way), **asdict(settings)}
    for free in ("output", *getattr(module, "MAY_CHANGE", ())):
        del started_with[free]
    run_stages(
        module.stages(settings),
        output,
        tasks=tasks,
        workers=workers,
        executor=executor,
        slurm=slurm,
        started_with=started_with,
    )
    if executor == "slurm":
        print(f"jobs submitted; when they are done, the data set is in {Path(output) / 'data'}")
        return
    for line in text_counts(json.loads((Path(output) / "counts.json").read_text(encoding="utf-8"))):
        print(line)
    print(f"\ndata: {Path(output) / 'data'}\npage: {Path(output) / 'report.html'}")


def _own_way(file: str) -> ModuleType:
    """The module of a user's own copy of a way. Worker processes import it by its name."""
    path = Path(file).absolute()
    if not path.is_file() or path.suffix != ".py":
        raise ValueError(f"There is no Python file {file}. Give a copy of a file of mm1_hf/corpus/ways.")
    found = find_spec(path.stem)
    if found is not None and found.origin != str(path):
        raise ValueError(f"Rename {file}: Python has another module named {path.stem}.")
    sys.path.insert(0, str(path.parent))
    module = import_module(path.stem)
    if missing := [name for name in ("Settings", "stages") if not hasattr(module, name)]:
        raise ValueError(f"{file} has no {' and no '.join(missing)}. Copy a file of mm1_hf/corpus/ways and change it.")
    return module


def _digest(file: str) -> str:
    """A run must not be resumed with other steps."""
    content = Path(file).read_bytes()
    return f"{Path(file).name} of MD5 {hashlib.md5(content).hexdigest()}"
