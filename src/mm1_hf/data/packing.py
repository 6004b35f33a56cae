"""Packing: which examples share a row, and the row that they make."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mm1_hf.data.collation import IGNORED
from mm1_hf.data.examples import Example


@dataclass(frozen=True)
class Packing:
    """
    Args:
        rows: the items of each row, by their index.
        left: items that would have left a row too empty, to be packed with what comes next.
    """

    rows: list[list[int]]
    left: list[int]


def pack(
    lengths: Sequence[int],
    images: Sequence[int],
    sequence_length: int,
    max_images: int | None = None,
    *,
    due: int = 0,
    full: float = 0.98,
) -> Packing:
    """
    Best-fit decreasing over a window of items, in positions and images at once: the largest item goes first, each to the
    fullest row that has room for it.

    Args:
        lengths: positions of each item.
        images: images of each item.
        sequence_length: positions of a row.
        max_images: images of a row at most; unset, any number.
        due: the first so many items were left before, and get a row now whatever its share.
        full: share of a row's positions, or of its images, from which it is given out.

    Returns:
        Every item once: in a row or among those left.

    Raises:
        ValueError: an item larger than a row.

    Example:

    ```python
    >>> from mm1_hf.data.packing import pack

    >>> pack([60, 50, 40, 30], [1, 1, 1, 1], sequence_length=100, due=4)
    Packing(rows=[[0, 2], [1, 3]], left=[])

    ```
    """
    places = sum(images) + 1 if max_images is None else max_images
    for index, (length, number) in enumerate(zip(lengths, images, strict=True)):
        if length > sequence_length or number > places:
            raise ValueError(
                f"Item {index} has {length} positions and {number} images, and a row {sequence_length} and {places}; cut or "
                "leave out what is larger than a row before packing."
            )
    size = np.maximum(np.array(lengths) / sequence_length, np.array(images) / places)
    room = np.empty(len(lengths), dtype=np.int64)
    room_for_images = np.empty(len(lengths), dtype=np.int64)
    rows: list[list[int]] = []
    for item in np.argsort(-size, kind="stable").tolist():
        length, number = lengths[item], images[item]
        opened = len(rows)
        fits = (room[:opened] >= length) & (room_for_images[:opened] >= number)
        if fits.any():
            row = int(np.where(fits, room[:opened], sequence_length + 1).argmin())
            rows[row].append(item)
        else:
            row = opened
            rows.append([item])
            room[row], room_for_images[row] = sequence_length, places
        room[row] -= length
        room_for_images[row] -= number
    spare = (1 - full) * np.array([sequence_length, places])
    given, left = [], []
    for row, items in enumerate(rows):
        is_full = room[row] <= spare[0] or (max_images is not None and room_for_images[row] <= spare[1])
        if is_full or min(items) < due:
            given.append(items)
        else:
            left.extend(items)
    return Packing(given, sorted(left))


def build_row(examples: Sequence[Example], sequence_length: int) -> dict[str, torch.Tensor]:
    """
    The examples as one row.

    Args:
        examples: at least one; together they fit the row.
        sequence_length: positions of the row.

    Returns:
        `input_ids`, `labels` and `segment_ids` `(sequence,)`, with padding at the end: labels -100, segment 0.
    """
    input_ids = torch.zeros(sequence_length, dtype=torch.long)
    labels = torch.full((sequence_length,), IGNORED)
    segment_ids = torch.zeros(sequence_length, dtype=torch.long)
    start = 0
    for number, example in enumerate(examples, start=1):
        stop = start + len(example.input_ids)
        ids = torch.from_numpy(example.input_ids).long()
        input_ids[start:stop] = ids
        labels[start:stop] = torch.where(torch.from_numpy(example.learned), ids, IGNORED)
        segment_ids[start:stop] = number
        start = stop
    return {"input_ids": input_ids, "labels": labels, "segment_ids": segment_ids}
