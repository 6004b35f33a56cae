"""Multiple choice as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

# `evaluate` copies the files of this folder that are imported here, and no others.
from .letters import read_letter as read_letter
from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample


_DESCRIPTION = "Multiple choice: accuracy by the letter of the chosen option; unread answers are wrong, not guessed."
_CITATION = ""
_INPUTS = """
Args:
    predictions: list of texts, the answers of the model.
    references: the right letter of each question, or another text.
    options: the options' texts of each question, or None (optional).
    categories: the category of each question (optional).
"""


class MultipleChoice(evaluate.Metric):
    """Multiple choice."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> dict[str, float]:
        return compute(per_sample, aggregate, GROUP_COLUMNS, predictions=predictions, references=references, **columns)
