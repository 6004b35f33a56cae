"""Choice by log-likelihood as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

# `evaluate` copies the files of this folder that are imported here, and no others.
from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample


_DESCRIPTION = "Choice by log-likelihood: accuracy of the most likely choice, also by characters and by bytes."
_CITATION = "Gao et al., A framework for few-shot language model evaluation, 2021"
_INPUTS = """
Args:
    predictions: list of lists: the summed log-likelihood of each choice.
    references: index of the right choice of each question.
    choices: the choices' texts of each question.
"""


class ChoiceLikelihood(evaluate.Metric):
    """Choice by log-likelihood."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {
                "predictions": datasets.Sequence(datasets.Value("float64")),
                "references": datasets.Value("int64"),
                "choices": datasets.Sequence(datasets.Value("string")),
            }
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> dict[str, float]:
        return compute(per_sample, aggregate, GROUP_COLUMNS, predictions=predictions, references=references, **columns)
