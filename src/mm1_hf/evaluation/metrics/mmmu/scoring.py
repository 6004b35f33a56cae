"""
MMMU (Yue et al., 2024), read by the rules of its authors.

Multiple choice: punctuation is removed from both ends of the answer. Then letters in brackets are looked for; if there
are none, letters between spaces; if there are none and the answer has more than five words, options' texts. Of several
candidates the last in the answer is taken. The authors draw a letter at random if there is none; here such an answer is
unread, and wrong.

Open questions: of every line of the answer, the shortest text after a word such as "is" or "answer" is kept, or the
whole answer if no line has one; in the last line also after "=". The numbers in these texts are candidates, too.
Numbers are rounded to two decimals. The answer is right if a candidate contains an accepted text, or equals an accepted
number.
"""

import re
from collections.abc import Sequence

from .samples import LETTERS, by_category, mean, score_each, texts


HEADLINE = "accuracy"
UNIT = "fraction"
SAMPLE_COLUMNS = ("question_types", "options")
GROUP_COLUMNS = ("categories",)
QUESTION_TYPES = ("multiple-choice", "open")

# One after the other, as in the authors' code: the order matters where an answer ends in several marks.
_END_MARKS = ",.!?;:'"
_MAX_SHORT_ANSWER = 5
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def read_choice(answer: str, options: Sequence[str]) -> str | None:
    """
    Returns the letter that an answer to a multiple-choice question chooses, or None if it has none.

    Args:
        answer: the answer of the model.
        options: the options' texts in the order of their letters.
    """
    for mark in _END_MARKS:
        answer = answer.strip(mark)
    answer = f" {answer} "
    lower = answer.lower()
    letters = dict(zip(LETTERS, options, strict=False))
    looked_for = [{letter: f"({letter})" for letter in letters}, {letter: f" {letter} " for letter in letters}]
    found: dict[str, int] = {}
    for forms in looked_for:
        found = found or {letter: answer.rfind(form) for letter, form in forms.items() if form in answer}
    if not found and len(answer.split()) > _MAX_SHORT_ANSWER:
        found = {letter: lower.rfind(text.lower()) for letter, text in letters.items() if text.lower() in lower}
    return max(found, key=lambda letter: found[letter]) if found else None


def read_open(answer: str) -> set[str | float]:
    """
    Returns the candidates in the answer to an open question: texts in lower case, and numbers.

    Args:
        answer: the answer of the model.
    """
    answer = answer.strip().strip(".").lower()
    *lines, last = answer.split("\n")
    tails = []
    for line, indicators in (*((line, _INDICATORS) for line in lines), (last, (*_INDICATORS, "="))):
        shortest = ""
        for indicator in indicators:
            tail = line.split(indicator)[-1].strip()
            # An empty tail gives way to the next indicator's.
            if indicator in line and (not shortest or len(tail) < len(shortest)):
                shortest = tail
        if shortest and shortest not in set(_END_MARKS):
            tails.append(shortest)
    candidates = tails or [answer]
    numbers = [number for text in candidates for pattern in _NUMBERS for number in pattern.findall(text)]
    return {form for text in (*candidates, *numbers) for form in _forms(text)}


def score(prediction: str, reference: str | Sequence[str], question_type: str, options: Sequence[str]) -> float:
    """
    Returns 1 if the answer is right, else 0.

    Args:
        prediction: the answer of the model.
        reference: the right letter, or the accepted answer of an open question; or several.
        question_type: `multiple-choice` or `open`.
        options: the options' texts in the order of their letters; empty for an open question.

    Raises:
        ValueError: the type is unknown, an option is missing, or an accepted answer is empty.
    """
    return _score(prediction, reference, question_type, options)["accuracy"]


def per_sample(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    question_types: Sequence[str],
    options: Sequence[Sequence[str]],
) -> list[dict[str, float]]:
    """
    Returns for every answer whether it is right and whether it could not be read.

    Args:
        predictions: the answers of the model.
        references: the right letter, or the accepted answer of an open question, or several, for each question.
        question_types: `multiple-choice` or `open` for each question.
        options: the options' texts of each question; an empty list for an open question.
    """
    return score_each(
        _score,
        str,
        predictions=predictions,
        references=references,
        question_types=question_types,
        options=options,
    )


def aggregate(samples: Sequence[dict[str, float]], *, categories: Sequence[str] | None = None) -> dict[str, float]:
    """
    Returns the share of right answers, over all questions and of each category, and the share of unread answers.

    Args:
        samples: what `per_sample` returned.
        categories: the subject or domain of each question; unset, only the totals are returned.
    """
    groups = {} if categories is None else by_category(samples, categories)
    parts = {f"{HEADLINE}/{name}": mean(group, HEADLINE) for name, group in groups.items()}
    return {HEADLINE: mean(samples, HEADLINE), **parts, "unread": mean(samples, "unread")}


def _score(
    prediction: str, reference: str | Sequence[str], question_type: str, options: Sequence[str]
) -> dict[str, float]:
    accepted = texts(reference)
    if question_type not in QUESTION_TYPES:
        raise ValueError(f"the question type is {question_type!r}; expected one of {', '.join(QUESTION_TYPES)}.")
    if question_type == "multiple-choice":
        if isinstance(options, str) or not options:
            raise ValueError(
                f"the options are {options!r}; expected a list of texts. MMMU stores them as the text of a Python list: "
                "read it with ast.literal_eval."
            )
        chosen = read_choice(prediction, options)
        return {"accuracy": float(chosen in accepted), "unread": float(chosen is None)}
    if not all(answer.strip() for answer in accepted):
        raise ValueError(f"the reference is {reference!r}; an empty text is contained in every answer. Leave it out.")
    wanted = {form for answer in accepted for form in _forms(answer)}
    found = read_open(prediction)
    named = [text for text in wanted if isinstance(text, str)]
    right = bool(wanted & found) or any(text in form for form in found if isinstance(form, str) for text in named)
    return {"accuracy": float(right), "unread": 0.0}


def _forms(text: str) -> list[str | float]:
    """A number rounded to two decimals, or the text in lower case; a single character only beside a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
