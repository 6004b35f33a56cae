"""Toy runs of the evaluation: easy-VQA and tasks of few samples, in this process, in forked ones, and in killed ones."""

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from evaluated import FakeModel

from mm1_hf.evaluation.cells import EvaluationSettings, Subject
from mm1_hf.evaluation.demonstrations import Demonstrations
from mm1_hf.evaluation.runner import evaluate
from mm1_hf.evaluation.samples import Sample, read_samples
from mm1_hf.evaluation.tasks import Task, load_task


FEW = EvaluationSettings(shots=(0, 3), trials=2)


def easy_vqa(number: int = 150, seed: int = 0) -> Subject:
    task = load_task("easy_vqa")
    return Subject(
        task, read_samples(task, limit=number), Demonstrations(read_samples(task, shots=True, limit=200), seed=seed)
    )


def made(name: str, samples: list[Sample], **fields: Any) -> Subject:
    """A task of one's own samples, which are their own demonstrations."""
    values = {"split": "test", "metric": "exact_match", "source": "easy_vqa", "max_new_tokens": 8, "completion": "vqa"}
    return Subject(Task(name, **{**values, **fields}), samples, Demonstrations(samples))


def text_samples(number: int = 6, **fields: Any) -> list[Sample]:
    """Questions without images whose answers are yes and no in turn."""
    words = ("yes", "no")
    return [
        replace(Sample(f"s{index}", (), f"Question {index}?", words[index % 2], answer=words[index % 2]), **fields)
        for index in range(number)
    ]


def run(folder: Path, number: int = 150, **options: Any) -> dict[str, Any]:
    return evaluate(FakeModel(**options), [easy_vqa(number)], FEW, folder)


def _main(work: Callable, rank: int, ranks: int, port: int, arguments: tuple) -> None:
    if ranks > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"})
    # The process that was forked may have found out already that it is alone.
    PartialState._reset_state()
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        work(*arguments)


def start(work: Callable, *arguments: Any, ranks: int = 1) -> list[multiprocessing.process.BaseProcess]:
    """Forked processes, which belong together as those of `torchrun` do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_main, args=(work, rank, ranks, port, arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes
