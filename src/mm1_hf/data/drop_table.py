"""Shows what a run left out of its data."""

from collections.abc import Mapping
from typing import Any

from mm1_hf.reporting.printable import printable


def drop_table(report: Mapping[str, Mapping[str, Any]]) -> str:
    """
    A table of the records that were dropped, by source and reason, the most frequent reason first.

    Args:
        report: what [`mm1_hf.data.documents.Drops.report`] returned.
    """
    rows = [("source", "left out", "number", "of records read")]
    for source, counts in report.items():
        for reason, number in sorted(counts["dropped"].items(), key=lambda item: -item[1]):
            share = number / max(counts["seen"], 1)
            rows.append((source, printable(reason), f"{number:,}", f"{counts['seen']:,} ({share:.2%})"))
        if images := counts.get("images_left_out"):
            rows.append((source, "images without text in their row", f"{images:,}", f"{counts['seen']:,}"))
    if len(rows) == 1:
        read = sum(counts["seen"] for counts in report.values())
        return f"Nothing was left out of the {read:,} records that were read."
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    numbers = {2, 3}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
