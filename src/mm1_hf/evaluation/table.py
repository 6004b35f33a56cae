"""The table that an evaluation ends with, and the rows that results, comparison and report share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """
    One question of a run with its answer.

    Args:
        task: name of the task.
        shots: number of demonstrations.
        trial: index of the trial.
        index: place of the question in its split.
        id: name of the question's sample.
        question: its text.
        references: what the metric compares the answer with; None if there is no reference.
        demonstrations: names of the demonstrations.
        prompt: digest of the prompts.
        answer: the generated text.
        log_likelihoods: log-likelihoods of the continuations.
        error: why there is no answer.
        score: the reported score of this question alone, where there is one, or another score of it.
        scores: all its scores.
    """

    task: str
    shots: int
    trial: int
    index: int
    id: str
    question: str
    references: Any
    demonstrations: tuple[str, ...]
    prompt: str
    answer: str
    log_likelihoods: tuple[float, ...]
    error: str | None
    score: float | None
    scores: Mapping[str, float] | None


def percent(value: float, unit: str) -> float:
    """
    A score as papers print it: a share times 100, points as they are.

    Args:
        value: the score.
        unit: `"fraction"` or `"points"`.
    """
    return 100 * value if unit == "fraction" else value


def shown(value: float | None, unit: str | None) -> str:
    """
    A score or an error as text with two decimals; a dash if there is none.

    Args:
        value: the score, or None.
        unit: `"fraction"` or `"points"`.
    """
    return "-" if value is None or unit is None else f"{percent(value, unit):.2f}"


HEADINGS = ("task", "shots", "metric", "score", "± questions", "± trials", "n", "no reference", "errors")


def cells_of(score: Mapping[str, Any]) -> tuple[str, ...]:
    """
    The row of the table for one task with one number of demonstrations.

    Args:
        score: an entry of `scores` in the results.
    """
    unit = score["unit"]
    return (
        score["task"],
        str(score["shots"]),
        score["metric"] or "-",
        *(shown(score[name], unit) for name in ("score", "standard_error", "trial_error")),
        str(score["samples"]),
        str(score["without_reference"]),
        str(sum(score["errors"].values())),
    )


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """
    A table as text.

    Args:
        headings: headings of the columns.
        rows: rows of cells.
        left: number of columns, from the first on, that are aligned to the left; the others are aligned to the right.

    Example:

    ```python
    >>> from mm1_hf.evaluation.table import text_table

    >>> print(text_table(("task", "score"), [("coco", "1.0")]))
    task  score
    coco    1.0

    ```
    """
    widths = [max(len(row[place]) for row in (headings, *rows)) for place in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (headings, *rows)
    )
