"""`mm1 pretrain` and `mm1 sft` in forked processes that are killed as `kill -9` does, at any moment or while they save."""

import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from conversations import conversations
from mixtures import records
from tiny import tiny_mm1

from mm1_hf.training import runs, sft
from mm1_hf.training.settings import PretrainingSettings, RunSettings, SFTSettings, SourceSettings


# Needed before processes are forked: importing it takes longer than a run.
_IMPORTED = sft.MM1SFTTrainer
STEPS = 6


def toy_settings(command: str, folder: Path, workers: int, save_total_limit: int | None = None) -> RunSettings:
    """Six steps on two sources, with a checkpoint at every second."""
    if not (folder / "model").exists():
        for part in tiny_mm1():
            part.save_pretrained(folder / "model")
    shared: dict[str, Any] = {
        "model": str(folder / "model"),
        "output_dir": str(folder / "run"),
        "max_images": 4,
        "image_splitting": "none",
        "resolution": 56,
        "batch_size": 4,
        "rows_per_device": 2,
        "lanes": 2,
        "window": 8,
        "arguments": {
            "max_steps": STEPS,
            "save_steps": 2,
            "save_total_limit": save_total_limit,
            "logging_steps": 1,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "dataloader_num_workers": workers,
        },
    }
    data = folder / "data"
    if command == "sft":
        conversations(40).to_parquet(data / "chats" / "train.parquet")
        conversations(30, most_images=0).to_parquet(data / "talk" / "train.parquet")
        sources = {name: SourceSettings(str(data / name), "chat", 1.0) for name in ("chats", "talk")}
        return SFTSettings(sources=sources, sequence_length=200, recipe="mm1.5-1b", **shared)
    for kind in ("caption", "text"):
        datasets.Dataset.from_list(records(kind, 60)).to_parquet(data / kind / "train.parquet")
    sources = {kind: SourceSettings(str(data / kind), "documents") for kind in ("caption", "text")}
    return PretrainingSettings(sources=sources, sequence_length=48, **shared)


def _main(settings: RunSettings) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        runs.train(settings)


def start(settings: RunSettings) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=_main, args=(settings,))
    process.start()
    return process


def finish(settings: RunSettings) -> str:
    """Runs to the end; the digest of the trained model."""
    process = start(settings)
    process.join()
    assert process.exitcode == 0
    weights = (Path(settings.output_dir) / "model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest()


def _saving(folder: Path) -> bool:
    """Whether a checkpoint is being written, or the trained model after the last one."""
    written = [each for each in folder.glob("checkpoint-*") if not (each / "trainer_state.json").exists()]
    return bool(written) or (folder / "model.safetensors").exists()


def kill_somewhere(settings: RunSettings, draw: random.Random, seconds: float, while_saving: bool) -> bool:
    """Starts a run and kills it; whether it was still running."""
    process = start(settings)
    folder = Path(settings.output_dir)
    if while_saving:
        # One of the next saves: the first, the second or the last one.
        for _ in range(draw.randint(1, 3)):
            while process.is_alive() and not _saving(folder):
                time.sleep(0.001)
            time.sleep(draw.random() * 0.1)
    else:
        process.join(draw.random() * seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def campaign(folder: Path, kills: int, seed: int = 0, seconds_at_most: float = 1e9) -> Iterator[dict[str, Any]]:
    """
    Runs that are killed twice in a row and then finished, until so many kills have hit. Each yields what was killed, and
    whether its weights are those of the run that nobody disturbed.
    """
    draw, hit, began = random.Random(seed), 0, time.monotonic()
    expected: dict[tuple[str, int], tuple[str, float]] = {}
    number = 0
    while hit < kills and time.monotonic() - began < seconds_at_most:
        command, workers = ("pretrain", "sft")[number % 2], (0, 2)[number // 2 % 2]
        home = folder / f"{command}-{workers}"
        settings = toy_settings(command, home, workers, draw.choice([None, 1, 2]))
        if (command, workers) not in expected:
            start_of_run = time.monotonic()
            digest = finish(replace(settings, output_dir=str(home / "straight")))
            expected[command, workers] = digest, time.monotonic() - start_of_run
        digest, seconds = expected[command, workers]
        settings = replace(settings, output_dir=str(home / f"killed-{number}"))
        while_saving = number // 4 % 2 == 1
        hits = [kill_somewhere(settings, draw, seconds, while_saving) for _ in range(2)]
        hit += sum(hits)
        yield {
            "command": command,
            "workers": workers,
            "while saving": while_saving,
            "kills": sum(hits),
            "equal": finish(settings) == digest,
        }
        number += 1
