"""
POPE (Li et al., 2023): yes-no questions about objects that are, or are not, in an image. Yes is the positive class.

An answer is read much as by the script of its authors: the first sentence without commas is a no if it has the word "no" or
"not", and otherwise a yes. Their script knows the spellings "No", "no" and "not"; here any case will do. An answer with
none of "yes", "no" and "not" counts as a yes; the share of such answers is given as `unread`. The reported F1 is the mean
over the categories, which is how MM1.5's is understood here.
"""

from collections.abc import Mapping, Sequence

from .samples import by_category, mean, score_each


HEADLINE = "f1"
UNIT = "fraction"
SAMPLE_COLUMNS: tuple[str, ...] = ()
GROUP_COLUMNS = ("categories",)


def per_sample(predictions: Sequence[str], references: Sequence[str]) -> list[dict[str, float]]:
    """
    Returns for every answer whether it is correct, whether it is a yes, whether the correct answer is a yes, and
    whether it has neither a yes nor a no.

    Args:
        predictions: the answers of the model.
        references: the correct answers, yes or no in any case.
    """
    return score_each(_score, str, predictions=predictions, references=references)


def aggregate(samples: Sequence[Mapping[str, float]], *, categories: Sequence[str]) -> dict[str, float]:
    """
    Returns the mean F1 of the categories; accuracy, precision, recall and the share of yes answers over all questions;
    F1, accuracy and the share of yes answers of each category; and the share of unread answers.

    Args:
        samples: what `per_sample` returned.
        categories: the category of each question: adversarial, popular or random.
    """
    rates = {name: _rates(group) for name, group in by_category(samples, categories).items()}
    overall = _rates(samples)
    parts = {f"{key}/{name}": values[key] for key in ("f1", "accuracy", "yes_share") for name, values in rates.items()}
    f1 = sum(values["f1"] for values in rates.values()) / len(rates)
    return {**overall, HEADLINE: f1, **parts, "unread": mean(samples, "unread")}


def _score(prediction: str, reference: str) -> dict[str, float]:
    expected = reference.lower().strip() if isinstance(reference, str) else reference
    if expected not in ("yes", "no"):
        raise ValueError(f"the reference is {reference!r}; expected yes or no.")
    words = prediction.split(".")[0].replace(",", "").lower().split()
    denied = "no" in words or "not" in words
    return {
        "accuracy": float(denied == (expected == "no")),
        "said_yes": float(not denied),
        "is_yes": float(expected == "yes"),
        "unread": float(not denied and "yes" not in words),
    }


def _rates(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    said = sum(sample["said_yes"] for sample in samples)
    true = sum(sample["is_yes"] for sample in samples)
    both = sum(sample["said_yes"] * sample["is_yes"] for sample in samples)
    # Equal to the harmonic mean of precision and recall where both are defined.
    return {
        "f1": 2 * both / (said + true) if said + true else 0.0,
        "accuracy": mean(samples, "accuracy"),
        "precision": both / said if said else 0.0,
        "recall": both / true if true else 0.0,
        "yes_share": said / len(samples),
    }
