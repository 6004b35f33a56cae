"""MMBench, circular evaluation as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

# `evaluate` copies the files of this folder that are imported here, and no others.
from .letters import read_letter as read_letter
from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample


_DESCRIPTION = (
    "MMBench, circular evaluation: the share of questions that are right in every rotation of their options."
)
_CITATION = "Liu et al., MMBench: Is Your Multi-modal Model an All-around Player?, ECCV 2024"
_INPUTS = """
Args:
    predictions: list of texts, the answers of the model.
    references: the right letter of each row.
    indices: the index of each row; rotations add multiples of 1,000,000.
    options: the options' texts of each row (optional).
    categories: the category of each row (optional).
"""


class Mmbench(evaluate.Metric):
    """MMBench, circular evaluation."""

    def _info(self) -> evaluate.MetricInfo:
        features = [
            datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                    "indices": datasets.Value("int64"),
                }
            ),
            datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                    "indices": datasets.Value("string"),
                }
            ),
        ]
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> dict[str, float]:
        return compute(per_sample, aggregate, GROUP_COLUMNS, predictions=predictions, references=references, **columns)
