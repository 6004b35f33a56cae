"""MMMU as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

# `evaluate` copies the files of this folder that are imported here, and no others.
from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample


_DESCRIPTION = (
    "MMMU: accuracy by the authors' rules for letters and open answers; unread answers are wrong, not guessed."
)
_CITATION = "Yue et al., MMMU: A Massive Multi-discipline Multimodal Understanding Benchmark, CVPR 2024"
_INPUTS = """
Args:
    predictions: list of texts, the answers of the model.
    references: the right letter, or the accepted answer or answers.
    question_types: "multiple-choice" or "open" for each question.
    options: the options' texts of each question, empty for open questions.
    categories: the subject or domain of each question (optional).
"""


class Mmmu(evaluate.Metric):
    """MMMU."""

    def _info(self) -> evaluate.MetricInfo:
        features = [
            datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                    "question_types": datasets.Value("string"),
                    "options": datasets.Sequence(datasets.Value("string")),
                }
            ),
            datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                    "question_types": datasets.Value("string"),
                    "options": datasets.Sequence(datasets.Value("string")),
                }
            ),
        ]
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> dict[str, float]:
        return compute(per_sample, aggregate, GROUP_COLUMNS, predictions=predictions, references=references, **columns)
