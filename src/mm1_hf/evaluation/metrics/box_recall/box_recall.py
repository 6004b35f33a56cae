"""Recall of boxes as a module of `evaluate`; `scoring.py` says how it is computed."""

from typing import Any

import datasets
import evaluate

# `evaluate` copies the files of this folder that are imported here, and no others.
from .samples import compute
from .scoring import GROUP_COLUMNS, aggregate, per_sample


_DESCRIPTION = "Recall of boxes: the share of the expected boxes that are named with an IoU above a threshold."
_CITATION = "Kazemzadeh et al., ReferItGame, EMNLP 2014; You et al., Ferret, ICLR 2024"
_INPUTS = """
Args:
    predictions: list of texts, the answers of the model.
    references: list of lists of boxes [x1, y1, x2, y2] in pixels.
    heights: heights of the images, in pixels.
    widths: widths of the images, in pixels.
    threshold: intersection over union above which a box is found (optional).
"""


class BoxRecall(evaluate.Metric):
    """Recall of boxes."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {
                "predictions": datasets.Value("string"),
                "references": datasets.Sequence(datasets.Sequence(datasets.Value("float64"))),
                "heights": datasets.Value("int64"),
                "widths": datasets.Value("int64"),
            }
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> dict[str, float]:
        return compute(per_sample, aggregate, GROUP_COLUMNS, predictions=predictions, references=references, **columns)
