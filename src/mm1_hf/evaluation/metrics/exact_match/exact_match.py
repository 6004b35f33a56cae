"""Exact match as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

# `evaluate` copies the files of this folder that are imported here, and no others.
from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample


_DESCRIPTION = "Exact match: equality with an accepted answer after a normalisation."
_CITATION = ""
_INPUTS = """
Args:
    predictions: list of texts, the answers of the model.
    references: the accepted answer to each question, or a list of them.
    normalizer: "case_punctuation" (GQA), "triviaqa", "case", "none", "first_integer" or "yes_no" (optional).
"""


class ExactMatch(evaluate.Metric):
    """Exact match."""

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
