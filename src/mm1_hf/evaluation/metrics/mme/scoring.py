"""
MME (Fu et al., 2023): two yes-no questions about each image, in ten categories of perception and four of cognition.

A category scores the share of correct questions plus the share of images whose two questions are both correct, each
times 100, so at most 200. Perception (at most 2000) and cognition (at most 800) are sums over their categories.
MM1.5's score is their sum divided by 28, at most 100.

An answer is read as in the common harnesses: `yes` or `no`, `y` or `n`, or the first four letters contain "yes" or
"no". Any other answer is unread, and wrong.
"""

from collections.abc import Mapping, Sequence

from .samples import by_category, check_lengths, mean, score_each


HEADLINE = "mme"
UNIT = "points"
SAMPLE_COLUMNS: tuple[str, ...] = ()
GROUP_COLUMNS = ("categories", "question_ids")

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_PREFIX = 4
_MAX_MEAN = 28
_PAIR = 2


def read(answer: str) -> str | None:
    """
    Returns `yes` or `no`, or None if the answer is neither.

    Args:
        answer: the answer of the model.
    """
    text = answer.lower().strip().replace(".", "")
    if text in ("y", "n"):
        return "yes" if text == "y" else "no"
    beginning = text[:_PREFIX]
    return next((word for word in ("yes", "no") if word in beginning), None)


def per_sample(predictions: Sequence[str], references: Sequence[str]) -> list[dict[str, float]]:
    """
    Returns for every answer whether it is correct and whether it could not be read.

    Args:
        predictions: the answers of the model.
        references: the correct answers, yes or no in any case.
    """
    return score_each(_score, str, predictions=predictions, references=references)


def aggregate(
    samples: Sequence[Mapping[str, float]], *, categories: Sequence[str], question_ids: Sequence[str]
) -> dict[str, float]:
    """
    Returns MM1.5's score, perception, cognition, each category, the share of unread answers, and the number of images
    with one question instead of two, which count in the first share of their category but not in the second.

    Args:
        samples: what `per_sample` returned.
        categories: the category of each question.
        question_ids: the id that the two questions of an image share.

    Raises:
        ValueError: a category is not one of MME's, or an image has more than two questions.
    """
    check_lengths(samples=samples, categories=categories, question_ids=question_ids)
    if unknown := sorted(set(categories) - {*PERCEPTION, *COGNITION}):
        raise ValueError(f"MME has no category {', '.join(unknown)}; expected {', '.join(PERCEPTION + COGNITION)}.")
    points: dict[str, float] = {}
    incomplete = 0
    pairs: dict[str, dict[str, list[float]]] = {}
    for sample, category, question in zip(samples, categories, question_ids, strict=True):
        pairs.setdefault(category, {}).setdefault(question, []).append(sample["accuracy"])
    for category, group in by_category(samples, categories).items():
        answered = pairs[category]
        if crowded := [question for question, scores in answered.items() if len(scores) > _PAIR]:
            raise ValueError(
                f"{crowded[0]!r} in category {category} has {len(answered[crowded[0]])} questions; MME has two for an "
                "image. Check that no question is given twice."
            )
        complete = [sum(scores) == _PAIR for scores in answered.values() if len(scores) == _PAIR]
        incomplete += len(answered) - len(complete)
        both = sum(complete) / len(complete) if complete else 0.0
        points[category] = 100 * (mean(group, "accuracy") + both)
    perception = sum(points.get(category, 0.0) for category in PERCEPTION)
    cognition = sum(points.get(category, 0.0) for category in COGNITION)
    return {
        HEADLINE: (perception + cognition) / _MAX_MEAN,
        "perception": perception,
        "cognition": cognition,
        **{f"{HEADLINE}/{category}": value for category, value in points.items()},
        "unread": mean(samples, "unread"),
        "incomplete_pairs": float(incomplete),
    }


def _score(prediction: str, reference: str) -> dict[str, float]:
    expected = reference.lower().strip().replace(".", "") if isinstance(reference, str) else reference
    if expected not in ("yes", "no"):
        raise ValueError(f"the reference is {reference!r}; expected yes or no.")
    answer = read(prediction)
    return {"accuracy": float(answer == expected), "unread": float(answer is None)}
