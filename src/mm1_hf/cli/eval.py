"""`mm1 eval`: a model on tasks, few-shot, and the comparison of two runs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mm1_hf  # noqa: F401 - registers MM1 with the Auto classes
from mm1_hf.cli.models import find_model
from mm1_hf.evaluation.cells import EvaluationSettings, Subject
from mm1_hf.evaluation.compare import compare
from mm1_hf.evaluation.demonstrations import Demonstrations, How
from mm1_hf.evaluation.models import EndpointModel, LocalModel, load_model
from mm1_hf.evaluation.runner import evaluate, processes
from mm1_hf.evaluation.samples import read_samples
from mm1_hf.evaluation.table import HEADINGS, cells_of, shown, text_table
from mm1_hf.evaluation.tasks import Style, Task, load_task, task_names
from mm1_hf.evaluation.tasks_page import overview
from mm1_hf.reporting.printable import printable


def run(
    model: str | None,
    endpoint: str | None,
    tasks: Sequence[str],
    shots: Sequence[int],
    trials: int,
    seed: int,
    data: Sequence[str],
    limit: int | None,
    batch_size: int | None,
    style: Style | None,
    demonstrations: How,
    split_last: int | None,
    judge: str | None,
    judge_model: str | None,
    output: str | None,
    list: bool,
    action: str | None = None,
    first: str = "",
    second: str = "",
) -> None:
    """
    Evaluates a model and prints its scores, lists the tasks, or compares two runs.

    Raises:
        ValueError: options that exclude each other or are missing, unknown tasks, or data that are not there.
    """
    if action == "compare":
        print_comparison(first, second)
    elif list:
        headings, rows = overview([load_task(name) for name in task_names()])
        print(text_table(headings, rows, left=len(headings)))
    else:
        _require(model, endpoint, tasks, output, judge, judge_model)
        settings = EvaluationSettings(tuple(shots), trials, style, split_last)
        chosen = [load_task(name) for name in tasks]
        state = processes()
        copies = _copies(data, chosen)
        # What is wrong with the data is found out before a model is loaded.
        samples = {task.name: read_samples(task, data=copies.get(task.name), limit=limit) for task in chosen}
        asked = _model(model, endpoint, batch_size)
        subjects = [
            Subject(
                task,
                samples[task.name],
                _demonstrations(task, demonstrations, seed, copies.get(task.name), asked) if max(shots) else None,
            )
            for task in chosen
        ]
        judging = (
            None if judge is None else EndpointModel(judge, model=judge_model, key=os.environ.get("OPENAI_API_KEY"))
        )
        results = evaluate(asked, subjects, settings, str(output), judge=judging, batch_size=batch_size)
        if state.is_main_process:
            _print(results, Path(str(output)))
            _print_left_out(subjects)


def _require(
    model: str | None,
    endpoint: str | None,
    tasks: Sequence[str],
    output: str | None,
    judge: str | None,
    judge_model: str | None,
) -> None:
    if model is None and endpoint is None:
        raise ValueError("give --model DIR, or the address of a server with --endpoint.")
    if not tasks:
        raise ValueError("name the tasks with --tasks; `mm1 eval --list` lists them.")
    if output is None:
        raise ValueError("give a folder for the results with --output; a run that was stopped goes on in it.")
    if judge_model is not None and judge is None:
        raise ValueError("--judge-model names a model of the server of --judge: give --judge too.")


def _copies(data: Sequence[str], tasks: Sequence[Task]) -> dict[str, str]:
    """The local copy of each task's data, where one is given for it or for all tasks."""
    names = [task.name for task in tasks]
    copies: dict[str, str] = {}
    for each in data:
        name, given, path = each.partition("=")
        if not given:
            copies = {**dict.fromkeys(names, each), **copies}
        elif name in names:
            copies[name] = path
        else:
            raise ValueError(f"--data {each} names {name}, which is not one of the tasks: {', '.join(names)}.")
    return copies


def _model(model: str | None, endpoint: str | None, batch_size: int | None) -> LocalModel | EndpointModel:
    if endpoint is not None:
        workers = {} if batch_size is None else {"workers": batch_size}
        return EndpointModel(endpoint, model=model, key=os.environ.get("OPENAI_API_KEY"), **workers)
    return load_model(find_model(str(model)), batch_size=batch_size)


def _demonstrations(
    task: Task, how: How, seed: int, data: str | None, model: LocalModel | EndpointModel
) -> Demonstrations:
    embed: Any = None
    if how == "rices":
        if isinstance(model, EndpointModel):
            raise ValueError(
                "An endpoint gives no embeddings of images to retrieve demonstrations by; leave out rices."
            )
        embed = model.embed_images
    pool = read_samples(task, data=data, shots=True)
    return Demonstrations(pool, how=how, seed=seed, embed=embed)


def _print(results: dict[str, Any], folder: Path) -> None:
    rows = [[printable(cell) for cell in cells_of(score)] for score in results["scores"]]
    print(f"\n{text_table(HEADINGS, rows)}\n")
    for score in results["scores"]:
        for reason, number in score["errors"].items():
            print(printable(f"{score['task']}, {score['shots']} shots: {number} without an answer: {reason}"))
    for name, value in results["averages"].items():
        print(f"{name}: {value:.1f}")
    print(f"report: {folder / 'report.html'}")
    for path in sorted((folder / "submissions").glob("*.json")):
        print(f"for the evaluation server: {path}")


def _print_left_out(subjects: Sequence[Subject]) -> None:
    for subject in subjects:
        counts = subject.demonstrations.describe()["left_out"] if subject.demonstrations else {}
        if counts:
            reasons = ", ".join(f"{number} {reason}" for reason, number in counts.items())
            print(printable(f"{subject.task.name}: examples that could not be demonstrations: {reasons}"))


def print_comparison(first: str, second: str) -> None:
    """
    Prints the comparison of two runs.

    Args:
        first, second: folders of finished runs.
    """
    rows, notes = [], []
    for each in compare(first, second):
        test = each.test
        unit = "fraction"
        rows.append(
            [
                each.task,
                str(each.shots),
                each.metric,
                *(shown(value, unit) for value in (each.first, each.second, test.difference)),
                f"{shown(test.low, unit)} to {shown(test.high, unit)}",
                f"{test.p_value:.4f}",
                str(each.questions),
            ]
        )
        if each.first_alone or each.second_alone:
            notes.append(
                f"{each.task}, {each.shots} shots: {each.questions} questions are in both runs; {each.first_alone} only in "
                f"{first} and {each.second_alone} only in {second} are left out."
            )
    headings = ("task", "shots", "metric", "A", "B", "B - A", "95 % interval", "p", "n")
    print(printable(text_table(headings, rows), keep="\n"))
    for note in notes:
        print(printable(note))
