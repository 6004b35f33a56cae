"""MathVista as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

# `evaluate` copies the files of this folder that are imported here, and no others.
from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample


_DESCRIPTION = "MathVista: accuracy with answers that are found by rules, without a language model as a judge."
_CITATION = (
    "Lu et al., MathVista: Evaluating Mathematical Reasoning of Foundation Models in Visual Contexts, ICLR 2024"
)
_INPUTS = """
Args:
    predictions: list of texts, the answers of the model.
    references: the right answer to each question.
    choices: the choices' texts of each question, or None.
    answer_types: "text", "integer", "float" or "list" for each question.
    precisions: number of decimals for float answers, else None.
"""


class Mathvista(evaluate.Metric):
    """MathVista."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {
                "predictions": datasets.Value("string"),
                "references": datasets.Value("string"),
                "choices": datasets.Sequence(datasets.Value("string")),
                "answer_types": datasets.Value("string"),
                "precisions": datasets.Value("float64"),
            }
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> dict[str, float]:
        return compute(per_sample, aggregate, GROUP_COLUMNS, predictions=predictions, references=references, **columns)
