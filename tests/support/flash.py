"""Variable-length flash attention's interface with plain arithmetic behind it, so that what transformers hands to the kernel
can be tested where there is none."""

import functools
from collections.abc import Callable

import torch
from transformers import modeling_flash_attention_utils


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """`(tokens, heads, head_dim)` of several rows laid end to end, each attending within its own boundaries."""
    assert causal and dropout_p == 0 and torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert cu_seqlens_q.dtype == torch.int32 and cu_seqlens_q[0] == 0 and cu_seqlens_q[-1] == q.shape[0]
    lengths = cu_seqlens_q.diff().tolist()
    assert max_seqlen_q == max_seqlen_k == max(lengths) and min(lengths) > 0
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    outputs = []
    for query, key, value in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        scores = torch.einsum("qhd,khd->hqk", query, key) * softmax_scale
        index = torch.arange(query.shape[0])
        distance = index[:, None] - index[None, :]
        hidden = distance < 0
        if window_size[0] >= 0:
            hidden = hidden | (distance > window_size[0])
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value))
    return torch.cat(outputs)


def dense_attention(*_, **__):
    raise AssertionError("Dense flash attention was called, which knows no segments.")


def torch_varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """The same by the flash attention that torch itself has for GPUs."""
    from torch.nn.attention.varlen import varlen_attn

    assert causal and dropout_p == 0
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return varlen_attn(
        *(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k),
        scale=softmax_scale,
        window_size=(window_size[0], 0),
    )


def use_flash(monkeypatch, decoder, kernel: Callable = varlen_attention) -> list[torch.Tensor]:
    """Gives `decoder` "flash_attention_2" with a kernel from above; returns the list that its boundaries go to."""
    calls = []

    # transformers reads off the kernel's arguments what it can do.
    @functools.wraps(kernel)
    def recorded(q, k, v, cu_seqlens_q, **kwargs):
        calls.append(cu_seqlens_q)
        return kernel(q, k, v, cu_seqlens_q, **kwargs)

    functions = (dense_attention, recorded, None, None, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *_, **__: functions)
    # Not through `set_attn_implementation`, which looks for the package.
    decoder.config._attn_implementation = "flash_attention_2"
    return calls
