"""Attention segment by segment against transformers' own under the block-diagonal mask."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mm1_hf.model.segment_attention import SEGMENT_SDPA, segment_sdpa_forward
from mm1_hf.model.segments import boundary_kwargs


def attend(function, heads, mask, groups, **kwargs):
    heads = [each.clone().requires_grad_() for each in heads]
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    output, weights = function(module, *heads, mask, scaling=0.3, **kwargs)
    assert weights is None
    output.mul(torch.arange(output.numel()).view_as(output) % 7).sum().backward()
    return [output, *(each.grad for each in heads)]


def block_mask(segments, window=None):
    places = torch.arange(segments.shape[1])
    mask = (segments[:, :, None] == segments[:, None, :]) & (places[:, None] >= places)
    if window is not None:
        mask &= places[:, None] - places < window
    return mask[:, None]


def random_heads(rows, length, groups, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, number, length, 8, generator=draw) for number in (2 * groups, 2, 2)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=8), min_size=1, max_size=3),
    st.integers(0, 5),
    st.sampled_from([1, 3]),
)
def test_output_and_gradients_are_those_under_the_mask(lengths, padding, groups):
    length = max(map(sum, lengths)) + padding
    segments = torch.zeros(len(lengths), length, dtype=torch.long)
    for row, each in zip(segments, lengths, strict=True):
        row[: sum(each)] = torch.arange(1, len(each) + 1).repeat_interleave(torch.tensor(each))
    heads = random_heads(len(lengths), length, groups)
    expected = attend(sdpa_attention_forward, heads, block_mask(segments), groups)
    # What lies where the mask would is not read.
    got = attend(segment_sdpa_forward, heads, None, groups, **boundary_kwargs(segments, SEGMENT_SDPA))
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [2, 5, 6, 100])
def test_a_window_shorter_than_the_longest_segment_is_left_to_the_mask(window):
    segments = torch.tensor([[1] * 6 + [2] * 4])
    heads = random_heads(1, 10, 1)
    mask = block_mask(segments, window)
    expected = attend(sdpa_attention_forward, heads, mask, 1)
    boundaries = boundary_kwargs(segments, SEGMENT_SDPA)
    got = attend(segment_sdpa_forward, heads, mask, 1, sliding_window=window, **boundaries)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_without_segments_it_is_sdpa():
    heads = random_heads(2, 7, 2)
    mask = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    mask |= torch.eye(7, dtype=torch.bool)
    for one, other in zip(
        attend(segment_sdpa_forward, heads, mask, 2), attend(sdpa_attention_forward, heads, mask, 2), strict=True
    ):
        assert torch.equal(one, other)
