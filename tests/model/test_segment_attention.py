"""Attention segment by segment against transformers' own under the block-diagonal mask."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY_DECODERS, byte_tokenizer, tiny_vision
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mm1_hf import MM1ConnectorConfig, assemble
from mm1_hf.model import segment_attention
from mm1_hf.model import segments as segments_module
from mm1_hf.model.segment_attention import SEGMENT_SDPA, segment_buckets, segment_sdpa_forward
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
    kwargs = boundary_kwargs(segments, SEGMENT_SDPA)
    got = attend(segment_sdpa_forward, heads, None, groups, **kwargs)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    # Without the buckets, of a caller that only knows flash attention's arguments, the layer computes them.
    del kwargs["buckets"]
    for one, other in zip(attend(segment_sdpa_forward, heads, None, groups, **kwargs), got, strict=True):
        assert torch.equal(one, other)


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


@pytest.mark.parametrize("layer_is_causal", [True, False])
def test_a_layer_that_is_not_causal_is_refused(layer_is_causal):
    heads = random_heads(1, 4, 1)
    kwargs = boundary_kwargs(torch.tensor([[1, 1, 2, 2]]), SEGMENT_SDPA)
    # transformers takes an explicit argument before the layer's own attribute.
    module = SimpleNamespace(num_key_value_groups=1, is_causal=layer_is_causal)
    explicit = False if layer_is_causal else None
    with pytest.raises(ValueError, match="SimpleNamespace is not causal"):
        segment_sdpa_forward(module, *heads, None, is_causal=explicit, **kwargs)
    segment_sdpa_forward(module, *heads, None, is_causal=True, **kwargs)
    # Without segments it is transformers' sdpa, which computes both.
    plain = segment_sdpa_forward(module, *heads, None, is_causal=explicit)[0]
    assert torch.equal(plain, sdpa_attention_forward(module, *heads, None, is_causal=explicit)[0])


@pytest.mark.parametrize("decoder", TINY_DECODERS)
def test_buckets_are_computed_once_per_forward(decoder, monkeypatch):
    calls = []
    for module in (segments_module, segment_attention):
        monkeypatch.setattr(module, "segment_buckets", lambda *given: calls.append(1) or segment_buckets(*given))
    torch.manual_seed(0)
    connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32)
    model, _ = assemble(tiny_vision(), TINY_DECODERS[decoder](), connector, tokenizer=byte_tokenizer(), verbose=False)
    model.model.language_model.set_attn_implementation(SEGMENT_SDPA)
    inputs = {"input_ids": torch.randint(5, 200, (2, 9)), "segment_ids": torch.tensor([[1] * 4 + [2] * 5] * 2)}
    # The first packed row of a decoder is preceded by a trial whether it keeps segments apart.
    model(**inputs)
    calls.clear()
    model(**inputs)
    assert len(calls) == 1 < model.config.text_config.num_hidden_layers


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="counts how often the host waits for a GPU")
@pytest.mark.parametrize("implementation", [SEGMENT_SDPA, "flash_attention_2"])
def test_the_boundaries_wait_for_the_device_once(implementation, recwarn):
    segments = torch.tensor([[1] * 6 + [2] * 4], device="cuda")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        boundary_kwargs(segments, implementation)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # The first use of this mode in a process warns about the mode itself.
    assert len([warning for warning in recwarn if "called a synchronizing" in str(warning.message)]) == 1
