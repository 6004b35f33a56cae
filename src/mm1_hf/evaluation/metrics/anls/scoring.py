"""
ANLS, the average normalised Levenshtein similarity (Biten et al., 2019), for DocVQA and InfoVQA.

The similarity to an accepted answer is 1 minus the edit distance divided by the length of the longer text. The best
one counts, and it counts as 0 below one half. As in the evaluation that most harnesses share, the distance is taken
after lower-casing and unifying white space, but the lengths are those of the texts as they were given.
"""

from collections.abc import Mapping, Sequence

from .samples import mean, score_each, texts


HEADLINE = "anls"
UNIT = "fraction"
SAMPLE_COLUMNS: tuple[str, ...] = ()
GROUP_COLUMNS: tuple[str, ...] = ()

_THRESHOLD = 0.5


def score(prediction: str, answers: str | Sequence[str]) -> float:
    """
    Returns the similarity to the most similar accepted answer: 0, or a number from 0.5 to 1.

    Args:
        prediction: the answer of the model.
        answers: the accepted answers.
    """
    best = max(_similarity(prediction, answer) for answer in texts(answers))
    return best if best >= _THRESHOLD else 0.0


def per_sample(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[dict[str, float]]:
    """
    Returns the similarity of every answer to its most similar accepted answer.

    Args:
        predictions: the answers of the model.
        references: the accepted answers to each question.
    """
    scores = score_each(score, str, predictions=predictions, references=references)
    return [{HEADLINE: value} for value in scores]


def aggregate(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """
    Returns the mean over the questions.

    Args:
        samples: what `per_sample` returned.
    """
    return {HEADLINE: mean(samples, HEADLINE)}


def _similarity(prediction: str, answer: str) -> float:
    longer = max(len(prediction), len(answer))
    if not longer:
        return 1.0
    return 1 - edit_distance(_clean(prediction), _clean(answer)) / longer


def _clean(text: str) -> str:
    return " ".join(text.lower().split())


def edit_distance(first: str, second: str) -> int:
    """
    Returns the Levenshtein distance: how many characters must be inserted, deleted or replaced.

    Args:
        first, second: any texts.
    """
    # One row of the usual table: the distances from the beginning of `first` to every beginning of `second`.
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            replaced = diagonal + (one != other)
            diagonal = row[j]
            row[j] = min(replaced, row[j] + 1, row[j - 1] + 1)
    return row[-1]
