"""OCRBench as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

# `evaluate` copies the files of this folder that are imported here, and no others.
from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample


_DESCRIPTION = "OCRBench: the share of answers that contain an accepted one, and the score of 1000."
_CITATION = "Liu et al., OCRBench: On the Hidden Mystery of OCR in Large Multimodal Models, 2023"
_INPUTS = """
Args:
    predictions: list of texts, the answers of the model.
    references: the accepted answer to each question, or a list of them.
    datasets: the data set of each question.
    question_types: the type of each question.
"""


class Ocrbench(evaluate.Metric):
    """OCRBench."""

    def _info(self) -> evaluate.MetricInfo:
        features = [
            datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                    "datasets": datasets.Value("string"),
                    "question_types": datasets.Value("string"),
                }
            ),
            datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                    "datasets": datasets.Value("string"),
                    "question_types": datasets.Value("string"),
                }
            ),
        ]
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> dict[str, float]:
        return compute(per_sample, aggregate, GROUP_COLUMNS, predictions=predictions, references=references, **columns)
