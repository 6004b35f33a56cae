"""The variable-length flash attention that torch itself has for GPUs, since torch 2.11. Its time grows with the sum of the
squared lengths of a row's segments, and it needs neither a mask nor padding."""

import inspect
from typing import Any

import torch


try:
    from torch.nn.attention import varlen
except ImportError:
    # torch before 2.10.
    varlen_attn: Any = None
else:
    varlen_attn = varlen.varlen_attn

_PARAMETERS = () if varlen_attn is None else tuple(inspect.signature(varlen_attn).parameters)
# Read here, because a compiler cannot look at signatures.
_TAKES_A_WINDOW, _TAKES_GROUPS = "window_size" in _PARAMETERS, "enable_gqa" in _PARAMETERS


@torch.compiler.assume_constant_result
def has_varlen() -> bool:
    """Where there is a GPU: whether torch has the kernel, with a scale and a window, and the GPU is of NVIDIA's Ampere
    generation or newer."""
    return _TAKES_A_WINDOW and torch.version.cuda is not None and torch.cuda.get_device_capability() >= (8, 0)


def serves_varlen(query: torch.Tensor, dropout: float) -> bool:
    """
    Whether the kernel computes attention for these queries: in half precision, without dropout.

    Args:
        query: `(batch, heads, sequence, head_dim)`.
        dropout: probability that an attention weight is dropped.
    """
    head_dim = query.shape[-1]
    supported = head_dim % 8 == 0 and head_dim <= 256 and not dropout
    return supported and query.is_cuda and has_varlen() and _dtype(query) in (torch.bfloat16, torch.float16)


def _dtype(query: torch.Tensor) -> torch.dtype:
    # Rotary positions leave queries and keys in float32 under autocast, which does not know this kernel.
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    longest: int,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """
    Causal attention within each segment.

    Args:
        query: `(batch, heads, sequence, head_dim)`.
        key, value: `(batch, key-value heads, sequence, head_dim)`.
        boundaries: `(segments + 1,)` in int32, where segments begin and end in the flattened `(batch * sequence)`.
        longest: length of the longest segment in tokens.
        scaling: factor of the scores; unset, one over the root of `head_dim`.
        sliding_window: number of tokens that a token attends to, itself included. Unset, it is not limited.

    Returns:
        `(batch, sequence, heads, head_dim)`.
    """
    batch, heads, length, _ = query.shape
    groups = heads // key.shape[1]
    grouped: dict[str, Any] = {}
    if groups > 1 and _TAKES_GROUPS:
        grouped["enable_gqa"] = True
    elif groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    flat = [each.to(_dtype(query)).transpose(1, 2).flatten(0, 1) for each in (query, key, value)]
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    attended: Any = varlen_attn(
        *flat, boundaries, boundaries, longest, longest, scale=scaling, window_size=window, **grouped
    )
    return attended.unflatten(0, (batch, length))
