"""Writes the report of an evaluation as one self-contained HTML page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.evaluation.cells import Cell, EvaluationSettings
from mm1_hf.evaluation.chart import shots_chart
from mm1_hf.evaluation.requests import Request, Turn
from mm1_hf.evaluation.table import HEADINGS, Row, cells_of, shown
from mm1_hf.reporting.page import data_uri, write_html
from mm1_hf.reporting.printable import printable


# Answers that are shown, over all parts of the run, and bytes that their images may take: a page of more is slow to open.
_CARDS = 160
_IMAGE_BYTES = 8_000_000
_QUERY_PIXELS, _SHOT_PIXELS = 256, 132
_TEXT_LENGTH = 1500
_VERDICTS = {
    "right": "right",
    "partly": "partly right",
    "wrong": "wrong",
    "error": "no answer",
    "none": "no reference",
}

Parts = Sequence[tuple[Cell, Sequence[Row]]]


def write_report(path: Path, results: Mapping[str, Any], parts: Parts, settings: EvaluationSettings) -> None:
    """
    Writes the report: scores by task and shots, a chart, the papers' figures, and answers with their prompts and images.

    Args:
        path: where to write the page.
        results: what `results.json` holds.
        parts: for each task and number of shots, the first trial and its answers.
        settings: settings of the run.
    """
    sections = [f"<h1>{_text(_model_name(results))}</h1>\n{_scores(results)}"]
    if chart := shots_chart(results["scores"]):
        sections.append(f"<h2>Score by number of demonstrations</h2>\n{chart}")
    if published := _published(results):
        sections.append(f"<h2>The papers' models beside it</h2>\n{published}")
    if details := _details(results["scores"]):
        sections.append(f"<h2>All scores</h2>\n{details}")
    cards, left_out = _cards(parts, settings)
    sections.append(f"<h2>Answers</h2>\n{_gallery(cards, left_out, parts)}")
    sections.append(f"<h2>This run</h2>\n{_record(results)}")
    write_html(path, printable(f"Evaluation of {_model_name(results)}"), sections, _STYLE)


def _model_name(results: Mapping[str, Any]) -> str:
    return str(results["model"].get("name") or results["model"].get("class") or "A model")


def _text(text: str, limit: int = _TEXT_LENGTH) -> str:
    """Text of data as HTML: escaped, without characters that hide or reorder it, and cut if it is very long."""
    cut = text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"
    return escape(printable(cut, keep="\n\t"))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], name: str = "") -> str:
    head = "".join(f'<th scope="col">{_text(each)}</th>' for each in headings)
    body = "\n".join(
        f'<tr><th scope="row">{_text(first)}</th>{"".join(f"<td>{_text(each)}</td>" for each in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table class="{name}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _scores(results: Mapping[str, Any]) -> str:
    table = _table(HEADINGS, [cells_of(score) for score in results["scores"]])
    notes = [
        "Scores are in per cent where they are shares. ± is the standard error: over questions, and over trials with other "
        "demonstrations. A question without an answer is wrong and counts in n; one without a reference does not count."
    ]
    if results["averages"]:
        averages = ", ".join(f"{name} {value:.1f}" for name, value in results["averages"].items())
        notes.append(f"Averages of MM1.5's groups: {averages}.")
    return table + "".join(f'\n<p class="note">{_text(note)}</p>' for note in notes)


def _published(results: Mapping[str, Any]) -> str:
    """The papers' rows for the tasks of this run that were measured in the same style with as many shots."""
    published = json.loads((files("mm1_hf.evaluation") / "published.json").read_text(encoding="utf-8"))
    pieces = []
    for table in published["tables"]:
        mine = {
            score["task"]: shown(score["score"], score["unit"])
            for score in results["scores"]
            if score["shots"] == table["shots"] and results["tasks"][score["task"]]["style"] == table["style"]
        }
        places = [place for place, task in enumerate(table["tasks"]) if task in mine]
        if not places:
            continue
        tasks = [table["tasks"][place] for place in places]
        rows = [[name, *(f"{values[place]:.1f}" for place in places)] for name, values in table["rows"].items()]
        rows.append(["this model", *(mine[task] for task in tasks)])
        pieces.append(
            f"<h3>{_text(table['source'])}, {table['shots']} shots</h3>\n{_table(['model', *tasks], rows, 'published')}"
        )
    return "\n".join([*pieces, f'<p class="note">{_text(published["note"])}</p>']) if pieces else ""


def _details(scores: Sequence[Mapping[str, Any]]) -> str:
    """All scores of the tasks that have more than one, such as those of categories."""
    pieces = []
    for score in scores:
        if len(score.get("all", {})) < 2:
            continue
        rows = [[name, f"{value:.4g}"] for name, value in score["all"].items()]
        title = f"{score['task']}, {score['shots']} shots"
        pieces.append(f"<details><summary>{_text(title)}</summary>\n{_table(['score', 'value'], rows)}</details>")
    return "\n".join(pieces)


def _verdict(row: Row) -> str:
    if row.error is not None:
        return "error"
    if row.score is None:
        return "none"
    return "wrong" if row.score <= 0 else "right" if row.score >= 1 else "partly"


def _chosen(rows: Sequence[Row], number: int) -> list[Row]:
    """Rows of every verdict, spread evenly over the questions."""
    by_verdict: dict[str, list[Row]] = {}
    for row in rows:
        by_verdict.setdefault(_verdict(row), []).append(row)
    each = max(1, number // len(by_verdict))
    chosen = [row for group in by_verdict.values() for row in _spread(group, each)]
    taken = {row.index for row in chosen}
    rest = _spread([row for row in rows if row.index not in taken], number - len(chosen))
    return sorted([*chosen, *rest], key=lambda row: row.index)


def _spread(rows: Sequence[Row], number: int) -> list[Row]:
    count = max(0, min(number, len(rows)))
    return [rows[place * len(rows) // count] for place in range(count)]


def _cards(parts: Parts, settings: EvaluationSettings) -> tuple[list[str], int]:
    """The cards, and how many of the chosen answers are left out because their images would make the page too large."""
    number = max(4, _CARDS // len(parts))
    waiting = [[(cell, row) for row in _chosen(rows, number)] for cell, rows in parts]
    cards: list[list[str]] = [[] for _ in parts]
    left_out, size = 0, 0
    # In turn from all parts, so that each of them has some.
    for turn in range(max(map(len, waiting))):
        for place, chosen in enumerate(waiting):
            if turn >= len(chosen):
                continue
            if size > _IMAGE_BYTES:
                left_out += 1
                continue
            card = _card(*chosen[turn], settings)
            size += len(card)
            cards[place].append(card)
    return [card for part in cards for card in part], left_out


def _card(cell: Cell, row: Row, settings: EvaluationSettings) -> str:
    sample = cell.subject.samples[row.index]
    prompt = ""
    if sample.error is None:
        requests, _ = cell.ask(sample, settings)
        prompt = "".join(_prompt(request, len(sample.images), row.shots) for request in requests)
    verdict = _verdict(row)
    facts = [("answer", row.answer or ", ".join(f"{value:.3f}" for value in row.log_likelihoods) or "(empty)")]
    if row.error is not None:
        facts = [("no answer", row.error)]
    if row.references is not None:
        facts.append(("reference", _references(row.references)))
    if row.score is not None:
        facts.append(("score", f"{row.score:.3g}"))
    lines = "".join(f"<dt>{name}</dt><dd>{_text(text)}</dd>" for name, text in facts)
    task = f"{row.task}, {row.shots} shots"
    return (
        f'<article class="card" data-task="{_text(task)}" data-verdict="{verdict}">'
        f'<header>{_text(task)} · {_text(row.id, 80)} <span class="verdict {verdict}">{_VERDICTS[verdict]}</span></header>'
        f'<div class="prompt">{prompt}</div><dl>{lines}</dl></article>'
    )


def _references(references: Any) -> str:
    if isinstance(references, list | tuple) and all(isinstance(each, str) for each in references):
        return " | ".join(dict.fromkeys(references))
    return str(references)


def _prompt(request: Request, query_images: int, shots: int) -> str:
    """The prompt with its images in their places. What comes before the query is folded up."""
    first_of_query = len(request.images) - query_images
    place, start = 0, None
    pieces = []
    for each in request.prompt:
        parts = each.parts if isinstance(each, Turn) else (each,)
        if isinstance(each, Turn):
            start = len(pieces)
            pieces.append(f'<span class="role">{each.role}</span>')
        for part in parts:
            if isinstance(part, ImagePart):
                if place == first_of_query and not isinstance(each, Turn):
                    start = len(pieces)
                pieces.append(_picture(part, _QUERY_PIXELS if place >= first_of_query else _SHOT_PIXELS))
                place += 1
            else:
                pieces.append(f"<span>{_text(part)}</span>")
    if not shots or not start:
        return "".join(pieces)
    shown = "1 demonstration" if shots == 1 else f"{shots} demonstrations"
    return f"<details><summary>{shown}</summary>{''.join(pieces[:start])}</details>{''.join(pieces[start:])}"


def _picture(part: ImagePart, side: int) -> str:
    try:
        image = part.load().convert("RGB")
    except Unusable as error:
        return f'<span class="broken">({_text(str(error), 200)})</span>'
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return f'<img src="{data_uri(image)}" alt="image of the prompt" loading="lazy">'


def _gallery(cards: Sequence[str], left_out: int, parts: Parts) -> str:
    total = sum(len(rows) for _, rows in parts)
    note = (
        f"{len(cards):,} of {total:,} answers of the first trial, spread evenly over the verdicts and the questions."
    )
    if left_out:
        note += f" {left_out} more are left out to keep the page small; samples.parquet holds all."
    tasks = dict.fromkeys(f"{cell.subject.task.name}, {cell.shots} shots" for cell, _ in parts)
    choices = [_select("task", tasks, {name: name for name in tasks}), _select("verdict", _VERDICTS, _VERDICTS)]
    return (
        f'<p class="note">{note}</p>\n<form class="filters">{"".join(choices)}<output></output></form>\n'
        f'<div class="cards">\n{chr(10).join(cards)}\n</div>\n<script>{_SCRIPT}</script>'
    )


def _select(name: str, values: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    options = "".join(f'<option value="{_text(value)}">{_text(labels[value])}</option>' for value in values)
    return f'<label>{name} <select name="{name}"><option value="">all</option>{options}</select></label>'


def _record(results: Mapping[str, Any]) -> str:
    """What decides the answers and where they were given, flat: a row for each value."""
    chosen = {name: results[name] for name in ("model", "judge", "settings", "environment", "processes", "finished")}
    rows = list(_flat(chosen))
    for name, task in results["tasks"].items():
        kept = {key: task[key] for key in ("style", "template", "decoding", "data", "demonstrations")}
        rows += _flat(kept, name)
    return f"<details><summary>settings, versions and data</summary>\n{_table(['entry', 'value'], rows, 'record')}</details>"


def _flat(value: Any, name: str = "") -> Iterator[list[str]]:
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield [name, value if isinstance(value, str) else json.dumps(value, default=str)]


# Shows the cards that the two menus choose, and their number.
_SCRIPT = """
const form = document.querySelector(".filters"), cards = [...document.querySelectorAll(".card")];
const choose = () => {
  const task = form.task.value, verdict = form.verdict.value;
  let shown = 0;
  for (const card of cards) {
    card.hidden = (task && card.dataset.task !== task) || (verdict && card.dataset.verdict !== verdict);
    shown += !card.hidden;
  }
  form.querySelector("output").value = `${shown} of ${cards.length}`;
};
form.addEventListener("change", choose);
choose();
"""

_STYLE = """\
:root { --right: #1f7a45; --wrong: #b3372f; --partly: #8a6400; --c0: #3b6fd4; --c1: #c9793a; --c2: #1f7a45; --c3: #8a4fbf;
  --c4: #b3372f; --c5: #0f7f8c; --c6: #8a6400; --c7: #5c6675; }
@media (prefers-color-scheme: dark) {
  :root { --right: #6fcf97; --wrong: #f08a80; --partly: #e0bd5c; --c0: #7aa2f0; --c1: #e0a068; --c2: #6fcf97; --c3: #c49af0;
    --c4: #f08a80; --c5: #5ccad8; --c6: #e0bd5c; --c7: #a0a9b8; } }
main { max-width: 68rem; }
h1 { font-size: 1.9rem; line-height: 1.25; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.2rem 0 0.4rem; }
.note { color: var(--muted); max-width: 46rem; margin: 0.7rem 0; font-size: 0.92rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 1.1rem 0.35rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; font-weight: 600; }
thead th { color: var(--muted); font-weight: 500; }
.published tr:last-child > * { font-weight: 700; }
.record td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; }
.record th { vertical-align: top; font-size: 0.85rem; }
summary { cursor: pointer; margin: 0.3rem 0; }
.chart { max-width: 44rem; width: 100%; height: auto; display: block; }
.chart text { fill: var(--muted); font-size: 12px; } .chart .grid { stroke: var(--line); } .chart .line { fill: none;
  stroke-width: 2; }
.filters { display: flex; flex-wrap: wrap; gap: 0.75rem 1.5rem; align-items: center; margin: 0.75rem 0 1rem; }
select { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line); border-radius: 4px;
  padding: 0.2rem 0.4rem; max-width: 100%; }
output { color: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem;
  align-items: start; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 0.8rem 0.9rem; min-width: 0; font-size: 0.9rem; }
.card[hidden] { display: none; }
.card header { color: var(--muted); font-size: 0.82rem; margin-bottom: 0.5rem; overflow-wrap: anywhere; }
.verdict { font-weight: 600; white-space: nowrap; }
.verdict.right { color: var(--right); } .verdict.partly { color: var(--partly); }
.verdict.wrong, .verdict.error { color: var(--wrong); }
.prompt { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--panel); border-radius: 6px;
  padding: 0.5rem 0.6rem; max-height: 26rem; overflow-y: auto; }
.prompt img { display: block; margin: 0.3rem 0; max-width: 100%; border-radius: 4px; border: 1px solid var(--line); }
.role { display: block; color: var(--muted); font-size: 0.75rem; text-transform: uppercase; letter-spacing: 0.05em; }
.broken { color: var(--wrong); }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0.15rem 0.75rem; margin: 0.6rem 0 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }"""
