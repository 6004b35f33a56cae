"""A row in the terminal."""

import shutil
import textwrap
from collections.abc import Iterator

from mm1_hf.inspection.rows import InspectedRow, Position, Reading


_STYLES = {
    "heading": "1",
    "quiet": "2",
    "learned": "30;42",
    "image": "36",
    "indicator": "35",
    "padding": "2",
    "text": "",
    "wrong": "97;41",
}

# What a data set writes must not steer the terminal.
_CONTROL = {code: chr(0x2400 + code) for code in range(32) if code != 10} | {127: "\u2421"}


def render(row: InspectedRow, *, colour: bool) -> str:
    """
    The row as text.

    Args:
        row: what is shown.
        colour: with ANSI colours. Without them what is learned stands between ⟦ and ⟧.
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
        f"{_number(len(row.segments), 'example')}, {_number(len(row.images), 'image')} as "
        f"{_number(len(row.tiles), 'tile')} of {row.tokens_per_tile} placeholders, {placeholders:,} in all"
    )


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
    yield f"  {length:,} positions: {kinds}; {learned:,} learned ({learned / length:.1%})"
    for warning in reading.warnings:
        yield "  " + _styled(f"! {warning}", "wrong", colour)
    segment = 0
    text = ""
    for run in reading.runs():
        if run[0].segment != segment:
            yield from _flow(text)
            segment, text = run[0].segment, ""
            if segment and len(row.segments) > 1:
                yield _styled(f"  example {segment}: {row.segments[segment - 1]}", "quiet", colour)
        text += _run(row, run, colour)
    yield from _flow(text)


def _run(row: InspectedRow, run: list[Position], colour: bool) -> str:
    kind = run[0].kind
    text = "".join(place.text for place in run).translate(_CONTROL)
    if kind == "image" and run[0].tile is not None:
        tile = row.tiles[run[0].tile]
        text = f"<image {tile.image}: {tile.name} x{len(run)}>"
    elif kind == "padding":
        text = f"<{len(run):,} of padding>"
    if not run[0].learned:
        return _styled(text, kind, colour)
    style = "learned" if kind == "text" else "wrong"
    return _styled(text, style, colour) if colour else f"⟦{text}⟧"


def _styled(text: str, style: str, colour: bool) -> str:
    code = _STYLES[style]
    if not colour or not code:
        return text
    # Line by line, so that a colour ends with its line.
    return "\n".join(f"\x1b[{code}m{line}\x1b[0m" if line else "" for line in text.split("\n"))


def _flow(text: str) -> Iterator[str]:
    for line in text.split("\n") if text else ():
        # Escapes have a width of their own to textwrap; lines come out shorter, never longer.
        width = max(shutil.get_terminal_size().columns, 40)
        yield from textwrap.wrap(
            line,
            width,
            initial_indent="  ",
            subsequent_indent="  ",
            drop_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
