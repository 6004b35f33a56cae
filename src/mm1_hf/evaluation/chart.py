"""The chart of a report: scores over numbers of demonstrations, as SVG inside of the page, in the page's own colours."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mm1_hf.evaluation.table import percent
from mm1_hf.reporting.printable import printable


_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 150, 14, 40
_COLOURS = 8
_LABEL_HEIGHT = 15


def shots_chart(scores: Sequence[Mapping[str, Any]]) -> str:
    """
    A line for each task that was measured with several numbers of demonstrations. Bars are one standard error over
    questions. Tasks in points are left out, because they have another scale.

    Args:
        scores: the entries of `scores` in the results.

    Returns:
        HTML, or an empty text if there is no such task.
    """
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for score in scores:
        if score["unit"] == "fraction":
            error = score["standard_error"]
            error = 0.0 if error is None or math.isnan(error) else error
            lines.setdefault(score["task"], []).append(
                (score["shots"], percent(score["score"], "fraction"), 100 * error)
            )
    lines = {name: sorted(points) for name, points in lines.items() if len(points) > 1}
    if not lines:
        return ""
    shots = sorted({shots for points in lines.values() for shots, _, _ in points})
    top = _ceiling(max(value + error for points in lines.values() for _, value, error in points))
    pieces = _axes(shots, top)
    labels = _spaced({name: _height(points[-1][1], top) for name, points in lines.items()})
    for number, (name, points) in enumerate(lines.items()):
        colour = f"var(--c{number % _COLOURS})"
        # The second turn through the colours is dashed.
        dash = ' stroke-dasharray="6 4"' if number >= _COLOURS else ""
        path = " ".join(f"{_place(each, shots):.1f},{_height(value, top):.1f}" for each, value, _ in points)
        pieces.append(f'<polyline class="line" points="{path}" stroke="{colour}"{dash}/>')
        for each, value, error in points:
            x = _place(each, shots)
            low, high = _height(max(value - error, 0), top), _height(value + error, top)
            pieces.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
            pieces.append(
                f'<circle cx="{x:.1f}" cy="{_height(value, top):.1f}" r="3.5" fill="{colour}">'
                f"<title>{_text(name)}, {each} shots: {value:.2f} ± {error:.2f}</title></circle>"
            )
        pieces.append(
            f'<text x="{_WIDTH - _RIGHT + 12}" y="{labels[name] + 4:.1f}" style="fill:{colour}">{_text(name[:20])}</text>'
        )
    body = "\n".join(pieces)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Score by shots">\n{body}\n</svg>'
    )


def _text(text: str) -> str:
    return escape(printable(text))


def _ceiling(value: float) -> float:
    """The next round number, of one leading figure: 1, 2, 4, 5, 8 or 10 times a power of ten."""
    power = 10 ** math.floor(math.log10(value)) if value > 0 else 1
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value)


def _place(shots: int, all_shots: Sequence[int]) -> float:
    # Evenly spaced: 0, 4, 8 and 16 shots are compared, not extrapolated.
    return _LEFT + 16 + all_shots.index(shots) * (_WIDTH - _LEFT - _RIGHT - 32) / max(1, len(all_shots) - 1)


def _height(value: float, top: float) -> float:
    return _TOP + (1 - value / top) * (_HEIGHT - _TOP - _BOTTOM)


def _axes(shots: Sequence[int], top: float) -> list[str]:
    pieces = []
    for part in range(5):
        value = top * part / 4
        y = _height(value, top)
        pieces.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        pieces.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for each in shots:
        pieces.append(
            f'<text x="{_place(each, shots):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{each}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    pieces.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 4}" text-anchor="middle">demonstrations</text>')
    return pieces


def _spaced(heights: Mapping[str, float]) -> dict[str, float]:
    """The heights of labels, moved apart where they would overlap."""
    placed: dict[str, float] = {}
    lowest = -math.inf
    for name, height in sorted(heights.items(), key=lambda each: each[1]):
        lowest = max(height, lowest + _LABEL_HEIGHT)
        placed[name] = lowest
    return placed
