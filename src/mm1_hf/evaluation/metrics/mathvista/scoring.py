"""
MathVista (Lu et al., 2024), without a language model as a judge.

The original asks a language model for the final answer in a response. Here rules find it:

- questions with choices: the response is a choice; a letter in brackets or alone; the text after the last "answer is"
  or "answer:"; the one choice whose text the response contains, as whole words;
- numbers: the whole response; the first number after the last "answer is" or "answer:"; the last number;
- lists: the last text in square brackets;
- any of them: a response of one line and at most five words.

If no rule finds an answer, it is unread, and wrong. Published scores use the judge, which finds answers where these rules
do not, and the other way round: compare scores of this metric with each other alone.

What was found is then compared by the rules that the original states. For a question with choices, a letter stands for
its choice, and another text for the choice with the smallest edit distance. A whole number loses its fraction; any other
number is rounded to the precision of the question.
"""

import re
from collections.abc import Mapping, Sequence

from .samples import LETTERS, mean, score_each


HEADLINE = "accuracy"
UNIT = "fraction"
SAMPLE_COLUMNS = ("choices", "answer_types", "precisions")
GROUP_COLUMNS: tuple[str, ...] = ()
ANSWER_TYPES = ("text", "integer", "float", "list")

_MAX_SHORT_ANSWER = 5
_CUE = re.compile(r"(?i)\banswer(?:\s+is)?(?:\s*[:=]\s*|\s+)(?!is\b)")
_BRACKET_LETTER = re.compile(r"\(([a-zA-Z])\)")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|-?\.\d+")
_LIST = re.compile(r"\[[^\[\]]*\]")
_WRAPPING = " \t\n\"'*$`"


def extract(response: str, answer_type: str, choices: Sequence[str] | None = None) -> str | None:
    """
    Returns the final answer in a response, as text, or None if no rule finds one.

    Args:
        response: the response of the model.
        answer_type: one of `ANSWER_TYPES`.
        choices: the choices' texts; unset for a question without choices.
    """
    response = response.strip()
    *_, tail = _CUE.split(response)
    cued = tail != response
    if choices:
        found = _extract_choice(response, tail if cued else None, choices)
    elif answer_type in ("integer", "float"):
        numbers = _NUMBER.findall(tail) if cued else []
        numbers = numbers[:1] or _NUMBER.findall(response)[-1:]
        return numbers[0].replace(",", "") if numbers else None
    elif answer_type == "list":
        found = (_LIST.findall(response) or [None])[-1]
    else:
        found = _first_sentence(tail) if cued else None
    return found if found is not None else _short(response)


def normalize(
    extraction: str, answer_type: str, choices: Sequence[str] | None = None, precision: float | None = None
) -> str | None:
    """
    Returns a final answer in the form in which it is compared, or None if it is not a number where one is expected.

    Args:
        extraction: the final answer as text.
        answer_type: one of `ANSWER_TYPES`.
        choices: the choices' texts; unset for a question without choices.
        precision: number of decimals of a float answer.
    """
    if choices:
        text = extraction.strip()
        if letter := _BRACKET_LETTER.search(text):
            text = letter[1].upper()
        by_letter = dict(zip(LETTERS, choices, strict=False))
        return by_letter.get(text) or min(choices, key=lambda choice: _edit_distance(text, choice))
    try:
        if answer_type == "integer":
            return str(int(float(extraction)))
        if answer_type == "float":
            return str(round(float(extraction), int(precision or 0)))
    except (ValueError, OverflowError):
        return None
    return extraction


def score(
    prediction: str,
    reference: str,
    choices: Sequence[str] | None,
    answer_type: str,
    precision: float | None = None,
) -> float:
    """
    Returns 1 if the final answer is right, else 0.

    Args:
        prediction: the response of the model.
        reference: the right answer; for a question with choices the text of the choice.
        choices: the choices' texts, or None.
        answer_type: one of `ANSWER_TYPES`.
        precision: number of decimals of a float answer.

    Raises:
        ValueError: the reference is not text, the type is unknown, or a float has no precision.
    """
    return _score(prediction, reference, choices, answer_type, precision)["accuracy"]


def per_sample(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    choices: Sequence[Sequence[str] | None],
    answer_types: Sequence[str],
    precisions: Sequence[float | None],
) -> list[dict[str, float]]:
    """
    Returns for every response whether its final answer is right and whether none was found.

    Args:
        predictions: the responses of the model.
        references: the right answer to each question; with choices, the text of the choice.
        choices: the choices' texts of each question, or None.
        answer_types: one of `ANSWER_TYPES` for each question.
        precisions: number of decimals for each question with a float answer, else None.
    """
    return score_each(
        _score,
        str,
        predictions=predictions,
        references=references,
        choices=choices,
        answer_types=answer_types,
        precisions=precisions,
    )


def aggregate(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """
    Returns the share of right answers and of unread responses.

    Args:
        samples: what `per_sample` returned.
    """
    return {HEADLINE: mean(samples, HEADLINE), "unread": mean(samples, "unread")}


def _score(
    prediction: str, reference: str, choices: Sequence[str] | None, answer_type: str, precision: float | None
) -> dict[str, float]:
    if not isinstance(reference, str) or not reference.strip():
        raise ValueError(f"the reference is {reference!r}; expected a text.")
    if answer_type not in ANSWER_TYPES:
        raise ValueError(f"the answer type is {answer_type!r}; expected one of {', '.join(ANSWER_TYPES)}.")
    if answer_type == "float" and not choices and precision is None:
        raise ValueError("the answer is a float and has no precision; expected its number of decimals.")
    extraction = extract(prediction, answer_type, choices)
    answer = None if extraction is None else normalize(extraction, answer_type, choices, precision)
    right = answer is not None and answer.strip() == reference.strip()
    return {"accuracy": float(right), "unread": float(answer is None)}


def _extract_choice(response: str, tail: str | None, choices: Sequence[str]) -> str | None:
    if response in choices:
        return response
    letters = LETTERS[: len(choices)]
    for text in filter(None, (tail, response)):
        bracketed = [letter for letter in _BRACKET_LETTER.findall(text) if letter.upper() in letters]
        if bracketed:
            return f"({bracketed[0] if text is tail else bracketed[-1]})"
    for text in filter(None, (tail, response)):
        letter = re.match(rf"[{_WRAPPING}]*([{letters}])(?:[.:,)*]|\s*$)", text)
        if letter:
            return letter[1]
    if tail:
        return _first_sentence(tail)
    contained = [
        choice
        for choice in choices
        if choice and re.search(rf"(?<!\w){re.escape(choice.lower())}(?!\w)", response.lower())
    ]
    return contained[0] if len(contained) == 1 else None


def _first_sentence(text: str) -> str:
    # A period inside a number does not end a sentence.
    sentence = re.split(r"[.!?](?:\s|$)|\n", text.strip(), maxsplit=1)[0]
    return sentence.strip(_WRAPPING)


def _short(response: str) -> str | None:
    if not response or "\n" in response or len(response.split()) > _MAX_SHORT_ANSWER:
        return None
    return _first_sentence(response)


def _edit_distance(first: str, second: str) -> int:
    # One row of the usual table: the distances from the beginning of `first` to every beginning of `second`.
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            replaced = diagonal + (one != other)
            diagonal = row[j]
            row[j] = min(replaced, row[j] + 1, row[j - 1] + 1)
    return row[-1]
