"""Draws tables of numbers with Pillow, in several styles."""

import random
from collections.abc import Sequence

from PIL import ImageDraw

from mm1_hf.corpus.pages.fonts import FontFile
from mm1_hf.corpus.pages.number_tables import NumberTable
from mm1_hf.corpus.pages.page import Line, Page, Word
from mm1_hf.corpus.pages.paper import draw_paper
from mm1_hf.corpus.pages.pdf_process import png
from mm1_hf.grounding.regions import Box


_STYLES = ("grid", "rules", "plain")
_SIZES = (20, 24, 28, 32)


def draw_table_page(
    table: NumberTable, name: str, font: FontFile, draw: random.Random, longest_side: int = 1344
) -> Page:
    """
    The picture of a table, with its lines: the title, and each row as a line whose words are the cells.

    Args:
        table: the table.
        name: name of the page.
        font: the font.
        draw: the random number generator.
        longest_side: the longer side of the picture, in pixels; a table that is too large is drawn smaller.
    """
    paper, style = draw_paper(draw), draw.choice(_STYLES)
    cells = [(table.row_name.capitalize(), *table.columns)]
    cells += [(row, *map(str, numbers)) for row, numbers in zip(table.rows, table.values, strict=True)]
    size = draw.choice(_SIZES)
    while True:
        letters = font.sized(size)
        padding, row_height = size, round(size * 2)
        widths = [round(max(map(letters.getlength, column))) + 2 * padding for column in zip(*cells, strict=True)]
        margin = 2 * size
        width = round(max(sum(widths), letters.getlength(table.title))) + 2 * margin
        height = (len(cells) + 1) * row_height + 2 * margin
        if max(width, height) <= longest_side or size == 8:
            break
        size -= 1
    picture = paper.picture(width, height, row_height)
    pen = ImageDraw.Draw(picture)

    def write(text: str, left: float, baseline: int, anchor: str) -> Word:
        place = (round(left), baseline)
        pen.text(place, text, paper.ink, letters, anchor=anchor)
        return Word(text, Box(*map(float, pen.textbbox(place, text, letters, anchor=anchor))))

    baseline = margin + round(row_height * 0.65)
    lines = [Line((write(table.title, margin, baseline, "ls"),))]
    top = margin + row_height
    edges = [margin]
    for column in widths:
        edges.append(edges[-1] + column)
    for index, row in enumerate(cells):
        baseline = top + index * row_height + round(row_height * 0.65)
        first = write(row[0], margin + padding, baseline, "ls")
        # Numbers end at the right side of their column.
        numbers = [write(cell, edges[place + 2] - padding, baseline, "rs") for place, cell in enumerate(row[1:])]
        lines.append(Line((first, *numbers)))
    _rule(pen, style, edges, [top + index * row_height for index in range(len(cells) + 1)], paper.ink)
    return Page(name, png(picture), height, width, tuple(lines))


def _rule(
    pen: ImageDraw.ImageDraw, style: str, edges: Sequence[int], tops: Sequence[int], ink: tuple[int, int, int]
) -> None:
    rows = {"grid": tops, "rules": (tops[0], tops[1], tops[-1]), "plain": (tops[1],)}[style]
    for top in rows:
        pen.line((edges[0], top, edges[-1], top), ink, 2)
    for edge in edges if style == "grid" else ():
        pen.line((edge, tops[0], edge, tops[-1]), ink, 2)
