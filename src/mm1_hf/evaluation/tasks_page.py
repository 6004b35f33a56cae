"""The table of tasks: that of `mm1 eval --list`, and the one in docs/evaluation.md, which this module writes anew."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mm1_hf.evaluation.tasks import Task, load_task, task_names


BEGIN, END = "<!-- tasks: written by `make docs` -->", "<!-- end of tasks -->"


def overview(tasks: Sequence[Task]) -> tuple[tuple[str, ...], list[list[str]]]:
    """
    The headings and rows of the table.

    Args:
        tasks: the tasks.
    """
    rows = [
        [
            task.name,
            task.split,
            "the same" if task.shots is None or task.shots.split == task.split else task.shots.split,
            task.metric or f"judge ({task.judge})",
            task.style,
            task.data[0] if task.data else f"read by `{task.source}`",
        ]
        for task in tasks
    ]
    return ("task", "split", "demonstrations from", "metric", "style", "data"), rows


def tasks_table() -> str:
    """The table as Markdown."""
    headings, rows = overview([load_task(name) for name in task_names()])
    rows = [[f"`{row[0]}`", *row[1:]] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [headings, ["---"] * len(headings), *rows]) + "\n"


def rewritten(page: str) -> str:
    """
    A page with the table between its two marks.

    Args:
        page: text of the page.
    """
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tasks_table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(rewritten(file.read_text(encoding="utf-8")), encoding="utf-8")
