"""
Goes through the samples of a metric and names the sample in every error.

Each metric's folder holds the same copy of this file, because `evaluate` loads a folder alone.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, TypeVar


Score = TypeVar("Score")
LETTERS = string.ascii_uppercase


def score_each(score: Callable[..., Score], kind: type, **columns: Sequence[Any] | None) -> list[Score]:
    """
    Scores one sample after the other.

    Args:
        score: the function of one sample; it is given the sample's entry of every column, in the order of the columns.
        kind: the type that every prediction must have.
        columns: sequences of equal lengths, the predictions first; None stands for a column of None.

    Raises:
        ValueError: the columns have different lengths, a prediction has another type, or `score` refuses a sample. The
            message names the sample by its index, counted from 0.
    """
    given = {name: values for name, values in columns.items() if values is not None}
    check_lengths(**given)
    first = next(iter(columns))
    results = []
    for index, prediction in enumerate(given[first]):
        if not isinstance(prediction, kind):
            raise ValueError(
                f"Sample {index}: the prediction is {prediction!r}; expected {kind.__name__}. Pass an empty "
                f"{kind.__name__} for a sample that was not answered."
            )
        entries = [None if values is None else values[index] for values in columns.values()]
        try:
            results.append(score(*entries))
        except ValueError as error:
            raise ValueError(f"Sample {index}: {error}") from error
    return results


def check_lengths(**columns: Sequence[Any]) -> None:
    """
    Refuses columns of different lengths.

    Args:
        columns: sequences by their names.

    Raises:
        ValueError: the lengths differ, or there is no sample.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        listed = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"The columns have different lengths: {listed}. Pass one entry for every sample.")
    if not next(iter(lengths.values())):
        raise ValueError("There are no samples, so the score is undefined. Pass at least one sample.")


def compute(
    per_sample: Callable[..., list[dict[str, float]]],
    aggregate: Callable[..., dict[str, float]],
    group_columns: Sequence[str],
    **columns: Any,
) -> dict[str, float]:
    """
    Scores all samples and returns the scores of the set, for a module of `evaluate`.

    Args:
        per_sample, aggregate: the functions of a metric.
        group_columns: names of the columns that `aggregate` takes.
        columns: predictions, references, further columns and options, by name. An option is a text or a number.
    """
    # A column of `datasets` reads its data anew at every index.
    given = {
        name: value if isinstance(value, (str, float, NoneType)) else list(value) for name, value in columns.items()
    }
    groups = {name: given.pop(name) for name in group_columns if name in given}
    return aggregate(per_sample(**given), **groups)


def texts(reference: Any) -> list[str]:
    """
    Returns the accepted answers of a sample as a list.

    Args:
        reference: one answer, or several.

    Raises:
        ValueError: there is no answer, or one is not text.
    """
    answers = [reference] if isinstance(reference, str) else reference
    if not isinstance(answers, Sequence) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(
            f"the reference is {reference!r}; expected a text or a list of at least one text. Leave out samples "
            "without a reference, and report how many there were."
        )
    return list(answers)


def mean(samples: Sequence[Mapping[str, float]], key: str) -> float:
    """
    Returns the mean of one score over samples.

    Args:
        samples: the scores of each sample, by name; at least one sample.
        key: the name of the score.
    """
    return sum(sample[key] for sample in samples) / len(samples)


def by_category(
    samples: Sequence[Mapping[str, float]], categories: Sequence[Any]
) -> dict[str, list[Mapping[str, float]]]:
    """
    Returns the samples of each category, in order of the categories' first samples.

    Args:
        samples: the scores of each sample.
        categories: the category of each sample.

    Raises:
        ValueError: the numbers of samples and categories differ.
    """
    check_lengths(samples=samples, categories=categories)
    groups: dict[str, list[Mapping[str, float]]] = {}
    for sample, category in zip(samples, categories, strict=True):
        groups.setdefault(str(category), []).append(sample)
    return groups
