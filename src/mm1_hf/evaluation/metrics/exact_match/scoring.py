"""
Exact match with one of the accepted answers, after a normalisation of the two texts. White space at both ends never
counts. The normalisations:

- `case_punctuation` ignores case and ASCII punctuation: GQA, and TriviaQA in lm-evaluation-harness;
- `triviaqa` is TriviaQA's own: it also drops articles, turns underscores and punctuation into spaces, curly quotes
  among them, and unifies white space;
- `case` ignores case alone: VL-ICL;
- `none` changes nothing;
- `first_integer` compares the first whole number of each text: VL-ICL's operators and counts. An answer without a
  number is wrong;
- `yes_no` reads an answer that contains "yes" in any case as yes, and any other as no: VL-ICL's matching.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence

from .samples import mean, score_each, texts


HEADLINE = "exact_match"
UNIT = "fraction"
SAMPLE_COLUMNS: tuple[str, ...] = ()
GROUP_COLUMNS: tuple[str, ...] = ()

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TRIVIAQA_SPACES = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_INTEGER = re.compile(r"-?\d+")


def _triviaqa(text: str) -> str:
    text = text.lower().translate(_TRIVIAQA_SPACES)
    return " ".join(_ARTICLES.sub(" ", text).split())


def _first_integer(text: str) -> str | None:
    found = _INTEGER.search(text)
    return None if found is None else str(int(found[0]))


NORMALIZERS: dict[str, Callable[[str], str | None]] = {
    "case_punctuation": lambda text: text.lower().translate(_NO_PUNCTUATION).strip(),
    "triviaqa": _triviaqa,
    "case": lambda text: text.lower().strip(),
    "none": str.strip,
    "first_integer": _first_integer,
    "yes_no": lambda text: "yes" if "yes" in text.lower() else "no",
}


def score(prediction: str, reference: str | Sequence[str], normalizer: str = "case_punctuation") -> float:
    """
    Returns 1 if the answer is an accepted one, else 0.

    Args:
        prediction: the answer of the model.
        reference: the accepted answer, or several.
        normalizer: a key of `NORMALIZERS`; see the module.

    Raises:
        ValueError: there is no accepted answer, an accepted answer has no number for `first_integer`, or the normaliser
            is unknown.
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"the normalizer is {normalizer!r}; expected one of {', '.join(NORMALIZERS)}.")
    normalize = NORMALIZERS[normalizer]
    accepted = [normalize(answer) for answer in texts(reference)]
    if None in accepted:
        raise ValueError(f"the reference is {reference!r}; the normalizer first_integer needs a number in each.")
    return float(normalize(prediction) in accepted)


def per_sample(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, normalizer: str = "case_punctuation"
) -> list[dict[str, float]]:
    """
    Returns for every answer whether it is an accepted one.

    Args:
        predictions: the answers of the model.
        references: the accepted answer, or answers, to each question.
        normalizer: a key of `NORMALIZERS`; see the module.
    """
    scores = score_each(
        lambda prediction, reference: score(prediction, reference, normalizer),
        str,
        predictions=predictions,
        references=references,
    )
    return [{HEADLINE: value} for value in scores]


def aggregate(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """
    Returns the share of the questions that were answered correctly.

    Args:
        samples: what `per_sample` returned.
    """
    return {HEADLINE: mean(samples, HEADLINE)}
