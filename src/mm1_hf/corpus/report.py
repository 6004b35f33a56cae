"""Counts by reason after every step of a run, and the page that shows them with samples of what was kept and dropped."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from mm1_hf.corpus.atomic import remove_partial_files, whole_file
from mm1_hf.corpus.bridge import Documents
from mm1_hf.corpus.samples import Sample, merged_samples
from mm1_hf.corpus.steps import DROPPED, IMAGE_DROPPED, IMAGE_KEPT, KEPT
from mm1_hf.reporting.page import write_html
from mm1_hf.reporting.printable import printable


REPORT_STAGE = "report"


@dataclass(frozen=True)
class StepCounts:
    """
    What a step of a run counted, over all its tasks.

    Args:
        stage: name of its stage.
        name: name of the step.
        counts: number of each label, such as `"dropped: no image"`.
        samples: samples by label.
        seconds: time the step took, summed over the tasks.
    """

    stage: str
    name: str
    counts: dict[str, int]
    samples: dict[str, list[Sample]]
    seconds: float


def read_counts(output: str | os.PathLike[str]) -> list[StepCounts]:
    """
    The counts of all steps of a run, in their order.

    Args:
        output: folder of the run.
    """
    found = []
    for folder in sorted(Path(output, "steps").iterdir()):
        stage = re.sub(r"^\d+-", "", folder.name)
        if stage == REPORT_STAGE:
            continue
        tasks = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / "stats").glob("*.json"))]
        for place, steps in enumerate(zip(*tasks, strict=True)):
            counts: Counter[str] = Counter()
            for step in steps:
                counts.update({label: int(_total(value)) for label, value in step["stats"].items()})
            samples = [
                json.loads(file.read_text(encoding="utf-8"))
                for file in sorted((folder / "samples").glob(f"{place:02d}-*.json"))
            ]
            # datatrove's names begin with pictures.
            name = re.sub(r"^\W+", "", steps[0]["name"].partition(": ")[2] or steps[0]["name"])
            seconds = sum(_total(step["time_stats"]) for step in steps)
            found.append(StepCounts(stage, name, dict(sorted(counts.items())), merged_samples(samples), seconds))
    return found


def _total(value: Any) -> float:
    return value["total"] if isinstance(value, dict) else value


class WriteReport(PipelineStep):
    """
    Writes `counts.json` and `report.html` of a run whose other stages are complete.

    Args:
        output: folder of the run.
    """

    type = "MM1"
    name = "report"

    def __init__(self, output: str | os.PathLike[str]) -> None:
        super().__init__()
        self.output = os.fspath(output)

    def run(self, data: Documents = None, rank: int = 0, world_size: int = 1) -> Documents:
        """Writes both files. There are no documents to pass on."""
        steps = read_counts(self.output)
        write_page(Path(self.output) / "report.html", os.path.basename(self.output), steps)
        counts = [{"stage": step.stage, "step": step.name, **step.counts} for step in steps if step.counts]
        with whole_file(Path(self.output) / "counts.json") as partial:
            partial.write_text(json.dumps(counts, indent=2, ensure_ascii=False), encoding="utf-8")
        # Other stages are complete. Jobs of Slurm that were killed may have left some.
        remove_partial_files(self.output)
        yield from ()


def write_page(path: Path, title: str, steps: Sequence[StepCounts]) -> None:
    """
    Writes the page.

    Args:
        path: where to write the HTML file.
        title: name of the run.
        steps: counts and samples of all steps.
    """
    shown = [step for step in steps if step.counts]
    sections = [f"<h1>{escape(printable(title))}</h1>\n{_overview(shown)}"]
    sections += [_section(place, step) for place, step in enumerate(shown)]
    with whole_file(path) as partial:
        write_html(partial, f"Data: {printable(title)}", sections, _STYLE)


def text_counts(steps: Sequence[dict[str, Any]]) -> list[str]:
    """
    Lines for a terminal that say what every step kept and dropped.

    Args:
        steps: content of `counts.json`.
    """
    lines = []
    for step in steps:
        step = dict(step)
        lines.append(printable(f"{step.pop('stage')}: {step.pop('step')}"))
        lines += [printable(f"  {number:10,} {label}") for label, number in _ordered(step)]
    return lines


def _ordered(counts: dict[str, int]) -> list[tuple[str, int]]:
    """First what is kept, then what is dropped by falling number, then other counts."""

    def key(entry: tuple[str, int]) -> tuple[int, int, str]:
        label, number = entry
        places = (label == KEPT, label.startswith(DROPPED), label == IMAGE_KEPT, label.startswith(IMAGE_DROPPED), True)
        return places.index(True), -number, label

    return sorted(counts.items(), key=key)


def _overview(steps: Sequence[StepCounts]) -> str:
    rows = []
    for place, step in enumerate(steps):
        cells = []
        for kept, dropped in ((KEPT, DROPPED), (IMAGE_KEPT, IMAGE_DROPPED)):
            cells += [
                step.counts.get(kept, 0),
                sum(number for label, number in step.counts.items() if label.startswith(dropped)),
            ]
        numbers = "".join(f"<td>{f'{number:,}' if number else ''}</td>" for number in cells)
        name = f'<a href="#step-{place}">{escape(printable(step.name))}</a>'
        rows.append(f"<tr><td>{escape(step.stage)}</td><td>{name}</td>{numbers}<td>{step.seconds:,.1f}</td></tr>")
    headings = ("stage", "step", "documents kept", "dropped", "images kept", "dropped", "seconds")
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    return f'<div class="wide"><table class="numbers"><tr>{head}</tr>\n' + "\n".join(rows) + "\n</table></div>"


def _section(place: int, step: StepCounts) -> str:
    blocks = []
    for label, number in _ordered(step.counts):
        kind = "kept" if label in (KEPT, IMAGE_KEPT) else "dropped" if DROPPED in label else "other"
        samples = "\n".join(_sample(sample) for sample in step.samples.get(label, ()))
        heading = f'<span class="{kind}">{escape(printable(label))}</span> {number:,}'
        if samples:
            opened = "" if kind == "kept" else " open"
            shown = f'<div class="samples">\n{samples}\n</div>'
            blocks.append(f"<details{opened}><summary>{heading}</summary>\n{shown}\n</details>")
        else:
            blocks.append(f'<p class="count">{heading}</p>')
    heading = f'<h2 id="step-{place}">{escape(printable(step.name))} <small>{escape(step.stage)}</small></h2>'
    return "\n".join([heading, *blocks])


def _sample(sample: Sample) -> str:
    parts = []
    for part in sample.parts:
        if isinstance(part, str):
            parts.append(f"<span>{escape(printable(part, keep=chr(10)))}</span>")
        elif part["image"]:
            address = escape(printable(part["address"]), quote=True)
            parts.append(f'<img src="data:image/jpeg;base64,{part["image"]}" alt="{address}" title="{address}">')
        else:
            parts.append(f'<span class="missing">{escape(printable(part["address"])) or "image"}</span>')
    detail = f'<div class="detail">{escape(printable(sample.detail))}</div>' if sample.detail else ""
    return f'<article><div class="id">{escape(printable(sample.id))}</div>{"".join(parts)}{detail}</article>'


_STYLE = """\
main { max-width: 72rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid var(--line); text-align: right; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
h2 small { color: var(--muted); font-weight: normal; }
summary { cursor: pointer; margin: 0.5rem 0; }
.count { margin: 0.5rem 0; }
.kept { color: #2b8a3e; } .dropped { color: #c2410c; } .other { color: var(--muted); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 0.75rem; }
article { padding: 0.75rem; background: var(--panel); border-radius: 6px;
  font-size: 0.875rem; overflow-wrap: anywhere; }
article span { white-space: pre-line; }
article img { vertical-align: middle; margin: 0.25rem; max-width: 112px; border: 1px solid var(--line); background: #fff; }
.missing { display: inline-block; margin: 0.25rem; padding: 0 0.5rem;
  border: 1px dashed var(--line); color: var(--muted); }
.id, .detail { color: var(--muted); font-size: 0.8rem; }
"""
