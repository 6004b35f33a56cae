"""Steps that draw pages: of texts, and of charts and tables."""

from collections.abc import Iterator
from typing import Any

from datatrove.data import Document as EngineDocument

from mm1_hf.corpus.pages.figures import draw_figure
from mm1_hf.corpus.pages.fonts import FontFile, find_fonts
from mm1_hf.corpus.pages.records import QUESTIONS, page_document
from mm1_hf.corpus.pages.region_questions import region_questions
from mm1_hf.corpus.pages.rendered_text import render_pages
from mm1_hf.corpus.steps import CountedReader, CountedStep
from mm1_hf.data.documents import Unusable
from mm1_hf.grounding.text import RegionFormat


class DrawTexts(CountedStep):
    """
    Draws texts as pages: of each text as many documents as it fills pages.

    Args:
        fonts: folder of fonts; see [`mm1_hf.corpus.pages.fonts.find_fonts`].
        seed: seed of the styles.
        longest_side: the longer side of the page pictures, in pixels.

    Raises:
        ValueError: the folder has no font of ordinary letters.
    """

    def __init__(self, fonts: str | None, seed: int, longest_side: int) -> None:
        super().__init__("draw texts")
        self.fonts: tuple[FontFile, ...] = find_fonts(fonts)
        self.seed = seed
        self.longest_side = longest_side

    def process(self, document: EngineDocument) -> EngineDocument:
        """Not used: a text becomes several pages."""
        return document

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        """Passes on the pages of every text. At the end, the samples are written."""
        form = RegionFormat()
        for text in data or ():
            pages = render_pages(text.text, text.id, self.fonts, self.seed, self.longest_side)
            while True:
                with self.track_time():
                    found = next(pages, None)
                if found is None:
                    break
                name, page = found
                if isinstance(page, Unusable):
                    self.count(EngineDocument(text.text, name), page)
                    continue
                document = page_document(page, page.text, region_questions(page, form))
                self.count(document, document)
                yield document
        self.end(rank)


class DrawFigures(CountedReader):
    """
    Draws charts and tables of known numbers. A document is the picture, and the numbers as a table.

    Args:
        number: how many.
        fonts: folder of fonts; see [`mm1_hf.corpus.pages.fonts.find_fonts`].
        seed: seed of the numbers and styles.
        longest_side: the longer side of the largest pictures, in pixels.

    Raises:
        ValueError: the folder has no font of ordinary letters.
    """

    def __init__(self, number: int, fonts: str | None, seed: int, longest_side: int) -> None:
        super().__init__("draw charts and tables")
        self.number = number
        self.fonts: tuple[FontFile, ...] = find_fonts(fonts)
        self.seed = seed
        self.longest_side = longest_side

    def read(self, rank: int, world_size: int) -> Iterator[EngineDocument]:
        """The figures of one task."""
        for index in range(rank, self.number, world_size):
            figure = draw_figure(index, self.fonts, self.seed, self.longest_side)
            yield page_document(figure.page, figure.text, [tuple(question) for question in figure.questions])


def no_questions(document: EngineDocument) -> str | None:
    """
    A rule: drops pages that there is no question about.

    Args:
        document: a document that [`mm1_hf.corpus.pages.records.page_document`] made.
    """
    return None if document.metadata[QUESTIONS] else "no line to ask about"
