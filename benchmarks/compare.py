"""
Says what got worse from one result of the suite to another.

    python -m benchmarks.compare benchmarks/results/suite-cpu.json new.json

A figure got worse if it is more than `--tolerance` higher, and the rounds of the two results do not overlap. The exit
status is 1 if any did, or if what was measured before has failed or is missing.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def key(record: dict[str, Any]) -> tuple[str, str, str]:
    return record["row"], json.dumps(record["case"], sort_keys=True), record["name"]


def title(record: dict[str, Any]) -> str:
    case = ", ".join(f"{name} {value}" for name, value in record["case"].items())
    return " | ".join(part for part in (record["row"], case, record["name"]) if part)


def overlap(before: list[float], after: list[float]) -> bool:
    return bool(before and after) and min(after) <= max(before) and min(before) <= max(after)


def changes(
    before: list[dict[str, Any]], after: list[dict[str, Any]], tolerance: float
) -> tuple[list[str], list[str]]:
    """
    Compares two lists of records.

    Args:
        before, after: records of two results.
        tolerance: by what share a figure may grow.

    Returns:
        What got worse and what got better, a line each.
    """
    worse, better = [], []
    found = {key(record): record for record in after}
    for old in before:
        new = found.get(key(old))
        if "error" in old:
            if new is not None and "error" not in new:
                better.append(f"{title(old)}: measured again")
            continue
        if new is None or "error" in new:
            worse.append(f"{title(old)}: {'missing' if new is None else new['error']}")
            continue
        for figure, unit, factor in (("seconds", "ms", 1e3), ("memory", "MiB", 2**-20)):
            one, other = old.get(figure), new.get(figure)
            if not one or not other or (figure == "seconds" and overlap(old.get("rounds", []), new.get("rounds", []))):
                continue
            line = f"{title(old)}: {factor * one:.3f} to {factor * other:.3f} {unit}, {other / one:.2f} times"
            if other > one * (1 + tolerance):
                worse.append(line)
            elif one > other * (1 + tolerance):
                better.append(line)
    return worse, better


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="JSON file of the suite")
    parser.add_argument("after", type=Path, help="JSON file of the suite, measured later")
    parser.add_argument(
        "--tolerance", type=float, default=0.05, help="share by which a figure may grow (default: 0.05)"
    )
    options = parser.parse_args()
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (options.before, options.after))
    for name in ("hardware", "threads", "scale", "versions"):
        if before[name] != after[name]:
            print(f"Not the same {name}: {before[name]} and {after[name]}")
    worse, better = changes(before["records"], after["records"], options.tolerance)
    for heading, lines in (("Worse", worse), ("Better", better)):
        print(f"{heading}: {len(lines)}")
        print("".join(f"  {line}\n" for line in lines), end="")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
