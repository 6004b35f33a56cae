"""Files for the servers that hold the answers of a split, such as VQAv2's test-dev and VizWiz's test."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1_hf.evaluation.cells import Cell
from mm1_hf.evaluation.samples import Sample


@dataclass(frozen=True)
class _Form:
    """The entries of a file: the column that names a question, the name of this entry, and that of the answer."""

    column: str
    name: str
    answer: str = "answer"


_FORMS = {
    "vqa": _Form("question_id", "question_id"),
    # The questions of VizWiz are named by the files of their images.
    "vizwiz": _Form("question_id", "image"),
    "docvqa": _Form("question_id", "questionId"),
    "captions": _Form("image_id", "image_id", "caption"),
}


def write_submission(folder: Path, cell: Cell, samples: Sequence[Sample], predictions: Sequence[str]) -> Path:
    """
    Writes the file of one part of a run. Of several trials, the first is submitted.

    Args:
        folder: folder of the run.
        cell: the part; its task names the form.
        samples: the questions.
        predictions: the answers to them, in the same order.

    Returns:
        The file.

    Raises:
        ValueError: there is no such form.
    """
    task = cell.subject.task
    if task.submission not in _FORMS:
        raise ValueError(
            f"The task {task.name} has the submission form {task.submission!r}; there are {', '.join(_FORMS)}."
        )
    form = _FORMS[task.submission]
    entries = [
        {form.name: _identifier(sample, form.column), form.answer: answer}
        for sample, answer in zip(samples, predictions, strict=True)
    ]
    path = folder / "submissions" / f"{cell.subject.task.name}-{cell.shots}-shots.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def _identifier(sample: Sample, column: str) -> Any:
    columns: Mapping[str, Any] = sample.columns
    value = columns.get(column, sample.id)
    # Servers compare numbers with numbers, and some copies of the data hold them as text.
    return int(value) if str(value).isdecimal() else value
