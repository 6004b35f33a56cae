"""Packing against brute truths: nothing lost, nothing twice, no limit broken."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf.data.examples import Example
from mm1_hf.data.packing import build_row, pack
from mm1_hf.model.segments import segment_positions


def example(length: int, start: int = 0) -> Example:
    return Example(
        input_ids=np.arange(start, start + length, dtype=np.int32),
        learned=np.arange(length) > 0,
        images=(),
        splits=(),
        sizes=(),
        begins=True,
        name="an example",
    )


items = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 5)), max_size=60)


@given(items, st.integers(0, 60), st.sampled_from([None, 5, 16]))
@settings(max_examples=300, deadline=None)
def test_every_item_is_in_one_row_or_left_and_no_row_is_overfull(items, due, max_images):
    lengths, images = [length for length, _ in items], [number for _, number in items]
    packing = pack(lengths, images, 100, max_images, due=due)
    assert sorted([*(item for row in packing.rows for item in row), *packing.left]) == list(range(len(items)))
    assert all(item >= due for item in packing.left), "what was left once is not left again"
    for row in packing.rows:
        assert sum(lengths[item] for item in row) <= 100
        assert max_images is None or sum(images[item] for item in row) <= max_images


@pytest.mark.parametrize("item", [(101, 0), (1, 17)])
def test_an_item_larger_than_a_row_is_refused(item):
    with pytest.raises(ValueError, match=f"Item 1 has {item[0]} positions and {item[1]} images"):
        pack([5, item[0]], [0, item[1]], 100, 16)


def test_rows_are_full_enough():
    """Better than the first-fit in order of arrival that it must beat, and close to the lower bound of rows."""
    lengths = np.random.default_rng(0).lognormal(5.2, 0.6, 2000).clip(20, 4096).astype(int).tolist()
    packing = pack(lengths, [1] * len(lengths), 4096)
    given = [item for row in packing.rows for item in row]
    assert sum(lengths[item] for item in given) / (4096 * len(packing.rows)) > 0.99
    assert len(packing.left) < len(lengths) / 20


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_row_keeps_every_token_in_its_segment(lengths):
    starts = np.cumsum([0, *lengths[:-1]])
    row = build_row([example(length, start + 1) for length, start in zip(lengths, starts, strict=True)], 60)
    used = sum(lengths)
    assert row["input_ids"][:used].tolist() == list(range(1, used + 1))
    segments = [number for number, length in enumerate(lengths, start=1) for _ in range(length)]
    assert row["segment_ids"].tolist() == segments + [0] * (60 - used)
    positions = segment_positions(row["segment_ids"].unsqueeze(0))[0, :used].tolist()
    assert positions == [place for length in lengths for place in range(length)]
    first = torch.tensor(positions) == 0
    assert (row["labels"][:used] == torch.where(first, -100, row["input_ids"][:used])).all()
    assert (row["labels"][used:] == -100).all()
