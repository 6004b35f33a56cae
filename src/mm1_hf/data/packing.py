"""Packing: chooses which examples share a row, and builds the rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mm1_hf.data.collation import IGNORED
from mm1_hf.data.examples import Example


@dataclass(frozen=True)
class Packing:
    """
    The result of [`pack`].

    Args:
        rows: for each row, the indices of its items.
        left: indices of the items whose rows would have been too empty. They can be packed with the next items.
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
    Packs a window of items by best-fit decreasing, limited in both positions and images: the items are taken from the
    largest to the smallest, and each goes to the fullest row that has room for it.

    Args:
        lengths: number of positions of each item.
        images: number of images of each item.
        sequence_length: number of positions of a row.
        max_images: largest number of images in a row. If unset, there is no limit.
        due: number of items, counted from the first, that a previous call left over. Their rows are always returned,
            however empty they are.
        full: a row counts as full, and is returned, if at least this share of its positions, or of `max_images`, is
            used.

    Returns:
        The rows, and the items left over. Every item is in one of the two, exactly once.

    Raises:
        ValueError: an item is larger than a row.

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
                f"Item {index} has {length} positions and {number} images, but a row holds at most {sequence_length} "
                f"and {'any number of' if max_images is None else max_images} images. Cut or drop larger items before "
                "packing."
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
    Builds one row from examples, one after the other.

    Args:
        examples: at least one example. Together they must fit into the row.
        sequence_length: number of positions of the row.

    Returns:
        `input_ids`, `labels` and `segment_ids` `(sequence,)`. The segments are numbered from 1, and the branches of each
        from -1 downwards. The padding at the end has label -100 and segment 0.
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
        shared = len(ids) - sum(example.branches)
        lengths = torch.tensor([shared, *example.branches])
        numbers = torch.tensor([number, *range(-1, -len(example.branches) - 1, -1)])
        segment_ids[start:stop] = numbers.repeat_interleave(lengths)
        start = stop
    return {"input_ids": input_ids, "labels": labels, "segment_ids": segment_ids}
