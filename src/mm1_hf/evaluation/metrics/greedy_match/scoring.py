"""
Accuracy by greedy decoding (TextCore: LAMBADA, WebQS), as in lm-evaluation-harness: a question is right if one of the
accepted continuations is what the model writes if it always takes the most likely token. Nothing is generated for it:
a forward pass tells whether every token of the continuation is the most likely one.

With log-likelihoods, the perplexity of the continuations is given, too: the exponential of minus the mean of their
summed log-likelihoods, one for each question. It is a perplexity per continuation, for LAMBADA per last word. Of
several accepted continuations the most likely one counts.

A question that was not answered is wrong, and has no part in the perplexity; `unanswered` is the share of these questions.
"""

import math
from collections.abc import Mapping, Sequence

from .samples import mean, score_each


HEADLINE = "acc"
UNIT = "fraction"
SAMPLE_COLUMNS = ("log_likelihoods",)
GROUP_COLUMNS: tuple[str, ...] = ()


def per_sample(
    predictions: Sequence[Sequence[bool]],
    references: Sequence[Sequence[str]],
    *,
    log_likelihoods: Sequence[Sequence[float]] | None = None,
) -> list[dict[str, float]]:
    """
    Returns for every question whether an accepted continuation is the greedy one, whether it was not answered, and the
    log-likelihood of the most likely continuation, if log-likelihoods are given.

    Args:
        predictions:
            for each accepted continuation of each question whether it is the greedy one; nothing for a question that was
            not answered.
        references: the accepted continuations of each question.
        log_likelihoods: the summed log-likelihood of each accepted continuation.
    """
    return score_each(_score, list, predictions=predictions, references=references, log_likelihoods=log_likelihoods)


def aggregate(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """
    Returns the share of right questions, that of questions that were not answered, and the perplexity over the answered
    ones if log-likelihoods were given.

    Args:
        samples: what `per_sample` returned.
    """
    result = {name: mean(samples, name) for name in (HEADLINE, "unanswered")}
    if measured := [sample for sample in samples if "log_likelihood" in sample]:
        result["perplexity"] = math.exp(-mean(measured, "log_likelihood"))
    return result


def _score(
    prediction: list[bool], reference: Sequence[str], log_likelihoods: Sequence[float] | None
) -> dict[str, float]:
    if reference and not prediction:
        return {HEADLINE: 0.0, "unanswered": 1.0}
    if not reference or len(prediction) != len(reference):
        raise ValueError(
            f"there are {len(prediction)} entries for the accepted continuations {reference!r}; expected at least one "
            "continuation, and one entry for each."
        )
    if log_likelihoods is None:
        return {HEADLINE: float(any(prediction)), "unanswered": 0.0}
    if len(log_likelihoods) != len(reference):
        raise ValueError(
            f"there are {len(log_likelihoods)} log-likelihoods for {len(reference)} continuations; pass one for each."
        )
    right = float(any(prediction))
    return {HEADLINE: right, "unanswered": 0.0, "log_likelihood": float(max(log_likelihoods))}
