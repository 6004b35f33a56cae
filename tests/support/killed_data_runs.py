"""Runs of the data engine in forked processes that are killed as `kill -9` does, at any moment."""

import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

from mm1_hf.corpus.stages import run_stages


def _main(way: Any, settings: Any, tasks: int, workers: int) -> None:
    # Its own group, so that it is killed together with the processes that it started.
    os.setpgrp()
    run_stages(way.stages(settings), settings.output, tasks=tasks, workers=workers)


def start(way: Any, settings: Any, tasks: int, workers: int) -> multiprocessing.process.BaseProcess:
    """Runs a way of `mm1_hf.corpus.ways` in a process of its own."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_main, args=(way, settings, tasks, workers))
    process.start()
    return process


def finish(way: Any, settings: Any, tasks: int, workers: int) -> None:
    process = start(way, settings, tasks, workers)
    process.join()
    assert process.exitcode == 0


def kill_somewhere(way: Any, settings: Any, tasks: int, workers: int, seconds: float, draw: random.Random) -> bool:
    """Starts a run and kills it within some seconds, with its children or without; whether it was still running."""
    process = start(way, settings, tasks, workers)
    process.join(draw.random() * seconds)
    with contextlib.suppress(ProcessLookupError):
        if draw.random() < 0.5:
            os.kill(process.pid or 0, signal.SIGKILL)
        else:
            os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def digests(folder: Path) -> dict[str, str]:
    """The files of a data set, by their contents."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
