"""Words and sentences for datatrove's filters of text, without a model for each language."""

from itertools import pairwise

import regex
from datatrove.utils.text import TERMINAL_PUNCTUATION
from datatrove.utils.word_tokenizers import WordTokenizer


# Scripts that write no spaces between words.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"

_UNSPACED = regex.compile(f"[{UNSPACED}]")
_BOUNDARY = regex.compile(r"\b", regex.WORD | regex.VERSION1)
_SENTENCE_END = regex.compile(
    rf"[{regex.escape(''.join(sorted(TERMINAL_PUNCTUATION)))}]+[\"'”’)\]]*(?=\s|$)|\n+", regex.UNICODE
)


class SpacedWords(WordTokenizer):
    """
    Divides texts of any language into words at white space, and into sentences at their punctuation and at ends of lines. In
    scripts that write no spaces, words are what Unicode's boundaries make of them (UAX 29), mostly single characters.

    datatrove's filters take it as their `language`. Its own tokenizers need spaCy or another library for each language, and
    count punctuation as words, which the rules of Gopher do not: of pages with formulas or code, they would drop most.
    """

    def word_tokenize(self, text: str) -> list[str]:
        """
        The words, with the punctuation that is attached to them.

        Args:
            text: the text.
        """
        words: list[str] = []
        for word in text.split():
            if _UNSPACED.search(word):
                words += filter(None, _BOUNDARY.split(word))
            else:
                words.append(word)
        return words

    def sent_tokenize(self, text: str) -> list[str]:
        """
        The sentences, without white space around them.

        Args:
            text: the text.
        """
        return [text[start:end].strip() for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """
        Begin and end of every sentence that is not empty.

        Args:
            text: the text.
        """
        ends = [match.end() for match in _SENTENCE_END.finditer(text)]
        bounds = [0, *ends, *([len(text)] if not ends or ends[-1] < len(text) else [])]
        spans = pairwise(bounds)
        return [(start, end) for start, end in spans if text[start:end].strip()]


# Filters cache the words of the last texts by the tokenizer that made them, so that all of them should share one.
WORDS = SpacedWords()
