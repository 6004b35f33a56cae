"""
Accuracy by log-likelihood (TextCore: ARC, PIQA, HellaSwag, SciQ, WinoGrande), as in lm-evaluation-harness.

The model chooses the text to which it gives the highest log-likelihood, summed over its tokens (`acc`), or divided by
the length of the text in characters (`acc_norm`) or in UTF-8 bytes (`acc_bytes`). Of equal ones the first is chosen.
The length is that of the choice alone, without the space that joins it to the prompt. Which of them MM1 reports is not
published. A question that was not answered, which has no log-likelihoods, is wrong by each rule; `unanswered` is the share
of these questions.
"""

import math
from collections.abc import Mapping, Sequence

from .samples import mean, score_each


HEADLINE = "acc"
UNIT = "fraction"
SAMPLE_COLUMNS = ("choices",)
GROUP_COLUMNS: tuple[str, ...] = ()

_NAMES = ("acc", "acc_norm", "acc_bytes")
_UNANSWERED = {**dict.fromkeys(_NAMES, 0.0), "unanswered": 1.0}


def per_sample(
    predictions: Sequence[Sequence[float]], references: Sequence[int], *, choices: Sequence[Sequence[str]]
) -> list[dict[str, float]]:
    """
    Returns for every question whether the right choice is the most likely one, by each of the three rules, and whether it
    was not answered.

    Args:
        predictions: the summed log-likelihood of each choice, for each question; none for one that was not answered.
        references: the index of the right choice of each question, counted from 0.
        choices: the choices' texts of each question.
    """
    return score_each(_score, list, predictions=predictions, references=references, choices=choices)


def aggregate(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """
    Returns the accuracy by each of the three rules, and the share of questions that were not answered.

    Args:
        samples: what `per_sample` returned.
    """
    return {name: mean(samples, name) for name in (*_NAMES, "unanswered")}


def _score(prediction: list[float], reference: int, choices: Sequence[str]) -> dict[str, float]:
    if not prediction:
        return dict(_UNANSWERED)
    if len(prediction) != len(choices):
        raise ValueError(f"there are {len(prediction)} log-likelihoods for {len(choices)} choices; pass one for each.")
    if any(map(math.isnan, prediction)):
        raise ValueError(
            f"the log-likelihoods are {prediction}; NaN has no place in an order. Check the model's dtype."
        )
    if not all(choices):
        raise ValueError(f"the choices are {choices!r}; an empty choice has no length to divide by. Leave it out.")
    if not isinstance(reference, int) or not 0 <= reference < len(choices):
        raise ValueError(f"the reference is {reference!r}; expected the index of a choice, below {len(choices)}.")
    lengths = ([1] * len(choices), [len(choice) for choice in choices], [len(choice.encode()) for choice in choices])
    scores = {"unanswered": 0.0}
    for name, divisors in zip(_NAMES, lengths, strict=True):
        values = [value / divisor for value, divisor in zip(prediction, divisors, strict=True)]
        scores[name] = float(values.index(max(values)) == reference)
    return scores
