"""
Draws texts as pages: with many fonts, sizes, colours and backgrounds, in one or two columns, straight or a little turned.

The style of a page is drawn from a seed, the name of the text and the number of the page alone, so that the same fonts give
the same pages on every machine, in any order.
"""

import math
import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from mm1_hf.corpus.pages.fonts import FontFile
from mm1_hf.corpus.pages.page import Line, Page, Word, around
from mm1_hf.corpus.pages.paper import Paper, draw_paper
from mm1_hf.corpus.pages.pdf_process import png
from mm1_hf.data.documents import Unusable
from mm1_hf.grounding.regions import Box


# A longer text is drawn as far as this.
MOST_PAGES = 20
# Width over height.
_SHAPES = (0.707, 0.707, 0.773, 1.0, 1.414, 1.6)
# Heights of the letters' squares, at a longest side of 1344 pixels.
_SIZES = (16, 18, 20, 22, 24, 28, 32, 40, 52)
_REFERENCE_SIDE = 1344
_LARGEST_ANGLE = 5.0
_TURNED_SHARE = 0.3
_TWO_COLUMNS_SHARE = 0.25
# In widths of a column's letters.
_NARROWEST_COLUMN = 18


@dataclass(frozen=True)
class _Style:
    width: int
    height: int
    font: FontFile
    size: int
    spacing: float
    alignment: str
    margin: int
    columns: int
    angle: float
    paper: Paper


def render_pages(
    text: str, name: str, fonts: Sequence[FontFile], seed: int, longest_side: int = 1344
) -> Iterator[tuple[str, Page | Unusable]]:
    """
    Yields the name of each page, and the page or the reason why it cannot be drawn.

    Args:
        text: the text. Its line breaks are kept; long lines are broken.
        name: name of the text. Its pages are named after it and their number, from 1.
        fonts: fonts to choose from; a page is drawn with one that has all characters of the text.
        seed: seed of the styles.
        longest_side: the longer side of the page pictures, in pixels.
    """
    text = "".join(letter for letter in unicodedata.normalize("NFC", text) if letter.isprintable() or letter.isspace())
    if any(map(_needs_shaping, set(text))):
        yield (
            name,
            Unusable(
                "script that is not drawn", f"{name}: letters that are joined, stacked or written from the right"
            ),
        )
        return
    usable = [font for font in fonts if font.has(text)]
    if not usable:
        yield name, Unusable("no font has all characters", name)
        return
    paragraphs = [words for line in text.splitlines() if (words := line.split())]
    number = 0
    while paragraphs:
        number += 1
        page_name = f"{name}#{number}"
        if number > MOST_PAGES:
            rest = sum(map(len, paragraphs))
            yield page_name, Unusable("text too long", f"{page_name}: {rest} words do not fit on {MOST_PAGES} pages")
            return
        style = _style(random.Random(f"{seed} {page_name}"), usable, longest_side)
        page, paragraphs = _page(paragraphs, style, page_name)
        yield page_name, page
    if not number:
        yield name, Unusable("no text", name)


def _needs_shaping(letter: str) -> bool:
    return unicodedata.category(letter) in ("Mn", "Mc", "Me", "Cf") or unicodedata.bidirectional(letter) in (
        "R",
        "AL",
        "AN",
    )


def _style(draw: random.Random, fonts: Sequence[FontFile], longest_side: int) -> _Style:
    shape = draw.choice(_SHAPES)
    width, height = round(longest_side * min(shape, 1)), round(longest_side / max(shape, 1))
    size = max(8, round(draw.choice(_SIZES) * longest_side / _REFERENCE_SIDE))
    # Room for what a turned page loses at its corners.
    margin = round(draw.uniform(0.07, 0.12) * longest_side)
    two = draw.random() < _TWO_COLUMNS_SHARE
    columns = 2 if two and (width - 2 * margin) / 2 > _NARROWEST_COLUMN * size else 1
    angle = draw.uniform(-_LARGEST_ANGLE, _LARGEST_ANGLE) if draw.random() < _TURNED_SHARE else 0.0
    alignment = draw.choice(("left", "left", "justified", "centred"))
    return _Style(
        width,
        height,
        draw.choice(fonts),
        size,
        draw.uniform(1.2, 1.8),
        alignment,
        margin,
        columns,
        angle,
        draw_paper(draw),
    )


def _page(paragraphs: list[list[str]], style: _Style, name: str) -> tuple[Page, list[list[str]]]:
    """A page, and the paragraphs that are left for the next ones."""
    picture = style.paper.picture(style.width, style.height, round(style.size * style.spacing))
    pen, font = ImageDraw.Draw(picture), style.font.sized(style.size)
    gap = 2 * style.size
    column = (style.width - 2 * style.margin - gap * (style.columns - 1)) / style.columns
    ascent, descent = font.getmetrics()
    lines: list[Line] = []
    for index in range(style.columns):
        left = style.margin + index * (column + gap)
        baseline = style.margin + ascent
        # At least one line, whatever the size, so that every page takes something.
        while paragraphs and (baseline + descent <= style.height - style.margin or not lines):
            words, rest = _first_line(paragraphs[0], font, column)
            lines.append(_draw_line(pen, words, font, (left, baseline), column, style, not rest))
            paragraphs = [rest, *paragraphs[1:]] if rest else paragraphs[1:]
            baseline += style.size * style.spacing
    if style.angle:
        picture = picture.rotate(style.angle, Image.Resampling.BICUBIC, fillcolor=style.paper.colour)
        lines = [_turned(line, style) for line in lines]
    return Page(name, png(picture), style.height, style.width, tuple(lines)), paragraphs


def _first_line(words: list[str], font: ImageFont.FreeTypeFont, column: float) -> tuple[list[str], list[str]]:
    """The words that fill a line, and the rest of the paragraph. A word that is longer than a line is broken."""
    space = font.getlength(" ")
    used = font.getlength(words[0])
    if used > column:
        word = words[0]
        fitting = next((end for end in range(len(word) - 1, 1, -1) if font.getlength(word[:end]) <= column), 1)
        return [word[:fitting]], [part for part in (word[fitting:], *words[1:]) if part]
    number = 1
    for word in words[1:]:
        used += space + font.getlength(word)
        if used > column:
            break
        number += 1
    return words[:number], words[number:]


def _draw_line(
    pen: ImageDraw.ImageDraw,
    words: list[str],
    font: ImageFont.FreeTypeFont,
    start: tuple[float, float],
    column: float,
    style: _Style,
    is_last: bool,
) -> Line:
    widths = [font.getlength(word) for word in words]
    space = font.getlength(" ")
    free = column - sum(widths) - space * (len(words) - 1)
    left, baseline = start
    if style.alignment == "centred":
        left += free / 2
    elif style.alignment == "justified" and not is_last and len(words) > 1:
        space += free / (len(words) - 1)
    drawn = []
    for word, width in zip(words, widths, strict=True):
        # Letters begin at whole pixels, as the font's outlines are drawn.
        place = (round(left), round(baseline))
        pen.text(place, word, style.paper.ink, font, anchor="ls")
        drawn.append(Word(word, Box(*map(float, pen.textbbox(place, word, font, anchor="ls")))))
        left += width + space
    return Line(tuple(drawn))


def _turned(line: Line, style: _Style) -> Line:
    """The line where it is after the page was turned around its middle, counter-clockwise."""
    cosine, sine = math.cos(math.radians(style.angle)), math.sin(math.radians(style.angle))
    middle_x, middle_y = style.width / 2, style.height / 2

    def turned(x: float, y: float) -> Box:
        x, y = x - middle_x, y - middle_y
        x, y = x * cosine + y * sine + middle_x, y * cosine - x * sine + middle_y
        return Box(x, y, x, y)

    return Line(
        tuple(
            Word(
                word.text,
                around([turned(x, y) for x in (word.box.x1, word.box.x2) for y in (word.box.y1, word.box.y2)]),
            )
            for word in line.words
        )
    )
