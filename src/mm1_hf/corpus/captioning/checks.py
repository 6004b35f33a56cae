"""
Finds what is wrong with a caption that a model wrote. All rules are pure functions of texts.

Models that write captions fail in ways of their own: they refuse, talk to the user, repeat their instructions, go
round in circles, or invent what neither the image nor its alt text shows. VeCap's own filters were never published;
these are rules for the failures that are seen.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from mm1_hf.corpus.captioning.phrases import CONTROL_TOKEN, LEAD_IN, PATTERNS


@dataclass(frozen=True)
class CaptionRules:
    """
    Limits for a caption. The numbers are our own.

    Args:
        min_words: smallest number of words. A character of Chinese, Japanese or Korean counts as a word.
        max_words: largest number of words.
        max_characters: largest number of characters. Longer texts are not looked at any further.
        max_repeats: how often a word may follow itself.
        max_repeated_share: largest share of the sequences of three words that occur earlier in the caption.
        min_support: smallest share of the longer words that must occur in the texts that the caption was made of.
        echo_words: number of words in sequence that make a repetition of the instructions.
    """

    min_words: int = 3
    max_words: int = 150
    max_characters: int = 1500
    max_repeats: int = 3
    max_repeated_share: float = 0.3
    min_support: float = 0.3
    echo_words: int = 5


_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORDS = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}_])\w)+(?:['’\-](?:(?![{_CJK}_])\w)+)*")
_SENTENCE_END = re.compile(r"[.!?。！？]['\"”’)]*(?=\s|$)|[。！？]")
_QUOTES = ('""', "''", "“”", "‘’", "«»", "「」", "**")
_NUMBER = re.compile(r"\d+")

CUT_OFF = "cut off before its first sentence ended"


def tidied(text: str) -> str:
    """
    Removes what models write around a caption: white space, a phrase that announces it, and quotes around it.

    Args:
        text: the answer of a model.

    Example:

    ```python
    >>> from mm1_hf.corpus.captioning.checks import tidied

    >>> tidied('Sure! Here is the caption:\\n\\n"A red bus."')
    'A red bus.'

    ```
    """
    text = " ".join(text.split())
    announced = LEAD_IN.match(text)
    if announced and announced.end() < len(text):
        text = text[announced.end() :]
    for first, last in _QUOTES:
        inner = text[1:-1]
        if len(text) > 2 and text[0] == first and text[-1] == last and first not in inner and last not in inner:
            return inner.strip()
    return text


def whole_sentences(text: str) -> str:
    """
    The sentences of an answer that was cut off at the limit of its length, without the unfinished last one. Empty if
    none is finished.

    Args:
        text: the answer.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def words_of(text: str) -> list[str]:
    """
    The words of a text, in lower case. A character of Chinese, Japanese or Korean is a word.

    Args:
        text: the text.
    """
    return [word.casefold() for word in _WORDS.findall(text)]


def alt_text_fault(text: str, rules: CaptionRules | None = None) -> str | None:
    """
    The reason not to ask models about an image with this alt text, or `None`. It may be short or poor: then the
    synthetic caption helps most.

    Args:
        text: the alt text.
        rules: the limits; unset, their defaults.
    """
    rules = rules or CaptionRules()
    if not text.strip():
        return "no alt text"
    if len(text) > rules.max_characters:
        return "alt text too long"
    if any(_is_control(character) and not character.isspace() for character in text):
        return "control characters"
    return "control tokens" if CONTROL_TOKEN.search(text) else None


def caption_fault(
    text: str, instructions: str, sources: Iterable[str], rules: CaptionRules | None = None
) -> str | None:
    """
    The reason not to use a caption, or `None` if it passes. What a source says too is no fault: an alt text may hold
    an address, or the words "I am sorry".

    Args:
        text: the caption, as [`tidied`] returned it.
        instructions: the prompt without the texts that were filled in.
        sources: the texts that the caption may repeat, for example the alt text.
        rules: the limits; unset, their defaults.
    """
    rules = rules or CaptionRules()
    if not text.strip():
        return "empty"
    if len(text) > rules.max_characters:
        return "too long"
    if any(map(_is_control, text)):
        return "control characters"
    said = " ".join(sources).casefold()
    for reason, pattern in PATTERNS.items():
        if any(match[0].casefold() not in said for match in pattern.finditer(text)):
            return reason
    words = words_of(text)
    if len(words) < rules.min_words:
        return "too short"
    if len(words) > rules.max_words:
        return "too long"
    if repeats_itself(words, rules):
        return "repeats itself"
    if _echoes(words, instructions, rules.echo_words):
        return "repeats its instructions"
    if _foreign_letters(text, said):
        return "letters of another script"
    return None


def fusion_fault(text: str, sources: Iterable[str], rules: CaptionRules | None = None) -> str | None:
    """
    The reason not to use a caption that a language model made of texts, without seeing the image: what is in none of
    them is invented. `None` if it passes.

    Args:
        text: the caption, as [`tidied`] returned it.
        sources: the texts that it was made of.
        rules: the limits; unset, their defaults.
    """
    rules = rules or CaptionRules()
    said = " ".join(sources)
    known = {_stem(word) for word in words_of(said)}
    if not set(_NUMBER.findall(text)) <= set(_NUMBER.findall(said)):
        return "a number that is in neither text"
    longer = [word for word in words_of(text) if len(word) > 3 or word[0] > "\u3000"]
    if longer and sum(_stem(word) in known for word in longer) < rules.min_support * len(longer):
        return "little of it is in either text"
    return None


def repeats_itself(words: list[str], rules: CaptionRules) -> bool:
    """
    Whether a text goes round in circles.

    Args:
        words: its words.
        rules: the limits.
    """
    if any(sum(1 for _ in run) > rules.max_repeats for _, run in groupby(words)):
        return True
    triples = list(_sequences(words, 3))
    return bool(triples) and 1 - len(set(triples)) / len(triples) > rules.max_repeated_share


# Marks that change the direction of text, and the mark that stands for a byte that could not be read.
_NO_TEXT = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufffd")


def _is_control(character: str) -> bool:
    return character in _NO_TEXT or unicodedata.category(character) in ("Cc", "Cs", "Co")


def _sequences(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def _echoes(words: list[str], instructions: str, length: int) -> bool:
    return not _instruction_sequences(instructions, length).isdisjoint(_sequences(words, length))


@lru_cache(maxsize=8)
def _instruction_sequences(instructions: str, length: int) -> frozenset[tuple[str, ...]]:
    return frozenset(_sequences(words_of(instructions), length))


# A word that is spelled with a few letters of another script, such as a unit or a name, is no other language.
_MOST_FOREIGN_LETTERS = 2


def _foreign_letters(text: str, said: str) -> bool:
    allowed = {"LATIN", *map(_script, filter(str.isalpha, said))}
    return sum(_script(letter) not in allowed for letter in text if letter.isalpha()) > _MOST_FOREIGN_LETTERS


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """The script of a letter: the first word of its name, such as `LATIN`. Japanese and Chinese share theirs."""
    script = unicodedata.name(letter, "").partition(" ")[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA") else script


def _stem(word: str) -> str:
    """What forms of the same word share: "buses" and "bus" do, "bus" and "business" too."""
    return word[:4]
