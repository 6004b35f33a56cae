"""What is left of a run: its scores, the record of everything that they depend on, and the answers as a table."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm1_hf.evaluation.cells import Cell, EvaluationSettings, Subject
from mm1_hf.evaluation.environment import environment
from mm1_hf.evaluation.journal import Entry
from mm1_hf.evaluation.judging import read_verdict
from mm1_hf.evaluation.metrics.averages import GROUPS, category_average, mm_base
from mm1_hf.evaluation.prompts import prediction
from mm1_hf.evaluation.report import write_report
from mm1_hf.evaluation.samples import Sample
from mm1_hf.evaluation.scoring import Scored, question_error, score, score_verdicts
from mm1_hf.evaluation.statistics import standard_error
from mm1_hf.evaluation.submissions import write_submission
from mm1_hf.evaluation.table import Row, percent
from mm1_hf.evaluation.tasks import Task


RESULTS = "results.json"
SAMPLES = "samples.parquet"

_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("shots", pa.int32()),
        ("trial", pa.int32()),
        ("id", pa.string()),
        ("question", pa.string()),
        ("references", pa.string()),
        ("demonstrations", pa.list_(pa.string())),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("log_likelihoods", pa.list_(pa.float64())),
        ("error", pa.string()),
        ("score", pa.float64()),
        ("scores", pa.string()),
    ]
)
_ROW_GROUP = 10_000


@dataclass(frozen=True)
class Trial:
    """
    The answers of one part of a run, with their scores.

    Args:
        cell: the part.
        rows: one row of the table of answers for each question.
        predictions: what was answered to each question, in the metric's form.
        scored: the scores; None if no question has a reference.
    """

    cell: Cell
    rows: list[Row]
    predictions: list[Any]
    scored: Scored | None


def write_results(
    folder: Path,
    run: Mapping[str, Any],
    parts: Sequence[Cell],
    settings: EvaluationSettings,
    read: Callable[[Collection[str]], Mapping[str, Mapping[int, Entry]]],
    processes: int,
    seconds: float,
) -> dict[str, Any]:
    """
    Scores the answers of a run and writes its results: `samples.parquet` with every answer, the files for evaluation
    servers, the report, and last `results.json`, which marks the run as finished.

    Args:
        folder: folder of the run.
        run: what the run was started with.
        parts: the parts of the run.
        settings: settings of the run.
        read: returns the answers of cells by their names, as [`mm1_hf.evaluation.journal.Journal.read`] does.
        processes: number of processes.
        seconds: how long the run took since it was started or resumed.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: a metric refuses the references of a sample.
    """
    scores, shown = [], []
    part_file = folder / f"{SAMPLES}.part"
    with pq.ParquetWriter(part_file, _SCHEMA) as table:
        samples: list[Sample] = []
        for task_name, shots in dict.fromkeys((cell.subject.task.name, cell.shots) for cell in parts):
            cells = [cell for cell in parts if (cell.subject.task.name, cell.shots) == (task_name, shots)]
            if not scores or scores[-1]["task"] != task_name:
                samples = _without_images(cells[0].subject)
            answers = read([replace(cell, judged=judged).name for cell in cells for judged in (False, True)])
            trials = [_trial(cell, samples, settings, answers) for cell in cells]
            for trial in trials:
                for start in range(0, len(trial.rows), _ROW_GROUP):
                    rows = [_stored(row) for row in trial.rows[start : start + _ROW_GROUP]]
                    table.write_table(pa.Table.from_pylist(rows, _SCHEMA))
            scores.append(_summary(cells[0], trials))
            shown.append((cells[0], trials[0].rows))
            if (task := cells[0].subject.task).submission and task.split in task.hidden:
                write_submission(folder, cells[0], samples, trials[0].predictions)
    part_file.replace(folder / SAMPLES)
    results = {
        "format": 1,
        **run,
        "scores": scores,
        "averages": _averages(scores, [cell.subject.task for cell in parts]),
        "processes": processes,
        "environment": environment(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds_of_last_session": round(seconds, 1),
    }
    write_report(folder / "report.html", results, shown, settings)
    part = folder / f"{RESULTS}.part"
    part.write_text(json.dumps(_finite(results), indent=1), encoding="utf-8")
    os.replace(part, folder / RESULTS)
    return json.loads((folder / RESULTS).read_text(encoding="utf-8"))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """
    The rows of `samples.parquet`, in the order of tasks, shots, trials and questions.

    Args:
        folder: folder of a finished run.
    """
    return pq.read_table(folder / SAMPLES).to_pylist()


def _without_images(subject: Subject) -> list[Sample]:
    # All samples of a split fit in memory, but their images do not.
    return [replace(subject.samples[index], images=(), pool=()) for index in range(len(subject.samples))]


def _trial(
    cell: Cell, samples: Sequence[Sample], settings: EvaluationSettings, answers: Mapping[str, Mapping[int, Entry]]
) -> Trial:
    task, entries = cell.subject.task, answers[cell.name]
    read = [
        prediction(task, sample, entries[index].answers, style=settings.style) for index, sample in enumerate(samples)
    ]
    chosen = [index for index, sample in enumerate(samples) if sample.scored]
    predictions = [read[index][0] for index in chosen]
    columns = [read[index][1] for index in chosen]
    scored = None
    if chosen and task.judge:
        verdicts = answers[replace(cell, judged=True).name]
        said = [read_verdict(task, verdicts[index].answers[0].text) for index in chosen]
        scored = score_verdicts(task, said, columns)
    elif chosen:
        scored = score(task, predictions, [samples[index].references for index in chosen], columns)
    sample_scores = dict(zip(chosen, scored.samples, strict=True)) if scored is not None else {}
    headline = scored.headline if scored is not None else ""
    rows = []
    for index, sample in enumerate(samples):
        entry, found = entries[index], sample_scores.get(index)
        rows.append(
            Row(
                task=task.name,
                shots=cell.shots,
                trial=cell.trial,
                index=index,
                id=sample.id,
                question=sample.question,
                references=sample.references if sample.scored else None,
                demonstrations=entry.shots,
                prompt=entry.prompt,
                answer="\n".join(answer.text for answer in entry.answers if answer.text),
                log_likelihoods=tuple(value for answer in entry.answers for value in answer.log_likelihoods),
                error=next((answer.error for answer in entry.answers if answer.error is not None), None),
                score=None if found is None else found.get(headline, next(iter(found.values()))),
                scores=found,
            )
        )
    return Trial(cell, rows, [each for each, _ in read], scored)


def _stored(row: Row) -> dict[str, Any]:
    stored = {name: getattr(row, name) for name in _SCHEMA.names}
    for name in ("references", "scores"):
        stored[name] = None if stored[name] is None else json.dumps(stored[name], default=str)
    # Halves of surrogate pairs, which a damaged tokenizer gives, have no place in UTF-8.
    for name in ("id", "question", "answer", "error"):
        stored[name] = None if stored[name] is None else _encodable(stored[name])
    stored["demonstrations"] = [_encodable(each) for each in row.demonstrations]
    stored["log_likelihoods"] = list(row.log_likelihoods)
    return stored


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _summary(cell: Cell, trials: Sequence[Trial]) -> dict[str, Any]:
    """What the results say of one task with one number of demonstrations."""
    task, rows = cell.subject.task, trials[0].rows
    errors = Counter(_reason(row.error) for trial in trials for row in trial.rows if row.error is not None)
    scored = [trial.scored for trial in trials if trial.scored is not None]
    prompts = [row.prompt for trial in trials for row in trial.rows]
    summary: dict[str, Any] = {
        "task": task.name,
        "shots": cell.shots,
        "trials": len(trials),
        "samples": sum(row.references is not None for row in rows) if scored else 0,
        "without_reference": sum(row.references is None for row in rows),
        "errors": dict(errors),
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
    }
    if not scored:
        return summary | {"metric": None, "unit": None, "score": None, "standard_error": None, "trial_error": None}
    headline = scored[0].headline
    totals = [each.total for each in scored]
    by_trial = [total[headline] for total in totals]
    return summary | {
        "metric": headline,
        "unit": scored[0].unit,
        "score": fmean(by_trial),
        "standard_error": question_error(scored),
        "trial_error": standard_error(by_trial) if len(by_trial) > 1 else None,
        "by_trial": by_trial,
        "all": {name: fmean(total[name] for total in totals if name in total) for name in totals[0]},
    }


def _reason(error: str) -> str:
    """The kind of an error, which many samples share: what stands before the details."""
    return error.partition(":")[0][:100]


def _averages(scores: Sequence[Mapping[str, Any]], tasks: Sequence[Task]) -> dict[str, float]:
    """The averages of MM1.5 for which all benchmarks were measured without demonstrations."""
    benchmarks = {task.name: task.benchmark for task in tasks}
    measured = {
        benchmarks[each["task"]]: percent(each["score"], each["unit"])
        for each in scores
        if each["shots"] == 0 and each["score"] is not None
    }
    found = {
        group: category_average(measured, group)
        for group, names in GROUPS.items()
        if all(name in measured for name in names)
    }
    if {"general", "text_rich", "knowledge"} <= set(found):
        found["MMBase"] = mm_base(measured)
    return found


def _finite(value: Any) -> Any:
    """JSON has no NaN: an unknown value is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
