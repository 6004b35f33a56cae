"""Draws charts and tables of known numbers, with questions about them: bars, lines, pies, scattered points and tables."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib import rc_context, rcdefaults
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from PIL import Image

from mm1_hf.corpus.pages.drawn_tables import draw_table_page
from mm1_hf.corpus.pages.fonts import FontFile
from mm1_hf.corpus.pages.number_tables import NumberTable, Question, draw_shares, draw_table
from mm1_hf.corpus.pages.page import Page
from mm1_hf.corpus.pages.paper import luminance
from mm1_hf.corpus.pages.pdf_process import png


KINDS = ("bars", "lines", "pie", "points", "table")
_PALETTES = (
    ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"),
    ("#0077bb", "#ee7733", "#009988", "#cc3311", "#33bbee", "#bbbbbb"),
    ("#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99"),
    ("#222222", "#777777", "#aaaaaa", "#444444", "#999999", "#cccccc"),
)
_LETTERS = "ABCDEFGHIJ"
_DOTS_PER_INCH = 100


@dataclass(frozen=True)
class DrawnFigure:
    """
    A chart or a table.

    Args:
        page: its picture. The lines of a drawn table have their places; a chart has none.
        text: its title and numbers, as a table in Markdown.
        questions: questions about it.
    """

    page: Page
    text: str
    questions: list[Question]


def draw_figure(index: int, fonts: Sequence[FontFile], seed: int, longest_side: int = 1344) -> DrawnFigure:
    """
    One of an endless row of charts and tables.

    Args:
        index: its number. The figure depends on this and the seed alone.
        fonts: fonts to choose from.
        seed: seed of the figures.
        longest_side: the longer side of the largest pictures, in pixels.
    """
    draw = random.Random(f"{seed} figure {index}")
    kind = draw.choice(KINDS)
    name = f"figures/{index}"
    font = draw.choice(fonts)
    if kind == "table":
        table = draw_table(draw, rows=(3, 10), columns=(2, 5), parts=10)
        page = draw_table_page(table, name, font, draw, longest_side)
        return DrawnFigure(page, table.text(), table.questions(draw))
    labelled = draw.random() < 0.5
    if kind == "pie":
        table = draw_shares(draw)
    elif kind == "points":
        table = _points(draw)
    else:
        # What is not written beside a mark has to be read off the axis. Numbers beside several lines would cover each other.
        columns = (1, 1) if labelled and kind == "lines" else (1, 3)
        table = draw_table(draw, rows=(3, 8), columns=columns, parts=10 if labelled else 2)
    page = _chart(kind, table, name, font, labelled, draw, longest_side)
    return DrawnFigure(page, table.text(), table.questions(draw))


def _points(draw: random.Random) -> NumberTable:
    number, tick = draw.randint(4, len(_LETTERS)), draw.choice((2, 10, 20, 100))
    # Far enough apart that no letter covers another.
    cells = draw.sample([(column, row) for column in range(1, 9) for row in range(1, 9)], number)
    values = tuple(
        ((2 * column - draw.randint(0, 1)) * tick // 2, (2 * row - draw.randint(0, 1)) * tick // 2)
        for column, row in cells
    )
    return NumberTable("Points", "x and y", "point", "points", tuple(_LETTERS[:number]), ("x", "y"), values, tick)


def _chart(
    kind: str, table: NumberTable, name: str, font: FontFile, labelled: bool, draw: random.Random, longest_side: int
) -> Page:
    width = round(longest_side * draw.uniform(0.5, 1.0))
    height = round(width * draw.uniform(0.6, 0.9))
    # The user's own settings of matplotlib would change the pictures.
    with rc_context():
        rcdefaults()
        figure = Figure(figsize=(width / _DOTS_PER_INCH, height / _DOTS_PER_INCH), dpi=_DOTS_PER_INCH, layout="tight")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_prop_cycle(color=draw.choice(_PALETTES))
        axes.set_title(table.title)
        _CHARTS[kind](axes, table, labelled, draw)
        if kind in ("bars", "lines") and len(table.columns) > 1:
            axes.legend()
        size = width / 60
        for text in figure.findobj(Text):
            text.set_fontproperties(FontProperties(fname=font.path, size=size * (1.2 if text is axes.title else 1.0)))
        canvas.draw()
        picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
        picture = picture.convert("RGB")
    return Page(name, png(picture), picture.height, picture.width, ())


def _bars(axes: Axes, table: NumberTable, labelled: bool, draw: random.Random) -> None:
    lying = draw.random() < 0.4
    thickness = 0.8 / len(table.columns)
    places = range(len(table.rows))
    for index, column in enumerate(table.columns):
        numbers = [row[index] for row in table.values]
        own = [place + (index - (len(table.columns) - 1) / 2) * thickness for place in places]
        bars = (axes.barh if lying else axes.bar)(own, numbers, thickness, label=column)
        if labelled:
            axes.bar_label(bars, padding=2)
    if lying:
        axes.set_yticks(places, table.rows)
        axes.invert_yaxis()
    else:
        axes.set_xticks(places, table.rows)
    _scale(axes, table, draw, lying)


def _lines(axes: Axes, table: NumberTable, labelled: bool, draw: random.Random) -> None:
    marker = draw.choice(("o", "s", "^", "D"))
    for index, column in enumerate(table.columns):
        numbers = [row[index] for row in table.values]
        axes.plot(range(len(numbers)), numbers, marker=marker, label=column)
        if labelled:
            for place, number in enumerate(numbers):
                axes.annotate(str(number), (place, number), (0, 6), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(table.rows)), table.rows)
    _scale(axes, table, draw, lying=False)


def _pie(axes: Axes, table: NumberTable, labelled: bool, draw: random.Random) -> None:
    shares = [row[0] for row in table.values]
    # Shares cannot be read off a pie, so they are always written.
    wedges, _, written = axes.pie(shares, labels=table.rows, autopct="%d%%", startangle=draw.choice((0, 45, 90)))
    for wedge, text in zip(wedges, written, strict=True):
        red, green, blue, _ = wedge.get_facecolor()
        text.set_color(
            "white" if luminance((round(255 * red), round(255 * green), round(255 * blue))) < 0.2 else "black"
        )


def _scattered(axes: Axes, table: NumberTable, labelled: bool, draw: random.Random) -> None:
    axes.scatter([x for x, _ in table.values], [y for _, y in table.values], marker=draw.choice(("o", "s", "^", "D")))
    for row, (x, y) in zip(table.rows, table.values, strict=True):
        axes.annotate(row, (x, y), (6, 6), textcoords="offset points")
    axes.set_xlabel(table.columns[0])
    axes.set_ylabel(table.columns[1])
    _scale(axes, table, draw, lying=True)
    _scale(axes, table, draw, lying=False)


_CHARTS: dict[str, Callable[[Axes, NumberTable, bool, random.Random], None]] = {
    "bars": _bars,
    "lines": _lines,
    "pie": _pie,
    "points": _scattered,
}


def _scale(axes: Axes, table: NumberTable, draw: random.Random, lying: bool) -> None:
    """The axis of the numbers: from 0, with a mark at every tick."""
    end = max(max(row) for row in table.values) // table.tick + 2
    marks = [table.tick * step for step in range(end)]
    (axes.set_xticks if lying else axes.set_yticks)(marks)
    (axes.set_xlim if lying else axes.set_ylim)(0, marks[-1])
    if draw.random() < 0.6:
        axes.grid(True, axis="x" if lying else "y", alpha=0.5)
        axes.set_axisbelow(True)
