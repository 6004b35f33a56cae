"""
VQA accuracy (Antol et al., 2015; MM1's metric for VQAv2, TextVQA, VizWiz and OK-VQA).

Several people answered every question. A predicted answer is compared with the answers of all people but one: it
scores a third for each equal answer, at most 1. The mean over the people left out is the score. With ten answers, of
which 0, 1, 2, 3, 4 or more equal the prediction, the score is 0, 0.3, 0.6, 0.9 or 1. (Some papers take
min(1, matches / 3) over all ten instead.)

Answers are normalised first, as in the official evaluation. It leaves them as they are if all people gave the same
answer; then only white space is unified. The `evalai` normaliser, which Pythia and lmms-eval use for TextVQA, VizWiz
and OK-VQA, normalises always, and treats commas, question marks and `'s` before everything else.
"""

import re
from collections.abc import Mapping, Sequence

from .contractions import CONTRACTIONS
from .samples import mean, score_each, texts


HEADLINE = "vqa_accuracy"
UNIT = "fraction"
SAMPLE_COLUMNS: tuple[str, ...] = ()
GROUP_COLUMNS: tuple[str, ...] = ()
NORMALIZERS = ("official", "evalai")

# Fewer could never score 1, because one is left out and three must agree.
_MIN_ANSWERS = 4
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,+\d")
# The official pattern was meant to keep the periods after a digit, too, but keeps only those before one.
_PERIOD = re.compile(r"\.(?!\d)")
# The official code passes a flag, whose value is 32, as the largest number of replacements.
_MAX_PERIODS = 32
_DIGITS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = {"a", "an", "the"}


def score(prediction: str, answers: Sequence[str], normalizer: str = "official") -> float:
    """
    Returns the VQA accuracy of one answer, from 0 to 1.

    Args:
        prediction: the answer of the model.
        answers: the answers of the people, at least four, usually ten.
        normalizer: `official` or `evalai`; see the module.

    Raises:
        ValueError: there are fewer than four answers, or the normaliser is unknown.
    """
    answers = texts(answers)
    if len(answers) < _MIN_ANSWERS:
        raise ValueError(
            f"there are {len(answers)} answers: {answers!r}; VQA accuracy needs at least {_MIN_ANSWERS}, each of "
            "another person. Use exact_match for data with one reference answer."
        )
    if normalizer not in NORMALIZERS:
        raise ValueError(f"the normalizer is {normalizer!r}; expected one of {', '.join(NORMALIZERS)}.")
    if normalizer == "evalai":
        prediction, *answers = (normalize(_evalai(text)) for text in (prediction, *answers))
    else:
        prediction, *answers = map(_one_line, (prediction, *answers))
        if len(set(answers)) > 1:
            prediction, *answers = map(normalize, (prediction, *answers))
    matches = answers.count(prediction)
    # A left-out answer that matches takes one match away from the others.
    with_match, without = min(1, (matches - 1) / 3), min(1, matches / 3)
    return (matches * with_match + (len(answers) - matches) * without) / len(answers)


def per_sample(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, normalizer: str = "official"
) -> list[dict[str, float]]:
    """
    Returns the VQA accuracy of every answer.

    Args:
        predictions: the answers of the model.
        references: the answers of the people to each question.
        normalizer: `official` or `evalai`; see the module.
    """
    scores = score_each(
        lambda prediction, answers: score(prediction, answers, normalizer),
        str,
        predictions=predictions,
        references=references,
    )
    return [{HEADLINE: value} for value in scores]


def aggregate(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """
    Returns the mean over the questions.

    Args:
        samples: what `per_sample` returned.
    """
    return {HEADLINE: mean(samples, HEADLINE)}


def normalize(text: str) -> str:
    """
    Returns an answer as the official evaluation compares it: without most punctuation and without articles, in lower
    case, with numbers up to ten in digits and with completed contractions.

    Args:
        text: any answer.
    """
    text = _one_line(text)
    # Decided once for the whole text, before anything is replaced.
    has_digit_comma = _DIGIT_COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or has_digit_comma else " ")
    cleaned = _PERIOD.sub("", cleaned, count=_MAX_PERIODS)
    words = (_DIGITS.get(word, word) for word in cleaned.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _evalai(text: str) -> str:
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
