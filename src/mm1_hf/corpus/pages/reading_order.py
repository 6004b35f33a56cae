"""
Puts the words of a page in reading order: from top to bottom, columns one after the other, the rows of a table as rows.

The page is cut recursively. Rows of words with white space above and below form bands; neighbouring bands with a common
gutter, a strip of white space from top to bottom, stay together, and are cut at the gutter if both sides are columns of
text. Whether they are columns or cells of a table is told by the order in which the document stores its words: a program
writes column after column, and row after row. Scanned pages may store columns by rows; where both sides are filled with long
lines, they are columns all the same. For scripts that are written from left to right.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from mm1_hf.corpus.pages.page import Line, Word, without_leaders
from mm1_hf.grounding.regions import Box


# Widths and heights are in units of the median height of the words.
_NARROWEST_GUTTER = 1.2
_LINES_OF_COLUMN = 2
_MOST_COLUMNS = 12
# What columns have whose words are stored row by row.
_LINES_OF_FULL_COLUMN = 5
_WIDTH_OF_FULL_COLUMN = 14.0
_FILLED_SHARE = 0.6
# A single line with this much white space above or below it, such as the header of a page, belongs to no column.
_SEPARATING_SPACE = 1.5
# A page is cut in each step at least once. Deeper nesting than this is no page of text, and would take long.
_DEEPEST = 24


class _Placed(NamedTuple):
    """A word, and its index in the order in which the document stores its words."""

    stored: int
    word: Word

    @property
    def box(self) -> Box:
        return self.word.box


class _Span(NamedTuple):
    """An interval on an axis."""

    start: float
    end: float


def reading_order(words: Sequence[Word]) -> list[Line]:
    """
    The lines of a page, in reading order.

    Args:
        words: the words of the page, written from left to right, in the order in which the document stores them.

    Example:

    ```python
    >>> from mm1_hf.corpus.pages.page import Word
    >>> from mm1_hf.corpus.pages.reading_order import reading_order
    >>> from mm1_hf.grounding.regions import Box

    >>> words = [Word("world", Box(60, 10, 100, 20)), Word("hello", Box(10, 11, 50, 20)), Word("again", Box(10, 30, 50, 40))]
    >>> [line.text for line in reading_order(words)]
    ['hello world', 'again']

    ```
    """
    if not words:
        return []
    region = [_Placed(*pair) for pair in enumerate(words)]
    # Without height, such as of a page of hyphens, any gap is as good as another.
    return _ordered(region, _typical_height(region) or 1.0, 0)


def _typical_height(region: list[_Placed]) -> float:
    # A table of contents has more dots than letters.
    lettered = [placed.box for placed in region if any(map(str.isalnum, placed.word.text))]
    return statistics.median(box.y2 - box.y1 for box in lettered or [placed.box for placed in region])


def _ordered(region: list[_Placed], unit: float, depth: int) -> list[Line]:
    if depth == _DEEPEST:
        return _lines(region)
    bands = _bands(region, unit)
    if len(bands) > 1:
        return [line for band in bands for line in _ordered(band, unit, depth + 1)]
    columns = _columns(region, unit)
    if len(columns) > 1:
        return [line for column in columns for line in _ordered(column, unit, depth + 1)]
    return _lines(region)


def _bands(region: list[_Placed], unit: float) -> list[list[_Placed]]:
    """The rows of a region from top to bottom, where neighbours that share a gutter, or have none, are together."""
    bands: list[list[_Placed]] = []
    free: list[_Span] = []
    alone = False
    rows = _rows(region)
    spans = [_free_spans(row, unit) for row in rows]
    for index, (row, own) in enumerate(zip(rows, spans, strict=True)):
        single = _is_separate_line(rows, index, unit)
        if bands and not single and not alone:
            shared = _shared(free, own, unit)
            without = not (_gutters(free) or _gutters(own))
            if without or (_gutters(shared) and not _begins_columns(free, index, spans, unit)):
                bands[-1] += row
                free = shared
                continue
        bands.append([*row])
        free, alone = own, single
    return bands


def _begins_columns(free: list[_Span], index: int, spans: list[list[_Span]], unit: float) -> bool:
    """
    Whether a row, such as the headings of two columns, has its gutter from the rows below it: the band above it is not in
    columns, and reaches into the gutter.
    """
    if _gutters(free) or index + 1 == len(spans):
        return False
    below = _shared(spans[index], spans[index + 1], unit)
    return bool(_gutters(below)) and not _gutters(_shared(free, below, unit))


def _rows(region: list[_Placed]) -> list[list[_Placed]]:
    """Groups of words with white space above and below them over the whole width of the region."""
    rows: list[list[_Placed]] = []
    lowest = 0.0
    for placed in sorted(region, key=lambda placed: placed.box.y1):
        if rows and placed.box.y1 < lowest:
            rows[-1].append(placed)
            lowest = max(lowest, placed.box.y2)
        else:
            rows.append([placed])
            lowest = placed.box.y2
    return rows


def _is_separate_line(rows: list[list[_Placed]], index: int, unit: float) -> bool:
    """
    Whether the first or the last row of a region is a single line, far from the others, that is stored as one: the headings
    of two columns are stored with their columns.
    """
    if len(rows) < 2 or index not in (0, len(rows) - 1):
        return False
    stored = [placed.stored for placed in rows[index]]
    if max(stored) - min(stored) >= len(stored):
        return False
    neighbour = rows[1] if index == 0 else rows[-2]
    upper, lower = (rows[index], neighbour) if index == 0 else (neighbour, rows[index])
    space = min(placed.box.y1 for placed in lower) - max(placed.box.y2 for placed in upper)
    return space > _SEPARATING_SPACE * unit and len(_lines(rows[index])) == 1


def _free_spans(words: list[_Placed], unit: float) -> list[_Span]:
    """The vertical strips without words that are wide enough to separate columns. The first and the last one are endless."""
    spans = []
    right = -math.inf
    for placed in sorted(words, key=lambda placed: placed.box.x1):
        if placed.box.x1 - right >= _NARROWEST_GUTTER * unit:
            spans.append(_Span(right, placed.box.x1))
        right = max(right, placed.box.x2)
    return [*spans, _Span(right, math.inf)]


def _shared(first: list[_Span], second: list[_Span], unit: float) -> list[_Span]:
    """The strips that are free in both of two neighbouring groups of words."""
    shared = [_Span(max(one.start, other.start), min(one.end, other.end)) for one in first for other in second]
    return [span for span in shared if span.end - span.start >= _NARROWEST_GUTTER * unit]


def _gutters(free: list[_Span]) -> list[_Span]:
    """The free strips with words on both sides."""
    return [span for span in free if span.start > -math.inf and span.end < math.inf]


def _columns(region: list[_Placed], unit: float) -> list[list[_Placed]]:
    """The columns of text that a region consists of, from left to right; the region itself if it is one."""
    columns, rest = [], region
    gutters = _gutters(_free_spans(region, unit))
    if len(gutters) >= _MOST_COLUMNS:
        return [region]
    for gutter, following in pairwise([*gutters, _Span(math.inf, math.inf)]):
        left = [placed for placed in rest if placed.box.x2 <= gutter.start]
        right = [placed for placed in rest if placed.box.x1 >= gutter.end]
        beside = [placed for placed in right if placed.box.x2 <= following.start]
        if _stored_by_columns(left, right) or all(_is_filled(side, unit) for side in (left, beside)):
            columns.append(left)
            rest = right
    return [*columns, rest]


def _stored_by_columns(left: list[_Placed], right: list[_Placed]) -> bool:
    rows = min(len(_lines(left)), len(_lines(right)))
    if rows < _LINES_OF_COLUMN:
        return False
    lefts = {placed.stored for placed in left}
    order = [placed.stored in lefts for placed in sorted([*left, *right], key=lambda placed: placed.stored)]
    changes = sum(one != other for one, other in pairwise(order))
    # Column after column changes sides once. Row after row changes them about twice a row.
    return changes <= max(1, rows // 2)


def _is_filled(words: list[_Placed], unit: float) -> bool:
    """Whether words are the lines of a column of text."""
    lines = [_Span(line.box.x1, line.box.x2) for line in _lines(words)]
    if len(lines) < _LINES_OF_FULL_COLUMN:
        return False
    width = max(line.end for line in lines) - min(line.start for line in lines)
    typical = statistics.median(line.end - line.start for line in lines)
    return typical >= max(_WIDTH_OF_FULL_COLUMN * unit, _FILLED_SHARE * width)


def _lines(region: list[_Placed]) -> list[Line]:
    """
    The lines of a region without columns, from top to bottom. A word belongs to the line whose tallest word is beside its
    middle; small marks and raised numbers then find their lines.
    """
    if not region:
        return []
    typical = _typical_height(region)
    lines: list[tuple[_Span, list[_Placed]]] = []
    # The lines that may hold a middle, by its height on the page: a page may have thousands.
    near: dict[int, list[tuple[_Span, list[_Placed]]]] = defaultdict(list)
    scale = 2 * typical or 1.0
    for placed in sorted(region, key=lambda placed: (-_height(placed, typical), placed.stored)):
        top, height = placed.box.y1, _height(placed, typical)
        middle = top + height / 2
        line = next((line for line in near[int(middle // scale)] if line[0].start <= middle <= line[0].end), None)
        if line is not None:
            line[1].append(placed)
            continue
        line = (_Span(top, top + height), [placed])
        lines.append(line)
        for step in range(int(top // scale), int((top + height) // scale) + 1):
            near[step].append(line)
    lines.sort(key=lambda line: line[0].start)
    return [Line(tuple(without_leaders(_from_left(words)))) for _, words in lines]


def _from_left(words: list[_Placed]) -> list[Word]:
    return [placed.word for placed in sorted(words, key=lambda placed: (placed.box.x1, placed.stored))]


def _height(placed: _Placed, typical: float) -> float:
    """The height of a word; of an initial over several lines, that of a line, so that it belongs to the first of them."""
    height = placed.box.y2 - placed.box.y1
    return typical if height > 2 * typical else height
