"""
Relaxed accuracy (Methani et al., 2020), for ChartQA.

A number may be off by 5 % of the accepted one; `%` at the end divides by 100. Numbers with `$` or thousands separators
are compared as text, as are an accepted 0 and everything that is not a number: then case alone is ignored.

With categories, the score is the mean of the categories' means, as in MM1.5, where ChartQA's two halves count equally.
"""

from collections.abc import Mapping, Sequence

from .samples import by_category, mean, score_each, texts


HEADLINE = "relaxed_accuracy"
UNIT = "fraction"
SAMPLE_COLUMNS: tuple[str, ...] = ()
GROUP_COLUMNS = ("categories",)

_TOLERANCE = 0.05


def score(prediction: str, reference: str | Sequence[str]) -> float:
    """
    Returns 1 if the answer agrees with an accepted one, else 0.

    Args:
        prediction: the answer of the model.
        reference: the accepted answer, or several.
    """
    return float(any(_agree(prediction, answer) for answer in texts(reference)))


def per_sample(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[dict[str, float]]:
    """
    Returns for every answer whether it agrees with an accepted one.

    Args:
        predictions: the answers of the model.
        references: the accepted answer, or answers, to each question.
    """
    scores = score_each(score, str, predictions=predictions, references=references)
    return [{HEADLINE: value} for value in scores]


def aggregate(samples: Sequence[Mapping[str, float]], *, categories: Sequence[str] | None = None) -> dict[str, float]:
    """
    Returns the share of correct answers; with categories, the mean of the categories' shares, and each of them.

    Args:
        samples: what `per_sample` returned.
        categories: the category of each question, for ChartQA `human_test` or `augmented_test`.
    """
    if categories is None:
        return {HEADLINE: mean(samples, HEADLINE)}
    shares = {name: mean(group, HEADLINE) for name, group in by_category(samples, categories).items()}
    parts = {f"{HEADLINE}/{name}": share for name, share in shares.items()}
    return {HEADLINE: sum(shares.values()) / len(shares), **parts}


def _agree(prediction: str, answer: str) -> bool:
    given, wanted = _number(prediction), _number(answer)
    if given is not None and wanted:
        return abs(given - wanted) / abs(wanted) <= _TOLERANCE
    return prediction.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
