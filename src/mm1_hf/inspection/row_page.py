"""Writes a row as one self-contained HTML page."""

from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path

from mm1_hf.inspection.rows import InspectedRow, Position, Reading, Tile
from mm1_hf.reporting.page import data_uri, write_html
from mm1_hf.reporting.printable import printable


# One hue for each example of a row, so that neighbours have different colours.
_HUES = (210, 30, 150, 285, 60, 345, 180, 120)


def write_page(path: Path, row: InspectedRow) -> None:
    """
    Writes a row as one self-contained HTML page.

    Args:
        path: where to write the HTML file; missing folders are created.
        row: the row to show.
    """
    title = printable(row.title)
    sections = [f"<h1>{escape(title)}</h1>\n{_summary(row)}"]
    if row.images:
        sections.append(f"<h2>What the encoder sees</h2>\n{_images(row)}")
    sections += [_reading(row, reading) for reading in row.readings]
    write_html(path, title, sections, _STYLE)


def _summary(row: InspectedRow) -> str:
    lengths = [len(reading.positions) for reading in row.readings]
    facts = {
        "positions": f"{lengths[0]:,}",
        "examples": f"{len(row.segments):,}",
        **({"branches": f"{row.readings[0].branches:,}"} if row.readings[0].branches else {}),
        "images": f"{len(row.images):,}",
        "tiles": f"{len(row.tiles):,}",
        "placeholders per tile": f"{row.tokens_per_tile:,}",
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{cells}</dl>'


def _images(row: InspectedRow) -> str:
    figures = []
    for index, image in enumerate(row.images):
        layout = image.layout
        tiles = [(number, tile) for number, tile in enumerate(row.tiles) if tile.image == index]
        grid = "".join(_tile(row, number, tile) for number, tile in tiles if tile.row)
        overview = "".join(_tile(row, number, tile) for number, tile in tiles if not tile.row)
        if overview:
            overview = f'<div class="overview">{overview}<p>overview</p></div>'
        caption = (
            f"<b>image {index}</b> &middot; {image.height} &times; {image.width} pixels, scaled to "
            f"{layout.resized_height} &times; {layout.resized_width} in a grid of {layout.rows} &times; {layout.cols}"
        )
        figures.append(
            f'<figure class="{"split" if overview else "whole"}"><figcaption>{caption}</figcaption><div class="tiles">'
            f'<div class="grid" style="--cols:{layout.cols}">{grid}</div>{overview}</div></figure>'
        )
    return f'<div class="figures">{chr(10).join(figures)}</div>'


def _tile(row: InspectedRow, number: int, tile: Tile) -> str:
    places = [index for index, place in enumerate(row.readings[0].positions) if place.tile == number]
    return (
        f'<div class="tile"><img src="{data_uri(tile.picture)}" alt="tile {tile.name} of image {tile.image}">'
        f'<span class="where">{tile.name}</span><span class="places">{places[0]:,}&ndash;{places[-1]:,}</span></div>'
    )


def _reading(row: InspectedRow, reading: Reading) -> str:
    positions = reading.positions
    learned = sum(place.learned for place in positions)
    warnings = "".join(f'<p class="warning">{escape(printable(warning))}</p>' for warning in reading.warnings)
    blocks = []
    start = example = 0
    for segment, members in groupby(positions, lambda place: place.segment):
        block = list(members)
        example = max(segment, example)
        blocks.append(_segment(row, segment, example, block, start))
        start += len(block)
    return (
        f"<h2>Labels of {escape(reading.name)}</h2>\n"
        f"<p>{learned:,} of {len(positions):,} positions are targets ({learned / len(positions):.1%}).</p>\n{warnings}"
        f'<p class="legend"><span class="t learned">target</span><span class="t">context</span>'
        f'<span class="t image">placeholders</span><span class="t indicator">indicator</span>'
        f'<span class="t wrong">target by mistake</span></p>\n{_strip(row, positions)}\n{"".join(blocks)}'
    )


def _strip(row: InspectedRow, positions: tuple[Position, ...]) -> str:
    """Two bars that show the whole row: the examples in their hues, and below them the kinds of positions."""
    bars = []
    for lane, likeness in (
        ("examples", lambda place: ("segment", place.segment)),
        ("kinds", lambda place: (_class(place), place.tile)),
    ):
        pieces = []
        for (name, value), members in groupby(positions, likeness):
            hue = f"--hue:{_hue(value)};" if name == "segment" and value else ""
            shade = "padding" if name == "segment" and not value else name
            pieces.append(f'<span class="{shade}" style="{hue}flex-grow:{sum(1 for _ in members)}"></span>')
        bars.append(f'<div class="strip {lane}">{"".join(pieces)}</div>')
    return "".join(bars)


def _hue(segment: int) -> int:
    return _HUES[(segment - 1) % len(_HUES)]


def _class(place: Position) -> str:
    if place.learned:
        return "learned" if place.kind == "text" else "wrong"
    return place.kind


def _segment(row: InspectedRow, segment: int, example: int, block: list[Position], start: int) -> str:
    if not segment:
        learned = sum(place.learned for place in block)
        return f'<p class="padding{" wrong" if learned else ""}">{len(block):,} positions of padding</p>'
    name = ""
    if segment < 0:
        name = f"<h3>example {example} &middot; branch {-segment}</h3>"
    elif len(row.segments) > 1:
        name = f"<h3>example {segment} &middot; {escape(printable(row.segments[segment - 1]))}</h3>"
    return (
        f'<div class="segment" style="--hue:{_hue(segment)}">{name}<div class="tokens">'
        f"{''.join(_tokens(row, block, start))}</div></div>"
    )


def _tokens(row: InspectedRow, block: list[Position], start: int) -> Iterator[str]:
    index = start
    for tile, members in groupby(block, lambda place: place.tile):
        places = list(members)
        if tile is not None:
            shown = row.tiles[tile]
            learned = sum(place.learned for place in places)
            yield (
                f'<span class="t {"wrong" if learned else "image"}" title="positions {index} to {index + len(places) - 1}">'
                f'<img src="{data_uri(shown.picture.resize((24, 24)))}" alt="">image {shown.image}, {shown.name} '
                f"&times; {len(places)}</span>"
            )
        else:
            yield from (_token(place, index + offset) for offset, place in enumerate(places))
        index += len(places)


def _token(place: Position, index: int) -> str:
    text = escape(printable(place.text, keep="\n")).replace("\n", '<i class="newline">&#8629;</i>\n') or "&empty;"
    target = f"label {place.label}" if place.learned else "not a target"
    title = f"position {index}, token {place.token_id}, {target}"
    return f'<span class="t {_class(place)}" title="{title}">{text}</span>'


_STYLE = """\
:root { --learned: #bfe8cd; --image: #cfe0fa; --indicator: #e7d6f5; --wrong: #b3372f; --tint: 94%; --edge: 48%; }
@media (prefers-color-scheme: dark) {
  :root { --learned: #1f5b38; --image: #27456f; --indicator: #4d3566; --wrong: #c8453b; --tint: 14%; --edge: 60%; } }
main { max-width: 72rem; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h3 { font-size: 0.85rem; font-weight: 600; color: var(--muted); margin: 0 0 0.4rem; overflow-wrap: anywhere; }
p { margin: 0 0 0.8rem; }
.facts { display: flex; flex-wrap: wrap; gap: 0.5rem 2.25rem; margin: 0; }
.facts dt { color: var(--muted); font-size: 0.85rem; }
.facts dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.figures { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1.5rem; }
figure { flex: 1 0 100%; min-width: 0; }
.whole { flex: 0 1 11rem; } .whole figcaption { font-size: 0.85rem; }
figcaption { margin-bottom: 0.5rem; color: var(--muted); }
figcaption b { color: var(--text); }
.tiles { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1.5rem; }
.grid { display: grid; grid-template-columns: repeat(var(--cols), minmax(4rem, 11rem)); gap: 5px; max-width: 100%;
  overflow-x: auto; }
.overview { width: 11rem; }
.overview p { color: var(--muted); font-size: 0.85rem; margin: 0.25rem 0 0; }
.tile { position: relative; line-height: 0; }
.tile img { width: 100%; height: auto; border: 1px solid var(--line); image-rendering: pixelated; }
.tile span { position: absolute; padding: 0 0.35em; border-radius: 3px; font-size: 0.72rem; line-height: 1.5;
  background: #000a; color: #fff; font-variant-numeric: tabular-nums; }
.tile .where { top: 4px; left: 4px; } .tile .places { bottom: 4px; right: 4px; }
.overview .where { display: none; }
.warning { display: inline-block; margin: 0 0.5rem 0.8rem 0; padding: 0.2rem 0.7rem; border-radius: 4px;
  background: var(--wrong); color: #fff; }
.legend { display: flex; flex-wrap: wrap; gap: 0.4rem 0.6rem; font-size: 0.85rem; }
.strip { display: flex; height: 10px; margin-bottom: 3px; background: var(--panel); border-radius: 2px; overflow: hidden; }
.strip span { flex-basis: 0; min-width: 0; }
.strip .segment { background: hsl(var(--hue) 55% var(--edge)); }
.strip .text { background: var(--line); } .strip .learned { background: #2f9e5c; } .strip .image { background: #4f83d6; }
.strip .indicator { background: #9b63c9; } .strip .wrong { background: var(--wrong); }
.strip.kinds { margin-bottom: 1.2rem; }
div.segment { border-left: 4px solid hsl(var(--hue) 55% var(--edge)); background: hsl(var(--hue) 45% var(--tint));
  padding: 0.7rem 0.9rem; margin-bottom: 0.6rem; border-radius: 0 4px 4px 0; }
.tokens { font: 0.86rem/2 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.t { padding: 0.1em 0; border-radius: 2px; box-shadow: inset -1px 0 0 #8883; }
.legend .t { padding: 0.15em 0.5em; box-shadow: none; border: 1px solid var(--line); }
.t.learned { background: var(--learned); } .t.indicator { background: var(--indicator); }
.t.image { background: var(--image); } .t.wrong { background: var(--wrong); color: #fff; }
.tokens .t.image, .tokens .t.wrong:has(img) { padding: 0.15em 0.5em 0.15em 0.2em; margin: 0 2px; border-radius: 4px;
  box-shadow: none; white-space: nowrap; }
.t img { width: 1.5em; height: 1.5em; vertical-align: middle; margin-right: 0.4em; border-radius: 2px; }
.newline { font-style: normal; opacity: 0.45; }
p.padding { color: var(--muted); } p.padding.wrong { color: var(--wrong); }"""
