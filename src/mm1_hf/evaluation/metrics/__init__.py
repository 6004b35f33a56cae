"""
The papers' metrics.

Each metric is a folder that `evaluate.load` takes by its path, and that can be uploaded to the Hub as it is. Its
`scoring.py` holds the metric as plain functions, which need neither `evaluate` nor, but for `box_recall`, this package:

- `per_sample(predictions, references, ...)`: the scores of each sample, by name;
- `aggregate(samples, ...)`: the scores of the whole set, by name;
- `HEADLINE`: the name of the score that is reported;
- `UNIT`: `"fraction"` if the scores are shares (papers print them times 100), `"points"` if not;
- `SAMPLE_COLUMNS`, `GROUP_COLUMNS`: further columns of the data that the two functions take.
"""

import importlib
from types import ModuleType


NAMES = (
    "anls",
    "box_recall",
    "choice_likelihood",
    "cider",
    "exact_match",
    "greedy_match",
    "mathvista",
    "mmbench",
    "mme",
    "mmmu",
    "multiple_choice",
    "ocrbench",
    "pope",
    "relaxed_accuracy",
    "vqa_accuracy",
)


def load(name: str) -> ModuleType:
    """
    Returns the module with the plain functions of a metric.

    Args:
        name: one of `NAMES`.

    Raises:
        ValueError: there is no metric of this name.

    Example:

    ```python
    >>> from mm1_hf.evaluation import metrics

    >>> anls = metrics.load("anls")
    >>> anls.aggregate(anls.per_sample(["42 km"], [["42 km", "42"]]))
    {'anls': 1.0}

    ```
    """
    if name not in NAMES:
        raise ValueError(f"There is no metric {name!r}; expected one of {', '.join(NAMES)}.")
    return importlib.import_module(f"{__name__}.{name}.scoring")
