"""From the answers of one part of a run to scores: of each question, of all, and how uncertain they are."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mm1_hf.evaluation import judging, metrics
from mm1_hf.evaluation.statistics import standard_error
from mm1_hf.evaluation.tasks import Task


# Number of parts that are left out in turn where the uncertainty has no formula.
_PARTS = 50
_MMBENCH_ROTATION = 1_000_000

Scores = dict[str, float]


@dataclass(frozen=True)
class Scored:
    """
    The scores of the questions of one trial.

    Args:
        headline: name of the score that is reported.
        unit: `"fraction"` or `"points"`.
        samples: the scores of each question.
        aggregate: computes the scores over the questions at the given places.
        groups: what questions must stay together, such as the two about one image of MME.
    """

    headline: str
    unit: str
    samples: list[Scores]
    aggregate: Callable[[Sequence[int]], Scores]
    groups: list[Any]

    @property
    def total(self) -> Scores:
        """The scores over all questions."""
        return self.aggregate(range(len(self.samples)))


def require_columns(task: Task, columns: Mapping[str, Any]) -> None:
    """
    Checks that a question has the columns that its task's metric cannot do without.

    Args:
        task: a task with a metric.
        columns: the columns of a question.

    Raises:
        ValueError: a column is missing.
    """
    metric = metrics.load(task.metric)
    needed = [
        name
        for function in (metric.per_sample, metric.aggregate)
        for name, parameter in inspect.signature(function).parameters.items()
        if name in (*metric.SAMPLE_COLUMNS, *metric.GROUP_COLUMNS) and parameter.default is parameter.empty
    ]
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(
            f"The metric {task.metric} of the task {task.name} needs {', '.join(missing)}, and the samples have only "
            f"{', '.join(sorted(columns)) or 'no columns'}. Let the task keep it: keep: {{{missing[0]}: COLUMN}}."
        )


def score(
    task: Task, predictions: Sequence[Any], references: Sequence[Any], columns: Sequence[Mapping[str, Any]]
) -> Scored:
    """
    Scores the questions of one trial by the metric of their task.

    Args:
        task: the task; it has a metric.
        predictions: what was answered to each question, in the metric's form.
        references: references of each question.
        columns: further columns of each question that the metric takes.

    Raises:
        ValueError: the metric refuses what it is given.
    """
    metric = metrics.load(task.metric)

    def column(name: str, rows: Sequence[int]) -> dict[str, list[Any]]:
        return {name: [columns[row].get(name) for row in rows]} if any(name in each for each in columns) else {}

    rows = range(len(predictions))
    sample_columns = {key: value for name in metric.SAMPLE_COLUMNS for key, value in column(name, rows).items()}
    samples = metric.per_sample(predictions, references, **sample_columns, **task.options)

    def aggregate(chosen: Sequence[int]) -> Scores:
        grouped = {key: value for name in metric.GROUP_COLUMNS for key, value in column(name, chosen).items()}
        return metric.aggregate([samples[row] for row in chosen], **grouped)

    return Scored(metric.HEADLINE, metric.UNIT, samples, aggregate, [_group(row, columns[row]) for row in rows])


def score_verdicts(
    task: Task, verdicts: Sequence[dict[str, float] | None], columns: Sequence[Mapping[str, Any]]
) -> Scored:
    """
    Scores the questions of one trial by what a judge said of the answers. A verdict that cannot be read does not count in
    the score.

    Args:
        task: the task; it has a judge.
        verdicts: the verdict on each answer; None if it cannot be read.
        columns: further columns of each question.
    """
    read = list(verdicts)
    categories = [each.get("categories") for each in columns]

    def aggregate(chosen: Sequence[int]) -> Scores:
        return judging.aggregate(task, [read[row] for row in chosen], [categories[row] for row in chosen])

    samples = [
        {"judge": 0.0, "unread": 1.0}
        if each is None
        else {"judge": each["score"] / each.get("reference", 1.0), **each, "unread": 0.0}
        for each in read
    ]
    return Scored(judging.HEADLINE, judging.UNIT, samples, aggregate, list(range(len(read))))


def _group(row: int, columns: Mapping[str, Any]) -> Any:
    if "question_ids" in columns:
        return columns.get("categories"), columns["question_ids"]
    return int(columns["indices"]) % _MMBENCH_ROTATION if "indices" in columns else row


def question_error(trials: Sequence[Scored]) -> float | None:
    """
    The standard error over questions of the reported score's mean over trials. If the score is the mean of the questions'
    scores, it follows from their spread. Otherwise, as for MME or POPE's F1, it is the jackknife's: up to 50 parts of the
    questions are left out in turn.

    Args:
        trials: the scored trials, with the same questions in the same order.

    Returns:
        None if there are fewer than two questions.
    """
    name, number = trials[0].headline, len(trials[0].samples)
    if number < 2:
        return None
    if all(name in sample for trial in trials for sample in trial.samples) and all(
        math.isclose(fmean(sample[name] for sample in trial.samples), trial.total[name], abs_tol=1e-9)
        for trial in trials
    ):
        return standard_error([fmean(each) for each in zip(*(_named(trial, name) for trial in trials), strict=True)])
    groups = {group: place for place, group in enumerate(dict.fromkeys(trials[0].groups))}
    parts = min(_PARTS, len(groups))
    if parts < 2:
        return None
    part_of = [groups[group] % parts for group in trials[0].groups]
    left = []
    for part in range(parts):
        kept = [row for row in range(number) if part_of[row] != part]
        left.append(fmean(trial.aggregate(kept)[name] for trial in trials))
    mean = fmean(left)
    return math.sqrt((parts - 1) / parts * math.fsum((value - mean) ** 2 for value in left))


def _named(trial: Scored, name: str) -> list[float]:
    return [sample[name] for sample in trial.samples]
