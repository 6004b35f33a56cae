"""Rules by fastText models that lie in files: the language of a text, and its quality. Nothing is downloaded."""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

from datatrove.data import Document as EngineDocument


_LABEL = "__label__"
# A language whose score is below this is not sure: the threshold of CCNet's successors, FineWeb among them.
MIN_LANGUAGE_SCORE = 0.65

Rule = Callable[[EngineDocument], str | None]


def languages_rule(model: str | os.PathLike[str], languages: Sequence[str]) -> Rule:
    """
    A rule that keeps documents of some languages.

    Args:
        model: file of a fastText model of languages.
        languages: labels of the languages to keep, without `__label__`.

    Raises:
        ValueError: there is no such file, fastText is not installed, or no language is given.
    """
    if not languages:
        raise ValueError("No language is given; give the labels of the languages to keep, such as en.")
    return partial(_language_fault, model=_require(model), languages=tuple(languages))


def quality_rule(model: str | os.PathLike[str], label: str, min_score: float) -> Rule:
    """
    A rule that keeps documents to which a classifier gives a label.

    Args:
        model: file of a fastText classifier.
        label: the label, without `__label__`.
        min_score: smallest score of the label, from 0 to 1.

    Raises:
        ValueError: there is no such file, fastText is not installed, or `min_score` is not between 0 and 1.
    """
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score is {min_score}; give the smallest score of good documents, from 0 to 1.")
    return partial(_quality_fault, model=_require(model), label=label, min_score=min_score)


def scores(model: str, text: str) -> dict[str, float]:
    """
    The scores of a text by label, without `__label__`.

    Args:
        model: file of a fastText model.
        text: the text.

    Raises:
        ValueError: the file is not a fastText model.
    """
    # A line is what fastText reads.
    labels, values = _loaded(model).predict(" ".join(text.split()), k=-1)
    return {label.removeprefix(_LABEL): float(value) for label, value in zip(labels, values, strict=True)}


def _language_fault(document: EngineDocument, model: str, languages: tuple[str, ...]) -> str | None:
    found = scores(model, document.text)
    # Labels of GlotLID name the script too: `eng_Latn`.
    if max((found.get(language, 0.0) for language in languages), default=0.0) >= MIN_LANGUAGE_SCORE:
        return None
    return "another language"


def _quality_fault(document: EngineDocument, model: str, label: str, min_score: float) -> str | None:
    found = scores(model, document.text)
    return None if found.get(label, 0.0) >= min_score else "low score of the quality model"


def _require(model: str | os.PathLike[str]) -> str:
    path = os.path.abspath(os.path.expanduser(model))
    if not os.path.isfile(path):
        raise ValueError(
            f"There is no model file {path}. Models are not downloaded; get one, for example lid.176.bin of fastText, and "
            "give its path."
        )
    if find_spec("fasttext") is None:
        raise ValueError(f"{path} needs fastText. Install it: pip install fasttext-predict")
    return path


@lru_cache(maxsize=4)
def _loaded(model: str) -> Any:
    import fasttext

    try:
        return fasttext.load_model(model)
    except ValueError as error:
        raise ValueError(f"{model} is not a fastText model: {error}") from error


__all__ = ["languages_rule", "quality_rule", "scores"]
