"""
Steps that judge text: language, quality and profanity (MM1, appendix A.2).

The paper names the kinds of its filters and not their rules: too short, profane and low-quality documents are dropped,
as GPT-3 and CCNet did with models of their own. Here the rules are those of later open data sets, with datatrove's
implementations and defaults: Gopher's for quality and repetition (Rae et al. 2021), C4's (Raffel et al. 2019) without
the one about the ends of lines, and FineWeb's (Penedo et al. 2024). They are made for English. A classifier of quality
such as GPT-3's, a model of languages and a list of bad words can be given as files.
"""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import regex
from datatrove.data import Document as EngineDocument
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

from mm1_hf.corpus.fasttext_rules import languages_rule, quality_rule
from mm1_hf.corpus.steps import DocumentRule, EngineFilter
from mm1_hf.corpus.words import UNSPACED, WORDS


def language_steps(model: str | os.PathLike[str] | None, languages: Sequence[str]) -> list[PipelineStep]:
    """
    Keeps documents of some languages. Without a model, there is no step.

    Args:
        model: file of a fastText model of languages, such as `lid.176.bin` or that of GlotLID. It is not downloaded.
        languages: labels of the languages to keep, as the model calls them, such as `en` or `eng_Latn`.

    Raises:
        ValueError: there is no such file, or fastText is not installed.
    """
    return [] if model is None else [DocumentRule("language", languages_rule(model, languages))]


def repetition_and_quality_steps() -> list[PipelineStep]:
    """The rules that judge a document and do not change it, so that its images keep their places."""
    return [
        EngineFilter(GopherRepetitionFilter(language=WORDS), "repetition (Gopher)"),  # ty: ignore[invalid-argument-type] -- a tokenizer may take the place of a language
        EngineFilter(GopherQualityFilter(language=WORDS), "quality (Gopher)"),  # ty: ignore[invalid-argument-type]
    ]


def line_quality_steps() -> list[PipelineStep]:
    """The rules that look at lines. The first drops lines too, so these are for documents without images."""
    return [
        EngineFilter(C4QualityFilter(filter_no_terminal_punct=False, language=WORDS), "lines (C4)"),  # ty: ignore[invalid-argument-type]
        EngineFilter(FineWebQualityFilter(language=WORDS), "lines (FineWeb)"),  # ty: ignore[invalid-argument-type]
    ]


def quality_model_steps(model: str | os.PathLike[str] | None, label: str, min_score: float) -> list[PipelineStep]:
    """
    Keeps documents that a classifier finds good, as GPT-3 did. Without a model, there is no step.

    Args:
        model: file of a fastText classifier, such as DCLM's. It is not downloaded.
        label: the classifier's label of good documents.
        min_score: smallest score of that label, from 0 to 1.

    Raises:
        ValueError: there is no such file, fastText is not installed, or the score is not a share.
    """
    return [] if model is None else [DocumentRule("quality model", quality_rule(model, label, min_score))]


def bad_word_steps(file: str | os.PathLike[str] | None) -> list[PipelineStep]:
    """
    Drops documents with a bad word, as C4 did. Without a list, there is no step: lists differ by language and by what is
    meant to be kept.

    Args:
        file: a text file with a word or phrase on each line; lines that begin with `#` are comments.

    Raises:
        ValueError: the file cannot be read, or has no words.
    """
    if file is None:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"The list of bad words {os.fspath(file)!r} cannot be read: {error}. Give a text file in UTF-8 with a word or "
            "phrase on each line."
        ) from error
    words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise ValueError(f"The list of bad words {os.fspath(file)!r} has no words; write one on each line.")
    return [DocumentRule("bad words", partial(has_bad_word, pattern=bad_words_pattern(words)))]


def bad_words_pattern(words: Iterable[str]) -> Any:
    """
    A compiled pattern that finds whole words and phrases, in any case. In scripts without spaces between words, such as
    Chinese, a phrase is found anywhere.

    Args:
        words: the words and phrases.
    """
    spaced, unspaced = [], []
    for word in words:
        folded = " ".join(word.lower().split())
        is_unspaced = regex.search(f"[{UNSPACED}]", folded)
        (unspaced if is_unspaced else spaced).append(folded)
    # `\L` looks a word up in a set, so that a long list takes no longer. An empty one would match anywhere.
    patterns = [*([r"(?<!\w)\L<spaced>(?!\w)"] if spaced else []), *([r"\L<unspaced>"] if unspaced else [])]
    return regex.compile("|".join(patterns), spaced=spaced, unspaced=unspaced, ignore_unused=True)


def has_bad_word(document: EngineDocument, pattern: Any) -> str | None:
    """
    The reason to drop a document with a bad word, or `None`.

    Args:
        document: the document.
        pattern: see [`bad_words_pattern`].
    """
    return "bad word" if pattern.search(" ".join(document.text.lower().split())) else None
