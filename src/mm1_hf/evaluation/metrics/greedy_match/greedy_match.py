"""Greedy match as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

# `evaluate` copies the files of this folder that are imported here, and no others.
from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample


_DESCRIPTION = "Greedy match: whether an accepted continuation is the greedy one, and its perplexity."
_CITATION = "Paperno et al., The LAMBADA dataset, ACL 2016"
_INPUTS = """
Args:
    predictions: list of lists: for each accepted continuation, whether it is the greedy one.
    references: the accepted continuations of each question.
    log_likelihoods: the summed log-likelihood of each accepted continuation (optional).
"""


class GreedyMatch(evaluate.Metric):
    """Greedy match."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {
                "predictions": datasets.Sequence(datasets.Value("bool")),
                "references": datasets.Sequence(datasets.Value("string")),
            }
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> dict[str, float]:
        return compute(per_sample, aggregate, GROUP_COLUMNS, predictions=predictions, references=references, **columns)
