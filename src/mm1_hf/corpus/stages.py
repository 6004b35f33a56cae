"""
Runs the stages of a way: lists of steps, each of which datatrove runs as so many tasks on one machine, on Slurm or on Ray.

The folder of a run holds:

    run.json                    what the run was started with
    steps/NN-NAME/              logs, statistics, samples and completed tasks of each stage
    work/NAME/                  documents and counts on their way from one stage to a later one
    data/                       the data set
    counts.json, report.html    what every step kept and dropped, and samples of it

A run that was stopped is resumed when it is started again: completed tasks are skipped, and the others begin anew. Every
file is written whole or not at all, so the data set has the same bytes as without the stop.
"""

import contextlib
import fcntl
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from multiprocess import forkserver

from mm1_hf.corpus.atomic import remove_partial_files, whole_file
from mm1_hf.corpus.orphans import end_children_with_this_process
from mm1_hf.corpus.report import REPORT_STAGE, WriteReport
from mm1_hf.corpus.steps import CountedStep
from mm1_hf.data.identity import differences


Executor = Literal["local", "slurm", "ray"]


@dataclass(frozen=True)
class Stage:
    """
    Steps that follow each other without a wait. A stage begins when all tasks of the stage before it are complete.

    Args:
        name: name of the stage, for its folder and the page: lower-case letters, digits and `-`.
        steps: its steps.
        tasks: its number of tasks. Unset, that of the run.
    """

    name: str
    steps: Sequence[PipelineStep]
    tasks: int | None = None


@dataclass(frozen=True)
class SlurmOptions:
    """
    What Slurm has to be told about every job.

    Args:
        partition: name of the partition.
        time: time limit of a job, `HH:MM:SS`.
    """

    partition: str
    time: str


def work_folder(output: str | os.PathLike[str], name: str) -> str:
    """
    The folder for what one stage leaves for a later one.

    Args:
        output: folder of the run.
        name: name of the folder.
    """
    return os.path.join(output, "work", name)


def data_folder(output: str | os.PathLike[str]) -> str:
    """
    The folder of the finished data set.

    Args:
        output: folder of the run.
    """
    return os.path.join(output, "data")


def run_stages(
    stages: Sequence[Stage],
    output: str | os.PathLike[str],
    *,
    tasks: int = 1,
    workers: int = 1,
    executor: Executor = "local",
    slurm: SlurmOptions | None = None,
    started_with: Mapping[str, Any] | None = None,
) -> None:
    """
    Runs stages in their order and writes the page of their counts, or resumes a run that was stopped. With Slurm, the jobs
    are submitted, and the call returns before they have run.

    Args:
        stages: the stages. Their steps keep their samples in the run's folder from then on.
        output: folder of the run.
        tasks: number of parts that the work of a stage is cut into.
        workers: number of tasks that run at the same time; 1 runs them in this process.
        executor: what runs the tasks. `"ray"` uses the cluster that Ray finds, or starts one on this machine.
        slurm: options of Slurm.
        started_with: everything else that decides the data set, as JSON can hold it. A resumed run must agree.

    Raises:
        ValueError: the folder holds something else, or a run with other settings; another process is running there; a name
            of a stage cannot be used; options of Slurm are missing or not wanted.
    """
    require_usable(stages)
    if executor != "slurm" and slurm is not None:
        raise ValueError(
            f"A partition and a time limit are options of Slurm, but the executor is {executor}: leave them out."
        )
    if executor == "slurm" and not (slurm and slurm.partition and slurm.time):
        raise ValueError(
            "Slurm needs the name of a partition and a time limit. Give both (--partition NAME --time HH:MM:SS)."
        )
    output = os.path.abspath(output)
    identity = {**(started_with or {}), "tasks": tasks, "stages": [[stage.name, stage.tasks] for stage in stages]}
    with _only_run(output, identity):
        report = Stage(REPORT_STAGE, [WriteReport(output)], tasks=1)
        executors = _executors([*stages, report], output, tasks, workers, executor, slurm)
        if executor == "slurm":
            # Each submits the one that it depends on first.
            executors[-1].run()
            return
        remove_partial_files(output)
        # So that workers need not import everything again in every stage.
        forkserver.set_forkserver_preload(["mm1_hf.corpus.preloaded"])
        with _errors_to(os.path.join(output, "log.txt")), _children_that_end_with_this_process():
            for each in executors:
                each.run()
                # Ray's only warns when a task has failed for good.
                if failed := each.get_incomplete_ranks(skip_completed=True):
                    raise ValueError(
                        f"{len(failed)} of the {each.world_size} tasks in {each.logging_dir.path} failed; the logs in this "
                        "folder say why. Start the run again to repeat them."
                    )


def require_usable(stages: Sequence[Stage]) -> None:
    """
    Checks the names of stages.

    Args:
        stages: the stages of a run.

    Raises:
        ValueError: there are none, a name occurs twice, or cannot be that of a folder.
    """
    if not stages:
        raise ValueError("There are no stages to run. Give at least one.")
    for name, number in Counter(stage.name for stage in stages).items():
        if number > 1 or not re.fullmatch("[a-z0-9][a-z0-9-]*", name) or name == REPORT_STAGE:
            raise ValueError(
                f"{number} stage(s) have the name {name!r}. Give every stage a name of its own, of lower-case letters, "
                f"digits and -, other than {REPORT_STAGE!r}."
            )


def _executors(
    stages: Sequence[Stage],
    output: str,
    tasks: int,
    workers: int,
    executor: Executor,
    slurm: SlurmOptions | None,
) -> list[PipelineExecutor]:
    executors: list[Any] = []
    for index, stage in enumerate(stages, 1):
        folder = os.path.join(output, "steps", f"{index:02d}-{stage.name}")
        for place, step in enumerate(stage.steps):
            if isinstance(step, CountedStep):
                step.samples_path = os.path.join(folder, "samples", f"{place:02d}")
        pipeline: list[Any] = list(stage.steps)
        number = stage.tasks or tasks
        if slurm is not None:
            from datatrove.executor.slurm import SlurmPipelineExecutor

            executors.append(
                SlurmPipelineExecutor(
                    pipeline,
                    number,
                    slurm.time,
                    slurm.partition,
                    workers=workers,
                    job_name=f"mm1-data-{stage.name}",
                    qos="",
                    env_command=_environment(),
                    depends=executors[-1] if executors else None,
                    logging_dir=folder,
                    mail_type="NONE",
                )
            )
        elif executor == "ray":
            executors.append(_ray_executor(pipeline, number, workers, folder))
        else:
            executors.append(LocalPipelineExecutor(pipeline, number, min(workers, number), folder))
    return executors


def _environment() -> str:
    """The commands with which a job of Slurm enters this process's environment."""
    path = os.pathsep.join([os.path.dirname(sys.executable), "$PATH"])
    lines = [f'export PATH="{path}"', f'export PYTHONPATH="{os.pathsep.join(filter(None, sys.path))}"']
    return "\n".join(lines)


def _ray_executor(pipeline: list[Any], tasks: int, workers: int, folder: str) -> PipelineExecutor:
    try:
        import ray  # ty: ignore[import-not-found] -- an optional package
    except ImportError as error:
        raise ValueError("The executor ray needs Ray: pip install ray.") from error
    from datatrove.executor.ray import RayPipelineExecutor

    if not ray.is_initialized():
        ray.init()
    return RayPipelineExecutor(pipeline, tasks, workers, logging_dir=folder)


@contextlib.contextmanager
def _only_run(output: str, identity: Mapping[str, Any]) -> Generator[None, None, None]:
    """Makes sure that the folder is new or holds this run, and that no other process is running it."""
    path = Path(output) / "run.json"
    if not path.exists():
        if os.path.isdir(output) and os.listdir(output):
            raise ValueError(
                f"{output} is not empty and holds no run. Give a new folder, or that of the run to resume."
            )
        with whole_file(path) as partial:
            partial.write_text(json.dumps(identity, indent=2), encoding="utf-8")
    # A lock of the process, which the operating system lifts when it dies, and which its children do not inherit.
    with path.open("rb+") as locked:
        try:
            fcntl.lockf(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"Another process is running in {output}. Wait until it ends, or end it.") from error
        saved = json.loads(locked.read())
        if changes := differences(saved, json.loads(json.dumps(identity))):
            told = "; ".join(f"{name} was {before!r} and is {now!r} now" for name, (before, now) in changes.items())
            raise ValueError(
                f"{output} holds a run with other settings: {told}. Resume it with the same settings, or give a new folder."
            )
        yield


@contextlib.contextmanager
def _children_that_end_with_this_process() -> Generator[None, None, None]:
    end_children_with_this_process()
    try:
        yield
    finally:
        end_children_with_this_process(False)


@contextlib.contextmanager
def _errors_to(path: str) -> Generator[None, None, None]:
    """
    Appends what this process and its children write to their standard error to a file: datatrove reports every task there in
    many lines. The logs of the tasks hold it too.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(path, "ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
