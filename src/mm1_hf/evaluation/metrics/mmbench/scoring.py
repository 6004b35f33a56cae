"""
MMBench's circular evaluation (Liu et al., 2023).

A question is asked several times with its options rotated, and counts as right only if every rotation is answered
correctly. The rows of rotations have the index of the question plus a multiple of 1,000,000.

`letters.py` lists the rules by which a letter is read in an answer; the original asks a language model about answers
that rules do not read. Here they are wrong, and their share is given as `unread`.
"""

from collections.abc import Mapping, Sequence

from .letters import read_letter
from .samples import LETTERS, check_lengths, mean, score_each


HEADLINE = "circular_accuracy"
UNIT = "fraction"
SAMPLE_COLUMNS = ("options",)
GROUP_COLUMNS = ("indices", "categories")

_ROTATION = 1_000_000


def per_sample(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    options: Sequence[Sequence[str | None] | None] | None = None,
) -> list[dict[str, float]]:
    """
    Returns for every row whether it is answered correctly and whether its answer could not be read.

    Args:
        predictions: the answers of the model.
        references: the right letter of each row.
        options: the options' texts of each row, with None for options that do not exist; unset, answers in words cannot
            be read.
    """
    return score_each(_score, str, predictions=predictions, references=references, options=options)


def aggregate(
    samples: Sequence[Mapping[str, float]],
    *,
    indices: Sequence[int | str],
    categories: Sequence[str] | None = None,
) -> dict[str, float]:
    """
    Returns the share of questions that are right in every rotation, over all questions and of each category; the share
    of correct answers to the questions as they are, without rotations; and the share of unread answers.

    Args:
        samples: what `per_sample` returned.
        indices: the index of each row, as a number or its text.
        categories: the category of each row; unset, only the totals are returned.

    Raises:
        ValueError: an index is not a whole number, or two rows have the same index.
    """
    columns = {"samples": samples, "indices": indices, "categories": categories}
    check_lengths(**{name: column for name, column in columns.items() if column is not None})
    rows = [_row(index, place) for place, index in enumerate(indices)]
    if len(set(rows)) < len(rows):
        twice = next(row for row in rows if rows.count(row) > 1)
        raise ValueError(f"Two rows have the index {twice}; expected a different index for each row.")
    right: dict[int, bool] = {}
    category_of: dict[int, str] = {}
    for place, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        question = row % _ROTATION
        right[question] = right.get(question, True) and sample["accuracy"] == 1
        if categories is not None:
            category_of.setdefault(question, categories[place])
    asked = [sample["accuracy"] for row, sample in zip(rows, samples, strict=True) if row < _ROTATION]
    parts: dict[str, list[bool]] = {}
    for question, category in category_of.items():
        parts.setdefault(f"{HEADLINE}/{category}", []).append(right[question])
    return {
        HEADLINE: sum(right.values()) / len(right),
        # A part of the data may hold rotations alone.
        **({"accuracy": sum(asked) / len(asked)} if asked else {}),
        **{name: sum(values) / len(values) for name, values in parts.items()},
        "unread": mean(samples, "unread"),
    }


def _row(index: int | str, place: int) -> int:
    try:
        return int(index)
    except (TypeError, ValueError):
        raise ValueError(f"Sample {place}: the index is {index!r}; expected a whole number.") from None


def _score(prediction: str, reference: str, options: Sequence[str | None] | None) -> dict[str, float]:
    if not isinstance(reference, str) or len(reference) != 1 or reference not in LETTERS:
        raise ValueError(f"the reference is {reference!r}; expected a capital letter.")
    chosen = read_letter(prediction, options)
    return {"accuracy": float(chosen == reference), "unread": float(chosen is None)}
