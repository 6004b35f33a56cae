"""VQA accuracy as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

# `evaluate` copies the files of this folder that are imported here, and no others.
from .contractions import CONTRACTIONS as CONTRACTIONS
from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample


_DESCRIPTION = "VQA accuracy: agreement with the answers of several people, after the official normalisation."
_CITATION = "Antol et al., VQA: Visual Question Answering, ICCV 2015"
_INPUTS = """
Args:
    predictions: list of texts, the answers of the model.
    references: list of lists of texts, the answers of at least four people to each question.
    normalizer: "official", or "evalai" for TextVQA, VizWiz and OK-VQA as in Pythia and lmms-eval (optional).
"""


class VqaAccuracy(evaluate.Metric):
    """VQA accuracy."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> dict[str, float]:
        return compute(per_sample, aggregate, GROUP_COLUMNS, predictions=predictions, references=references, **columns)
