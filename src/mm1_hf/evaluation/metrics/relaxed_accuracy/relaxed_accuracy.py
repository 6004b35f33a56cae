"""Relaxed accuracy as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

# `evaluate` copies the files of this folder that are imported here, and no others.
from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample


_DESCRIPTION = "Relaxed accuracy: equality of texts, and of numbers up to 5 %."
_CITATION = "Masry et al., ChartQA, ACL Findings 2022; Methani et al., PlotQA, WACV 2020"
_INPUTS = """
Args:
    predictions: list of texts, the answers of the model.
    references: the accepted answer to each question, or a list of them.
    categories: the category of each question; with them, the score is the mean of the categories (optional).
"""


class RelaxedAccuracy(evaluate.Metric):
    """Relaxed accuracy."""

    def _info(self) -> evaluate.MetricInfo:
        features = [
            datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
            datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        ]
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> dict[str, float]:
        return compute(per_sample, aggregate, GROUP_COLUMNS, predictions=predictions, references=references, **columns)
