"""The uncertainty of scores: standard errors, and the paired comparison of two runs on the same questions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


_RESAMPLES = 10_000
# Resamples that are drawn at a time, which bounds the memory.
_CHUNK = 250
_LOW, _HIGH = 0.025, 0.975


class PairedTest(NamedTuple):
    """
    The comparison of two runs.

    Args:
        difference: mean of the second run minus mean of the first.
        low, high: limits of the 95 % interval of the difference, from a bootstrap over questions.
        p_value: two-sided probability of a difference at least as large if the runs were equally good.
        method: how the probability was computed: `mcnemar` or `bootstrap`.
    """

    difference: float
    low: float
    high: float
    p_value: float
    method: str


def standard_error(values: Sequence[float]) -> float:
    """
    Returns the standard error of the mean of some scores: their sample standard deviation divided by the square root of
    their number. It serves for scores of questions and for the scores of trials with different shots.

    Args:
        values: the scores; NaN is returned for a single one, whose spread is unknown.

    Raises:
        ValueError: there are no scores.

    Example:

    ```python
    >>> from mm1_hf.evaluation.statistics import standard_error

    >>> round(standard_error([1.0, 0.0, 1.0, 0.0, 1.0]), 3)
    0.245

    ```
    """
    if not len(values):
        raise ValueError("There are no scores; pass at least one.")
    if len(values) == 1:
        return math.nan
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return math.sqrt(squares / (len(values) - 1) / len(values))


def paired_test(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> PairedTest:
    """
    Compares two runs on the same questions.

    If all scores are 0 or 1, the exact McNemar test is used: of the questions that only one run answers correctly, each
    run has half if they are equally good. Other scores are compared by a bootstrap over questions of the differences,
    moved to mean 0. The interval comes from a bootstrap in both cases. Scores of CIDEr depend a little on the other
    questions; the bootstrap keeps them as they are.

    Args:
        first, second: the scores of the runs, question by question in the same order.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the numbers of questions differ, or there are none.

    Example:

    ```python
    >>> from mm1_hf.evaluation.statistics import paired_test

    >>> result = paired_test([0, 0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1])
    >>> result.difference, result.p_value, result.method
    (0.75, 0.03125, 'mcnemar')

    ```
    """
    if len(first) != len(second):
        raise ValueError(
            f"The runs have {len(first)} and {len(second)} questions; compare runs on the same questions only."
        )
    if not len(first):
        raise ValueError("The runs have no questions; pass at least one score of each.")
    differences = [float(b) - float(a) for a, b in zip(first, second, strict=True)]
    difference = math.fsum(differences) / len(differences)
    means = _bootstrap_means(differences, seed)
    low, high = means[int(_LOW * _RESAMPLES)], means[int(_HIGH * _RESAMPLES) - 1]
    if {*first, *second} <= {0, 1}:
        return PairedTest(difference, low, high, _mcnemar(differences), "mcnemar")
    # The tolerance keeps sums that differ by rounding alone from being told apart.
    extreme = sum(abs(mean - difference) >= abs(difference) - 1e-12 for mean in means)
    # A bootstrap cannot show a probability of 0: the observed difference is counted as one of the resamples.
    return PairedTest(difference, low, high, (extreme + 1) / (_RESAMPLES + 1), "bootstrap")


def _mcnemar(differences: Sequence[float]) -> float:
    gained, lost = differences.count(1.0), differences.count(-1.0)
    if gained == lost:
        return 1.0
    total = gained + lost
    tail = sum(math.comb(total, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**total)


def _bootstrap_means(values: Sequence[float], seed: int) -> list[float]:
    """The sorted means of resamples."""
    draw = np.random.default_rng(seed)
    # How often each different value is drawn follows a multinomial distribution; most scores have few different values.
    different, counts = np.unique(values, return_counts=True)
    shares = counts / len(values)
    chunks = [
        draw.multinomial(len(values), shares, size=_CHUNK) @ different / len(values)
        for _ in range(_RESAMPLES // _CHUNK)
    ]
    return np.sort(np.concatenate(chunks)).tolist()
