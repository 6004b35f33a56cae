"""
Writes the page of the suite's results, with charts, from its JSON files.

    python -m benchmarks.page docs/benchmarks.md

The charts lie beside the page as PNG files, under the page's name.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


RESULTS = Path(__file__).parent / "results"
FILES = ("suite-gpu.json", "suite-cpu.json")
TITLES = {
    "limits": "Limits of the machine",
    "training, dense": "Training step",
    "training, experts": "Training step with experts",
    "decoding": "Decoding",
    "MoE layer": "Layer of experts",
    "packed attention": "Attention of packed rows",
    "loss head": "Loss head",
    "first token": "Time to the first token",
    "fine-tuning": "Fine-tuning under Trainer",
    "image processing": "Image processing",
    "image loading": "Loading images",
    "import": "Import",
    "command": "The command",
    "load": "Loading a model",
    "growth": "Growth",
}
# Rows that are drawn as curves, over the case's field.
CURVES = {"MoE layer": "tokens", "packed attention": "tokens", "loss head": "vocabulary", "growth": "value"}
# What a record is compared with, where that is not the fastest of its case.
COLUMNS = (
    ("seconds", "time", lambda value: seconds(value)),
    ("memory", "memory", lambda value: f"{value / 2**20:,.0f} MiB"),
    ("tokens_per_second", "tokens/s", lambda value: f"{value:,.0f}"),
    ("samples_per_second", "samples/s", lambda value: f"{value:.2f}"),
    ("positions", "positions", lambda value: f"{value:,}"),
    ("flops", "operations", lambda value: f"{value:.2e}"),
    ("mfu", "MFU", lambda value: f"{100 * value:.1f} %"),
    ("share_of_matrix_limit", "of the matrix limit", lambda value: f"{100 * value:.1f} %"),
    ("share_of_bandwidth", "of the bandwidth", lambda value: f"{100 * value:.1f} %"),
)


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def groups(records: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Records by row and case, in the order of the file."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        found[record["row"]][json.dumps(record["case"])].append(record)
    return found


def exponent(points: list[tuple[float, float]]) -> float:
    """Slope of the straight line that fits the points' logarithms best."""
    xs, ys = ([math.log(value) for value in column] for column in zip(*points, strict=True))
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - x_mean) ** 2 for x in xs)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread


def curves(row: str, records: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Points of each curve, by panel and name. Cases that differ in more than the curve's field are panels of their own."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if "error" in record or record["seconds"] <= 0:
            continue
        rest = {name: value for name, value in record["case"].items() if name != CURVES[row]}
        if row == "loss head":
            rest = {}
        panel = ", ".join(f"{name}: {value}" for name, value in rest.items())
        panels[panel][record["name"]].append((record["case"][CURVES[row]], record["seconds"]))
    return panels


def draw(row: str, panels: dict[str, dict[str, list[tuple[float, float]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), squeeze=False, layout="constrained")
    for axis, (panel, lines) in zip(axes[0], panels.items(), strict=True):
        for name, points in lines.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        places = sorted({x for points in lines.values() for x, _ in points})
        axis.set(xscale="log", yscale="log", title=panel or TITLES[row], xlabel=CURVES[row], ylabel="seconds")
        axis.set_xticks(places, [f"{place:,}" for place in places])
        axis.set_xticks([], minor=True)
        axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def table(cases: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One line for each record; `times` compares its time with the fastest of the case."""
    flat = [record for records in cases.values() for record in records]
    columns = [column for column in COLUMNS if any(record.get(column[0]) is not None for record in flat)]
    fields = list(dict.fromkeys(name for record in flat for name in record["case"]))
    head = [*fields, "who", *(title for _, title, _ in columns), "times the fastest"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for records in cases.values():
        measured = [record["seconds"] for record in records if "error" not in record and record["seconds"] > 0]
        for record in records:
            cells = [str(record["case"].get(name, "")) for name in fields]
            cells.append(record["name"])
            if "error" in record:
                cells += [record["error"].replace("|", "/"), *[""] * len(columns)]
            else:
                cells += ["" if record.get(key) is None else show(record[key]) for key, _, show in columns]
                cells.append(f"{record['seconds'] / min(measured):.2f}" if len(measured) > 1 else "")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def profile(row: str, cases: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The operations that took most of the time."""
    lines = [f"### {row[0].upper() + row[1:]}", ""]
    for records in cases.values():
        for record in (each for each in records if "error" not in each):
            lines += [f"{record['name']}:", "", "| operation | time | calls |", "|---|---|---|"]
            lines += [
                f"| `{each['name'].replace('|', '/')}` | {seconds(each['seconds'])} | {each['calls']} |"
                for each in record["operations"]
            ]
            lines.append("")
    return lines


def section(row: str, cases: dict[str, list[dict[str, Any]]], chart: Path, link: str) -> list[str]:
    if row.endswith("profile"):
        return profile(row, cases)
    lines = [f"### {TITLES.get(row, row[0].upper() + row[1:])}", "", *table(cases), ""]
    if row in CURVES:
        panels = curves(row, [record for records in cases.values() for record in records])
        for panel, named in panels.items():
            slopes = [
                f"{name} {exponent(points):.2f}" for name, points in named.items() if len({x for x, _ in points}) > 1
            ]
            if slopes:
                where = f" ({panel})" if panel else ""
                lines += [f"Exponent of the time over {CURVES[row]}{where}: {', '.join(slopes)}.", ""]
        if panels:
            draw(row, panels, chart)
            lines += [f"![{TITLES.get(row, row)}]({link})", ""]
    return lines


def write(results: list[Path], page: Path) -> None:
    """
    Writes the page.

    Args:
        results: JSON files of the suite.
        page: the Markdown file.
    """
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Speed",
        "",
        "This page is written by `python -m benchmarks.page` from the results in `benchmarks/results/`;",
    ]
    lines += ["`benchmarks/README.md` says how they were measured. Times are medians over interleaved rounds.", ""]
    for path in results:
        result = json.loads(path.read_text(encoding="utf-8"))
        machine = result["hardware"]
        name = machine.get("gpu") or f"{machine['cpu']}, {result['threads']} threads"
        used = ", ".join(
            f"{package} {version}" for package, version in result["versions"].items() if version[0].isdigit()
        )
        lines += [f"## {name}", "", f"Scale `{result['scale']}`, commit {result['commit']}; {used}.", ""]
        lines += [line for note in result.get("notes", []) for line in (note, "")]
        for row, cases in groups(result["records"]).items():
            chart = folder / f"{path.stem}-{row.replace(' ', '-').replace(',', '')}.png"
            lines += section(row, cases, chart, f"{folder.name}/{chart.name}")
        stopped = [each for each in result["rows"] if each["outcome"] != "measured"]
        lines += [f"Row {each['row']}: {each['outcome']}." for each in stopped]
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="Markdown file to write")
    parser.add_argument("results", type=Path, nargs="*", help="JSON files (default: those in benchmarks/results)")
    options = parser.parse_args()
    results = options.results or [RESULTS / name for name in FILES if (RESULTS / name).exists()]
    if not results:
        print("There are no results yet. `make bench` measures on this machine.", file=sys.stderr)
        return 2
    write(results, options.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
