"""
Reads the letter of a chosen option in an answer.

The folders of the metrics that read letters hold the same copy of this file, because `evaluate` loads a folder alone.
"""

import re
from collections.abc import Sequence

from .samples import LETTERS


_ALONE = re.compile(r"[(\[*\"'\s]*([A-Za-z])[)\]*\"'\s.:,;!]*")
# "A" and "I" before a lower-case word are an article and a pronoun, but for the words that may follow a letter.
_NO_ARTICLE = r"(?![AI]\s+(?!(?:and|or|is|because|since|as)\b)[a-z])"
_PHRASE = re.compile(rf"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*[(\[*\"']*{_NO_ARTICLE}([A-Z])(?![\w'])")
_START = re.compile(r"[(\[*]*([A-Z])[)\]*.:,]")
_BRACKETS = re.compile(r"\(([A-Z])\)")
_WORD = re.compile(rf"(?<![\w']){_NO_ARTICLE}([A-Z])(?![\w'])")


def read_letter(answer: str, options: Sequence[str | None] | None = None) -> str | None:
    """
    Returns the letter of the option that an answer chooses, or None if the answer cannot be read. These rules are tried
    one after the other:

    1. the whole answer is a letter in either case, perhaps with brackets, quotes or punctuation around it;
    2. a capital after "answer", "option" or "choice", with or without "is" or a colon: the last one;
    3. the answer begins with a capital and a bracket, period, colon or comma: "B. a dog", "(B) a dog";
    4. capitals in brackets: the last one;
    5. capitals that stand alone, if all of them are the same letter;
    6. the text of exactly one option, as whole words in any case. An option inside a longer option that also occurs
       does not count.

    In the rules 2 and 5, "A" and "I" do not count before a lower-case word, except "and", "or", "is", "because", "since"
    and "as". Nothing is guessed: an answer that no rule reads is unread.

    Args:
        answer: the answer of the model.
        options: the options' texts in the order of their letters. Only their letters are read. An option that is None
            or empty does not exist. Unset, all letters are read, and rule 6 is left out.
    """
    allowed = LETTERS
    if options is not None:
        allowed = "".join(letter for letter, option in zip(LETTERS, options, strict=False) if option)
    text = answer.strip()
    alone = _ALONE.fullmatch(text)
    if alone and alone[1].upper() in allowed:
        return alone[1].upper()
    if said := [letter for letter in _PHRASE.findall(text) if letter in allowed]:
        return said[-1]
    start = _START.match(text)
    if start and start[1] in allowed:
        return start[1]
    if bracketed := [letter for letter in _BRACKETS.findall(text) if letter in allowed]:
        return bracketed[-1]
    standing = {letter for letter in _WORD.findall(text) if letter in allowed}
    if len(standing) == 1:
        return standing.pop()
    return _by_text(text, options) if options is not None else None


def _by_text(answer: str, options: Sequence[str | None]) -> str | None:
    lower = answer.lower()
    named = {
        letter: option.lower().strip()
        for letter, option in zip(LETTERS, options, strict=False)
        if option and option.strip() and _occurs(option.lower().strip(), lower)
    }
    longest = [
        letter
        for letter, option in named.items()
        if not any(option != other and _occurs(option, other) for other in named.values())
    ]
    return longest[0] if len(longest) == 1 else None


def _occurs(phrase: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None
