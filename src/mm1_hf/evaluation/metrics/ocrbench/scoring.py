"""
OCRBench (Liu et al., 2023): an answer is right if it contains an accepted one.

Case is ignored, a line break is a space, and full-width forms of ASCII characters count as ASCII. For handwritten
formulas (data set HME100k) spaces are removed and case matters. The score of the whole set is the number of right
answers of 1000; MM1.5 divides it by 10.
"""

from collections.abc import Mapping, Sequence

from .samples import by_category, mean, score_each, texts


HEADLINE = "accuracy"
UNIT = "fraction"
SAMPLE_COLUMNS = ("datasets",)
GROUP_COLUMNS = ("question_types",)

_FORMULAS = "HME100k"
_TOTAL = 1000
_FIRST_FULL_WIDTH, _LAST_FULL_WIDTH, _TO_ASCII = 0xFF01, 0xFF5E, 0xFEE0
_FOLD = {code: code - _TO_ASCII for code in range(_FIRST_FULL_WIDTH, _LAST_FULL_WIDTH + 1)} | {0x3000: " "}


def score(prediction: str, reference: str | Sequence[str], dataset: str = "") -> float:
    """
    Returns 1 if the answer contains an accepted one, else 0.

    Args:
        prediction: the answer of the model.
        reference: the accepted answer, or several.
        dataset: the data set of the question; only HME100k has a rule of its own.

    Raises:
        ValueError: an accepted answer is empty, so that every answer would contain it.
    """
    clean = _formula if dataset == _FORMULAS else _text
    accepted = [clean(answer) for answer in texts(reference)]
    if "" in accepted:
        raise ValueError(f"the reference is {reference!r}; an empty text is contained in every answer. Leave it out.")
    return float(any(answer in clean(prediction) for answer in accepted))


def per_sample(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, datasets: Sequence[str]
) -> list[dict[str, float]]:
    """
    Returns for every answer whether it contains an accepted one.

    Args:
        predictions: the answers of the model.
        references: the accepted answer, or answers, to each question.
        datasets: the data set of each question, the column `dataset` of OCRBench.
    """
    scores = score_each(score, str, predictions=predictions, references=references, datasets=datasets)
    return [{HEADLINE: value} for value in scores]


def aggregate(samples: Sequence[Mapping[str, float]], *, question_types: Sequence[str]) -> dict[str, float]:
    """
    Returns the share of right answers, over all questions and of each type, and the score of 1000.

    Args:
        samples: what `per_sample` returned.
        question_types: the type of each question.
    """
    share = mean(samples, HEADLINE)
    groups = by_category(samples, question_types)
    parts = {f"{HEADLINE}/{name}": mean(group, HEADLINE) for name, group in groups.items()}
    return {HEADLINE: share, "score": _TOTAL * share, **parts}


def _text(text: str) -> str:
    return text.translate(_FOLD).lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
