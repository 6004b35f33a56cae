"""Rows of Arrow tables that Python cannot hold, for example texts that are not UTF-8, which Arrow does not check."""

from typing import Any

import pyarrow as pa
from datasets import Dataset
from PIL import UnidentifiedImageError

from mm1_hf.data.documents import Unusable
from mm1_hf.data.raw_records import CORRUPT_RECORD, ERROR, FOLDER
from mm1_hf.data.wall import around_record


def row_of(dataset: Dataset, index: int, name: str) -> dict[str, Any]:
    """
    A row of a data set.

    Args:
        dataset: the data set.
        index: index of the row, counted from 0.
        name: where the record comes from, for the error message.

    Raises:
        Unusable: the row cannot be read. A failure of the disk is raised as it is.
    """
    try:
        with around_record(name):
            return dataset[index]
    except Unusable as reason:
        if isinstance(reason.__cause__, OSError) and not isinstance(reason.__cause__, UnidentifiedImageError):
            raise reason.__cause__ from None
        raise


def with_folder(table: pa.Table, folder: str) -> pa.Table:
    """
    Adds the reader's own columns to a part of a stream: the folder, and an error message for each row that Python cannot
    hold. Such a row is emptied.

    Args:
        table: the rows.
        folder: the folder where relative paths start.
    """
    errors = [None] * len(table) if _is_readable(table) else [_error(table.slice(row, 1)) for row in range(len(table))]
    if any(errors):
        table = table.take(pa.array([row if error is None else None for row, error in enumerate(errors)], pa.int64()))
    table = table.append_column(ERROR, pa.array(errors, pa.string()))
    return table.append_column(FOLDER, pa.array([folder] * len(table), pa.string()))


def _is_readable(table: pa.Table) -> bool:
    """Whether all rows can be read. Most columns are checked without being turned into Python's values."""
    try:
        table.validate(full=True)
        for column in table.columns:
            if pa.types.is_temporal(column.type):
                column.to_pylist()
    except Exception:
        return False
    return True


def _error(row: pa.Table) -> str | None:
    try:
        row.to_pylist()
    except Exception as error:
        return f"{CORRUPT_RECORD}: {type(error).__name__}: {error}"
    return None
