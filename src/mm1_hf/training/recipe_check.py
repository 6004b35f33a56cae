"""Checks the sources of an open recipe: reads one record of each, and says what it became."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from mm1_hf.data.chats import Chat
from mm1_hf.data.documents import Document, Unusable
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.locations import first_that_answers
from mm1_hf.training.runs import read_source
from mm1_hf.training.settings import RunSettings, SourceSettings


# Records that are tried, because some of a data set may be unusable.
_TRIED = 10
_SHOWN = 60


@dataclass(frozen=True)
class CheckedSource:
    """
    What a source has.

    Args:
        name: name of the source.
        place: the one of its paths that is read; `None` if none answers.
        became: what its first usable record became, in words, or what is wrong.
        fine: whether there is a usable record.
    """

    name: str
    place: str | None
    became: str
    fine: bool


def check_sources(settings: RunSettings) -> Iterator[CheckedSource]:
    """
    Reads one record of each source of a run, as the run itself would read it. Sources are streamed, so that none is
    downloaded whole.

    Args:
        settings: settings of the run.

    Yields:
        What each source has, as soon as it is read. Whatever is wrong with one is said of it, and the others are read.
    """
    for name, source in settings.sources.items():
        place = None
        try:
            place = first_that_answers(source.path)
            yield CheckedSource(name, place, _first_document(name, source, place), True)
        # A source that breaks off while it is read may raise an exception of any library below `datasets`.
        except Exception as error:
            yield CheckedSource(name, place, " ".join(str(error).split()) or type(error).__name__, False)


def _first_document(name: str, source: SourceSettings, place: str) -> str:
    records = read_source(replace(source, streaming=True), place)
    reasons: list[Unusable] = []
    for record in islice(records, _TRIED):
        try:
            return _described(LAYOUTS[source.layout](record, name))
        except Unusable as reason:
            reasons.append(reason)
    raise ValueError(f"none of the first {len(reasons)} records can be used; the first one: {reasons[0]}")


def _described(document: Document) -> str:
    texts = [part for part in document.parts if isinstance(part, str)]
    first = " ".join(" ".join(texts).split())
    kind = f"{len(document.messages)} turns" if isinstance(document, Chat) else document.kind
    shown = first if len(first) <= _SHOWN else f"{first[: _SHOWN - 1]}…"
    return f"{kind}, {len(document.images)} images, {sum(map(len, texts)):,} characters: {shown}"
