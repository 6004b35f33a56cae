"""POPE as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

# `evaluate` copies the files of this folder that are imported here, and no others.
from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample


_DESCRIPTION = "POPE: accuracy, F1 and the share of yes answers, by category."
_CITATION = "Li et al., Evaluating Object Hallucination in Large Vision-Language Models, EMNLP 2023"
_INPUTS = """
Args:
    predictions: list of texts, the answers of the model.
    references: "yes" or "no" for each question.
    categories: the category of each question: adversarial, popular or random.
"""


class Pope(evaluate.Metric):
    """POPE."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {
                "predictions": datasets.Value("string"),
                "references": datasets.Value("string"),
                "categories": datasets.Value("string"),
            }
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> dict[str, float]:
        return compute(per_sample, aggregate, GROUP_COLUMNS, predictions=predictions, references=references, **columns)
