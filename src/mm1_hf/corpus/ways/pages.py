"""
Pages of text, for the continual pre-training of MM1.5 on text-rich images: the pages of PDF files and scanned documents,
texts drawn with many fonts, and drawn charts and tables of known numbers. Each of the three becomes two data sets: pictures
with their text in the layout `caption`, and questions about them in the layout `chat`, on where a text stands or on the
numbers.

    data/{documents,texts,figures}/pages        picture and text; of lines and words their places
    data/{documents,texts,figures}/questions    picture and conversation

The paper gives its four sources equal shares in every batch, so give these equal weights in a mixture. To change a step,
copy this file and run it: mm1 data pages --way my_pages.py ...
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from datatrove.pipeline.base import PipelineStep

from mm1_hf.corpus.dataset_files import FileFormat, WriteDataset
from mm1_hf.corpus.pages.draw_pages import DrawFigures, DrawTexts, no_questions
from mm1_hf.corpus.pages.read_pages import ReadDocumentPages
from mm1_hf.corpus.pages.records import PAGE_FEATURES, QUESTION_FEATURES, page_record, question_record
from mm1_hf.corpus.stages import Stage, data_folder
from mm1_hf.corpus.steps import DocumentRule
from mm1_hf.corpus.text_inputs import ReadTexts


SMALLEST_SIDE, LARGEST_SIDE = 224, 4096


@dataclass(frozen=True)
class Settings:
    """
    Options of this way.

    Args:
        inputs: PDF files and WebDataset archives of documents, or folders of them.
        output: folder of the run.
        format: format of the pages. Questions are always written as Parquet: archives hold no conversations.
        texts: files of texts, or folders of them, to draw as pages.
        figures: number of charts and tables to draw.
        fonts: folder of fonts to draw with. Unset, the fonts that matplotlib brings along.
        longest_side: the longer side of the page pictures, in pixels. The paper's is 1344, so that a page becomes 2 x 2
            tiles of 672 pixels.
        seed: seed of what is drawn.
    """

    inputs: tuple[str, ...]
    output: str
    format: FileFormat = "parquet"
    texts: Sequence[str] = ()
    figures: int = 0
    fonts: str | None = None
    longest_side: int = 1344
    seed: int = 0


def stages(settings: Settings) -> list[Stage]:
    """
    The stages of this way.

    Args:
        settings: the options.

    Raises:
        ValueError: there is nothing to make pages of, an input does not exist or holds no such file, or the folder of fonts
            has none, or a number cannot be used.
    """
    if not (settings.inputs or settings.texts or settings.figures):
        raise ValueError(
            "There is nothing to make pages of. Give PDF files or folders of them, texts to draw (--texts PATH), or a "
            "number of charts and tables (--figures N)."
        )
    if settings.figures < 0:
        raise ValueError(f"figures is {settings.figures}; give the number of charts and tables to draw, 0 for none.")
    if not SMALLEST_SIDE <= settings.longest_side <= LARGEST_SIDE:
        raise ValueError(
            f"The longer side of the pictures is {settings.longest_side} pixels; give {SMALLEST_SIDE} to {LARGEST_SIDE} "
            "(--longest-side), for example 1344. Smaller pages cannot be read, and larger ones are too many tiles."
        )

    def write(source: str) -> list[PipelineStep]:
        folder = os.path.join(data_folder(settings.output), source)
        return [
            WriteDataset(os.path.join(folder, "pages"), settings.format, page_record, PAGE_FEATURES),
            DocumentRule("pages with questions", no_questions),
            WriteDataset(os.path.join(folder, "questions"), "parquet", question_record, QUESTION_FEATURES),
        ]

    drawing = settings.fonts, settings.seed, settings.longest_side
    found = []
    if settings.inputs:
        found.append(
            Stage("documents", [ReadDocumentPages(settings.inputs, settings.longest_side), *write("documents")])
        )
    if settings.texts:
        texts = [*map(os.path.abspath, settings.texts)]
        found.append(Stage("texts", [ReadTexts(texts), DrawTexts(*drawing), *write("texts")]))
    if settings.figures:
        found.append(Stage("figures", [DrawFigures(settings.figures, *drawing), *write("figures")]))
    return found
