"""CIDEr-D as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample

# `evaluate` copies the files of this folder that are imported here, and no others.
from .tokenizer import tokenize as tokenize


_DESCRIPTION = "CIDEr-D: CIDEr-D of captions, equal to the scorer of the COCO evaluation on the same words."
_CITATION = "Vedantam et al., CIDEr: Consensus-based Image Description Evaluation, CVPR 2015"
_INPUTS = """
Args:
    predictions: list of texts, the answers of the model.
    references: list of lists of captions, the references of each image.
"""


class Cider(evaluate.Metric):
    """CIDEr-D."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> dict[str, float]:
        return compute(per_sample, aggregate, GROUP_COLUMNS, predictions=predictions, references=references, **columns)
