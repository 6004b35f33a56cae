"""
Accuracy on multiple-choice questions, by the letter of the chosen option.

`letters.py` lists the rules by which a letter is read in an answer. An answer that cannot be read is wrong, and the
share of such answers is given as `unread`. A reference that is not a letter is compared as text in any case and without
a final period, as in RealWorldQA, which mixes both kinds.
"""

import re
from collections.abc import Mapping, Sequence

from .letters import read_letter
from .samples import by_category, mean, score_each


HEADLINE = "accuracy"
UNIT = "fraction"
SAMPLE_COLUMNS = ("options",)
GROUP_COLUMNS = ("categories",)

_LETTER = re.compile(r"\(?([A-Za-z])\)?")


def score(prediction: str, reference: str, options: Sequence[str | None] | None = None) -> float:
    """
    Returns 1 if the answer chooses the right option, else 0.

    Args:
        prediction: the answer of the model.
        reference: the right letter, with or without brackets, or another text.
        options: the options' texts in the order of their letters; unset, an answer in words cannot be read.
    """
    return _score(prediction, reference, options)["accuracy"]


def per_sample(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    options: Sequence[Sequence[str | None] | None] | None = None,
) -> list[dict[str, float]]:
    """
    Returns for every answer whether it is correct and whether it could not be read.

    Args:
        predictions: the answers of the model.
        references: the right letter of each question, or another text.
        options: the options' texts of each question; unset, answers in words cannot be read.
    """
    return score_each(_score, str, predictions=predictions, references=references, options=options)


def aggregate(samples: Sequence[Mapping[str, float]], *, categories: Sequence[str] | None = None) -> dict[str, float]:
    """
    Returns the share of correct answers, over all questions and of each category, and the share of unread answers.

    Args:
        samples: what `per_sample` returned.
        categories: the category of each question; unset, only the totals are returned.
    """
    groups = {} if categories is None else by_category(samples, categories)
    parts = {f"{HEADLINE}/{name}": mean(group, HEADLINE) for name, group in groups.items()}
    return {HEADLINE: mean(samples, HEADLINE), **parts, "unread": mean(samples, "unread")}


def _score(prediction: str, reference: str, options: Sequence[str | None] | None) -> dict[str, float]:
    if not isinstance(reference, str) or not reference.strip():
        raise ValueError(f"the reference is {reference!r}; expected a letter or another text.")
    letter = _LETTER.fullmatch(reference.strip())
    if letter is None:
        same = prediction.strip().lower().removesuffix(".") == reference.strip().lower().removesuffix(".")
        return {HEADLINE: float(same), "unread": 0.0}
    chosen = read_letter(prediction, options)
    return {HEADLINE: float(chosen == letter[1].upper()), "unread": float(chosen is None)}
