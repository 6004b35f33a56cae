"""Renders a row as text for the terminal."""

import re
import shutil
from collections.abc import Iterator
from itertools import groupby

from mm1_hf.inspection.rows import InspectedRow, Position, Reading
from mm1_hf.reporting.printable import printable


_STYLES = {
    "heading": "1",
    "quiet": "2",
    "learned": "30;42",
    "image": "36",
    "indicator": "35",
    "padding": "2",
    "text": "",
    "wrong": "97;41",
    "warning": "31",
}


def render(row: InspectedRow, *, colour: bool) -> str:
    """
    Renders a row as text.

    Args:
        row: the row to show.
        colour: whether to use ANSI colours. Without them, the targets of each line are marked by ⟦ and ⟧.
    """
    sections = [_heading(row, colour)]
    if row.images:
        sections.append("\n".join(_images(row, colour)))
    for reading in row.readings:
        sections.append("\n".join(_reading(row, reading, colour)))
    return "\n\n".join(sections)


def _heading(row: InspectedRow, colour: bool) -> str:
    placeholders = len(row.tiles) * row.tokens_per_tile
    return (
        f"{_styled(row.title, 'heading', colour)}\n"
        f"{_number(len(row.segments), 'example')}{_branches(row)}, {_number(len(row.images), 'image')} as "
        f"{_number(len(row.tiles), 'tile')} of {row.tokens_per_tile} placeholders, {placeholders:,} in all"
    )


def _branches(row: InspectedRow) -> str:
    branches = row.readings[0].branches
    return f" with {branches:,} branches" if branches else ""


def _number(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _images(row: InspectedRow, colour: bool) -> Iterator[str]:
    yield _styled("images", "heading", colour)
    for index, image in enumerate(row.images):
        layout = image.layout
        where = [
            place
            for place, position in enumerate(row.readings[0].positions)
            if position.tile is not None and row.tiles[position.tile].image == index
        ]
        yield (
            f"  {index}  {image.height} x {image.width} pixels, scaled to {layout.resized_height} x {layout.resized_width} "
            f"in {layout.rows} x {layout.cols} tiles{' and an overview' if layout.overview else ''}; "
            f"positions {where[0]:,} to {where[-1]:,}"
        )
        if layout.num_tiles > 1:
            cells = [f"{tile.row},{tile.col}" for tile in row.tiles if tile.image == index and tile.row]
            for number in range(layout.rows):
                in_row = cells[number * layout.cols : (number + 1) * layout.cols]
                yield "       " + _styled("|" + "|".join(f" {cell:^4} " for cell in in_row) + "|", "image", colour)


def _reading(row: InspectedRow, reading: Reading, colour: bool) -> Iterator[str]:
    learned = sum(place.learned for place in reading.positions)
    length = len(reading.positions)
    kinds = ", ".join(
        f"{number:,} {name}"
        for name, number in (
            ("of images", reading.count("image")),
            ("of indicators", reading.count("indicator")),
            ("of text", reading.count("text")),
            ("of padding", reading.count("padding")),
        )
        if number
    )
    yield _styled(f"labels of {reading.name}", "heading", colour)
    yield f"  {length:,} positions: {kinds}; {learned:,} targets ({learned / length:.1%})"
    for warning in reading.warnings:
        yield f"  ! {_styled(warning, 'warning', colour)}"
    flow = _Flow(colour)
    segment = example = 0
    for run in reading.runs():
        if run[0].segment != segment:
            segment = run[0].segment
            example = max(segment, example)
            flow.break_line()
            if segment < 0:
                flow.add(f"example {example}, branch {-segment}", "quiet")
            elif segment and len(row.segments) > 1:
                flow.add(f"example {segment}: {row.segments[segment - 1]}", "quiet")
            flow.break_line()
        flow.add(*_run(row, run))
    yield from flow.lines()


def _run(row: InspectedRow, run: list[Position]) -> tuple[str, str, bool]:
    """The text and the style of a run of positions, and whether lines may break inside it."""
    kind = run[0].kind
    style = kind if not run[0].learned else "learned" if kind == "text" else "wrong"
    if kind == "image" and run[0].tile is not None:
        tile = row.tiles[run[0].tile]
        return f"<image {tile.image}: {tile.name} x{len(run)}>", style, False
    if kind == "padding":
        return f"<{len(run):,} of padding>", style, False
    return "".join(place.text for place in run), style, kind == "text"


def _styled(text: str, style: str, colour: bool) -> str:
    text = printable(text)
    if not colour:
        return f"⟦{text}⟧" if style in ("learned", "wrong") else text
    code = _STYLES[style]
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


class _Flow:
    """Wraps text of several styles into lines that fit the terminal."""

    def __init__(self, colour: bool):
        self.colour = colour
        self.width = max(shutil.get_terminal_size().columns, 40) - 2
        self.rows: list[list[tuple[str, str]]] = [[]]
        self.used = 0

    def break_line(self) -> None:
        if self.rows[-1]:
            self.rows.append([])
        self.used = 0

    def add(self, text: str, style: str, breakable: bool = True) -> None:
        text = printable(text, keep="\n")
        for word in re.findall(r"\n|[^\S\n]+|\S+", text) if breakable else [text]:
            if word == "\n":
                self.rows.append([])
                self.used = 0
                continue
            if self.used and self.used + len(word) > self.width:
                self.break_line()
                if not word.strip():
                    continue
            self.rows[-1].append((word, style))
            self.used += len(word)

    def lines(self) -> Iterator[str]:
        while self.rows and not self.rows[-1]:
            self.rows.pop()
        for row in self.rows:
            pieces = []
            for style, words in groupby(row, lambda piece: piece[1]):
                pieces.append(_styled("".join(word for word, _ in words), style, self.colour))
            yield f"  {''.join(pieces)}"
