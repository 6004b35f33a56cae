import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import find_packed_sequence_indices

from mm1_hf.model.segment_attention import SEGMENT_SDPA
from mm1_hf.model.segments import (
    boundary_kwargs,
    mask_padding,
    require_packed_inputs,
    segment_positions,
    segments_from_positions,
)


LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def row(lengths: list[int], padding: int) -> torch.Tensor:
    ids = [number for number, length in enumerate(lengths, start=1) for _ in range(length)]
    return torch.tensor([ids + [0] * padding])


@given(lengths=LENGTHS, padding=st.integers(0, 4))
@settings(deadline=None)
def test_positions_count_up_in_every_segment(lengths, padding):
    expected = [position for length in [*lengths, padding] for position in range(length)]
    assert segment_positions(row(lengths, padding)).tolist() == [expected]


@given(lengths=LENGTHS, padding=st.integers(0, 4))
@settings(deadline=None)
def test_positions_lead_back_to_the_segments(lengths, padding):
    segments = row(lengths, padding)
    mask = (segments != 0).long()
    assert torch.equal(segments_from_positions(segment_positions(segments), mask, segments.shape), segments)


@given(lengths=LENGTHS, padding=st.integers(0, 4))
@settings(deadline=None)
def test_transformers_finds_the_same_segments_in_the_positions(lengths, padding):
    segments = row(lengths, padding)
    found = find_packed_sequence_indices(segment_positions(segments))
    blocks = segments[0, :, None] == segments[0, None, :]
    if found is None:
        assert blocks.all()
    else:
        assert torch.equal(found[0, :, None] == found[0, None, :], blocks)


def test_rows_are_independent():
    segments = torch.tensor([[1, 1, 2, 2], [5, 5, 5, 0]])
    assert segment_positions(segments).tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]


def test_positions_that_start_late_or_skip_begin_a_segment():
    positions = torch.tensor([[7, 8, 9, 0, 1, 5, 6]])
    assert segments_from_positions(positions, None, (1, 7)).tolist() == [[1, 1, 1, 2, 2, 3, 3]]


def test_left_padding_is_no_segment():
    # The positions that generate() makes of a left-padded row.
    positions, mask = torch.tensor([[1, 1, 0, 1, 2]]), torch.tensor([[0, 0, 1, 1, 1]])
    segments = segments_from_positions(positions, mask, (1, 5))
    assert segments[0, :2].tolist() == [0, 0]
    assert segments[0, 2:].unique().numel() == 1 and segments[0, 2] > 0


def test_no_positions_or_a_mask_of_who_sees_whom_make_no_segments():
    positions = torch.tensor([[0, 1, 0, 1]])
    assert segments_from_positions(None, None, (1, 4)) is None
    assert segments_from_positions(positions, torch.zeros(1, 1, 4, 4), (1, 4)) is None
    # One row of positions for a batch, as transformers passes them.
    assert segments_from_positions(positions, None, (2, 4)).tolist() == [[1, 1, 2, 2]] * 2


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float])
def test_padding_becomes_segment_0(dtype):
    segments = torch.tensor([[1, 1, 2, 3]])
    masked = mask_padding(segments, torch.tensor([[1, 1, 1, 0]]).to(dtype))
    assert masked.tolist() == [[1, 1, 2, 0]]
    assert masked.dtype == torch.long
    assert mask_padding(segments, None) is segments


def test_a_filled_cache_is_refused_and_an_empty_one_is_not():
    segments, cache = torch.tensor([[1, 1, 2]]), DynamicCache()
    require_packed_inputs(segments, (1, 3), None, None)
    require_packed_inputs(segments, (1, 3), torch.ones(1, 3), cache)
    cache.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
    with pytest.raises(ValueError, match="past_key_values holds 3 tokens"):
        require_packed_inputs(segments, (1, 3), None, cache)


@pytest.mark.parametrize("segments", [[1, 1, 2], [[1, 1]], [[1, 1, 2]] * 2])
def test_segments_of_another_shape_than_the_tokens_are_refused(segments):
    segments = torch.tensor(segments)
    with pytest.raises(ValueError, match=r"segment_ids has the shape \(.*\), and the tokens are \(1, 3\)"):
        require_packed_inputs(segments, (1, 3), None, None)


@pytest.mark.parametrize(
    "implementation", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2", SEGMENT_SDPA]
)
def test_variable_length_attention_gets_the_boundaries_of_the_whole_batch(implementation):
    segments = torch.tensor([[1, 1, 2, 2], [2, 2, 2, 0]])
    kwargs = boundary_kwargs(segments, implementation)
    # A row's end is a boundary also where its neighbour's segment has the same number.
    assert kwargs["cu_seq_lens_q"].tolist() == [0, 2, 4, 7, 8]
    assert kwargs["cu_seq_lens_q"].dtype == torch.int32
    assert torch.equal(kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"])
    assert kwargs["max_length_q"] == kwargs["max_length_k"] == 3
    for other in ("sdpa", "eager", "flex_attention", None):
        assert boundary_kwargs(segments, other) == {}
