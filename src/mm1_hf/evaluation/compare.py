"""Compares two runs on the same questions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mm1_hf.data.identity import differences
from mm1_hf.evaluation.results import RESULTS, SAMPLES, read_rows
from mm1_hf.evaluation.statistics import PairedTest, paired_test


@dataclass(frozen=True)
class Comparison:
    """
    Two runs on one task with one number of demonstrations.

    Args:
        task: name of the task.
        shots: number of demonstrations.
        metric: name of the questions' score.
        first, second: mean scores of the runs over the questions that both answered.
        questions: number of these questions.
        first_alone, second_alone: numbers of scored questions that only this run has.
        test: difference, interval and probability.
    """

    task: str
    shots: int
    metric: str
    first: float
    second: float
    questions: int
    first_alone: int
    second_alone: int
    test: PairedTest


@dataclass(frozen=True)
class _Run:
    folder: Path
    results: Mapping[str, Any]
    # By task and shots, and then by trial and name of the question.
    rows: Mapping[tuple[str, int], Mapping[tuple[int, str], Mapping[str, Any]]]


def compare(first: str | Path, second: str | Path) -> list[Comparison]:
    """
    Compares two runs by a paired test of each task and number of demonstrations that both have. Questions that only one
    run has are left out and counted. The score of a question with several trials is the mean over those that both have.

    Args:
        first, second: folders of finished runs.

    Raises:
        ValueError: a folder holds no finished run, nothing was measured in both runs, or a task was asked with other
            prompts or scored by another metric.
    """
    runs = [_read(Path(folder)) for folder in (first, second)]
    common = [key for key in runs[0].rows if key in runs[1].rows]
    if not common:
        told = " and ".join(
            f"{run.folder} ({', '.join(f'{task} with {shots} shots' for task, shots in run.rows)})" for run in runs
        )
        raise ValueError(f"No task was measured with the same number of demonstrations in {told}.")
    return [_compared(*runs, key) for key in common]


def _read(folder: Path) -> _Run:
    folder = folder.parent if folder.name == RESULTS else folder
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        table = read_rows(folder)
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} holds no finished run: {Path(error.filename or SAMPLES).name} is missing. Give the output folder of "
            "`mm1 eval`, after the run has ended."
        ) from None
    rows: dict[tuple[str, int], dict[tuple[int, str], Mapping[str, Any]]] = {}
    for row in table:
        if row["score"] is not None:
            rows.setdefault((row["task"], row["shots"]), {})[row["trial"], row["id"]] = row
    return _Run(folder, results, rows)


def _compared(first: _Run, second: _Run, key: tuple[str, int]) -> Comparison:
    task, shots = key
    _require_equal(first, second, task, "scored differently", ("metric", "options", "judge"))
    pairs: dict[str, list[tuple[float, float]]] = {}
    other_prompts = 0
    for name, row in first.rows[key].items():
        other = second.rows[key].get(name)
        # Questions of one name may be others, if the data differ.
        if other is None or (row["question"], row["references"]) != (other["question"], other["references"]):
            continue
        other_prompts += row["prompt"] != other["prompt"]
        pairs.setdefault(row["id"], []).append((row["score"], other["score"]))
    if not pairs:
        raise ValueError(
            f"The runs in {first.folder} and {second.folder} have no question of {task} in common: "
            f"{_changes(first, second, task) or 'their data differ'}."
        )
    if other_prompts:
        raise ValueError(
            f"Of the questions of {task} with {shots} shots, {other_prompts} were asked with other prompts in "
            f"{second.folder} than in {first.folder}: "
            f"{_changes(first, second, task) or 'their demonstrations differ'}. Compare runs with the same prompts."
        )
    scores = [[fmean(pair[side] for pair in asked) for asked in pairs.values()] for side in (0, 1)]
    names = [{row_id for _, row_id in run.rows[key]} for run in (first, second)]
    metric = next(each["metric"] for each in first.results["scores"] if (each["task"], each["shots"]) == key)
    kinds = json.loads(next(iter(first.rows[key].values()))["scores"])
    return Comparison(
        task=task,
        shots=shots,
        metric=metric if metric in kinds else next(iter(kinds)),
        first=fmean(scores[0]),
        second=fmean(scores[1]),
        questions=len(pairs),
        first_alone=len(names[0] - set(pairs)),
        second_alone=len(names[1] - set(pairs)),
        test=paired_test(*scores),
    )


def _require_equal(first: _Run, second: _Run, task: str, how: str, names: tuple[str, ...]) -> None:
    told = [{name: run.results["tasks"][task]["task"][name] for name in names} for run in (first, second)]
    if told[0]["judge"]:
        for side, run in zip(told, (first, second), strict=True):
            side["judge"] = run.results["judge"]
    if changed := differences(told[0], told[1]):
        raise ValueError(f"{task} was {how} in {first.folder} and {second.folder}: {_listed(changed)}.")


def _changes(first: _Run, second: _Run, task: str) -> str:
    """The settings, prompts and data of the runs that differ."""
    sides = []
    for run in (first, second):
        kept = {name: value for name, value in run.results["tasks"][task].items() if name != "task"}
        sides.append({"settings": {**run.results["settings"], "shots": None, "trials": None}, **kept})
    return _listed(differences(sides[0], sides[1]))


def _listed(changes: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name} is {one!r:.100} and {other!r:.100}" for name, (one, other) in changes.items())
