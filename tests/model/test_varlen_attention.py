"""Packed rows through torch's variable-length kernel, with plain arithmetic in the kernel's place."""

from types import SimpleNamespace

import pytest
import torch
from flash import varlen_attention as arithmetic
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mm1_hf.model import segment_attention, segments, varlen_attention
from mm1_hf.model.segment_attention import SEGMENT_SDPA, segment_sdpa_forward
from mm1_hf.model.segments import boundary_kwargs


LENGTHS = [5, 1, 9, 3]


@pytest.fixture
def calls(monkeypatch):
    """Windows that the kernel was called with."""
    windows = []

    def kernel(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size):
        windows.append(window_size)
        left = window_size[0]
        return arithmetic(q, k, v, cu_q, cu_k, max_q, max_k, 0.0, scale, causal=True, window_size=(left, left))

    monkeypatch.setattr(varlen_attention, "varlen_attn", kernel)
    monkeypatch.setattr(varlen_attention, "_TAKES_GROUPS", False)
    monkeypatch.setattr(segment_attention, "serves_varlen", lambda query, dropout: True)
    return windows


def heads(groups, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(2, number, sum(LENGTHS), 8, generator=draw) for number in (2 * groups, 2, 2)]


def packed():
    row = [number for number, length in enumerate(LENGTHS, start=1) for _ in range(length)]
    return torch.tensor([row, row])


def boundaries():
    kwargs = boundary_kwargs(packed(), SEGMENT_SDPA)
    del kwargs["buckets"]
    return kwargs


def masked(groups, window):
    ids, places = packed(), torch.arange(sum(LENGTHS))
    mask = (ids[:, :, None] == ids[:, None, :]) & (places[:, None] >= places)
    if window is not None:
        mask &= places[:, None] - places < window
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    return sdpa_attention_forward(module, *heads(groups), mask[:, None], scaling=0.3)[0]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("window", [None, 2, 4, 100])
def test_it_computes_what_the_mask_says(groups, window, calls):
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    got, weights = segment_sdpa_forward(
        module, *heads(groups), None, scaling=0.3, sliding_window=window, **boundaries()
    )
    assert weights is None and len(calls) == 1
    torch.testing.assert_close(got, masked(groups, window), atol=1e-5, rtol=1e-5)


def test_rows_with_branches_and_rows_that_are_not_packed_do_without_it(calls):
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    segment_sdpa_forward(module, *heads(1), None, scaling=0.3, **boundary_kwargs(packed(), SEGMENT_SDPA))
    segment_sdpa_forward(module, *heads(1), None, scaling=0.3)
    assert not calls


def test_a_layer_that_is_not_causal_is_refused(calls):
    with pytest.raises(ValueError, match="is not causal"):
        segment_sdpa_forward(SimpleNamespace(num_key_value_groups=1, is_causal=False), *heads(1), None, **boundaries())


def test_a_compiler_finds_no_break_in_it(monkeypatch):
    def kernel(q, k, v, *boundaries, scale, window_size):
        return q * scale + k + v

    monkeypatch.setattr(varlen_attention, "varlen_attn", kernel)
    monkeypatch.setattr(varlen_attention, "_TAKES_GROUPS", False)
    # So that no GPU is asked.
    monkeypatch.setattr(varlen_attention, "_TAKES_A_WINDOW", False)

    def attend(query, key, value, boundaries):
        if not varlen_attention.has_varlen():
            query = query + 1
        assert not varlen_attention.serves_varlen(query, 0.0)
        return varlen_attention.varlen_attention(query, key, value, boundaries, 9, 0.3, None)

    arguments = (*heads(3), torch.tensor([0, 36], dtype=torch.int32))
    with torch.autocast("cpu", torch.bfloat16):
        compiled = torch.compile(attend, backend="eager", fullgraph=True)(*arguments)
        assert torch.equal(compiled, attend(*arguments)) and compiled.dtype == torch.bfloat16


def test_a_cpu_does_without_it():
    assert not varlen_attention.serves_varlen(torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16), 0.0)
    assert "buckets" in boundary_kwargs(packed(), SEGMENT_SDPA)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has this kernel for GPUs alone")
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_kernel_computes_what_the_mask_says(groups, window, autocast):
    dtype = torch.float32 if autocast else torch.bfloat16
    states = [each.cuda().to(dtype).requires_grad_() for each in heads(groups)]
    kwargs = boundary_kwargs(packed().cuda(), SEGMENT_SDPA)
    assert "buckets" not in kwargs
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        got, _ = segment_sdpa_forward(module, *states, None, scaling=0.3, sliding_window=window, **kwargs)
    torch.testing.assert_close(got.float().cpu(), masked(groups, window), atol=0.05, rtol=0.05)
    got.float().sum().backward()
    assert all(each.grad.isfinite().all() for each in states)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="branches are left out only where there is a kernel")
def test_branches_keep_their_buckets_on_a_gpu():
    assert "buckets" in boundary_kwargs(torch.tensor([[1, 1, -1, -2]], device="cuda"), SEGMENT_SDPA)
    assert segments.has_varlen()
