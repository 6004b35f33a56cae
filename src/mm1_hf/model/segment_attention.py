"""
Attention over packed rows, computed segment by segment, for devices without variable-length kernels. Under a mask, torch's
fused attention computes every pair of a row's tokens, although most pairs lie in two different segments.

Importing this module registers it with transformers as the attention implementation `"segment_sdpa"`. It is for decoders
that support flash attention, because they pass the boundaries of segments on to their attention function.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


SEGMENT_SDPA = "segment_sdpa"


class SegmentBuckets(NamedTuple):
    """
    Segments sorted into buckets by the next power of two of their lengths. Each segment gets that many slots, so that a
    bucket is one batch of equal lengths.

    Args:
        tokens:
            `(slots,)`, the flat index of the token in each slot. Slots after a segment's end repeat its last token; no
            token before attends to them.
        slots: `(tokens,)`, the slot of each token.
        shapes: number of segments and slots per segment, of each bucket.
    """

    tokens: torch.Tensor
    slots: torch.Tensor
    shapes: list[tuple[int, int]]


def segment_buckets(boundaries: torch.Tensor) -> SegmentBuckets:
    """
    Sorts segments into buckets. The shapes are read by the host: on an accelerator this waits for the device, unless
    `boundaries` are on the CPU.

    Args:
        boundaries: `(segments + 1,)`, where segments begin and end in the flattened `(batch * sequence)`.
    """
    starts, lengths = boundaries[:-1].long(), boundaries.diff().long()
    padded = lengths.double().log2().ceil().exp2().long()
    tokens, filled, shapes = [], [], []
    for length in padded.unique().tolist():
        chosen = padded == length
        places = torch.arange(length, device=boundaries.device)
        last = lengths[chosen, None] - 1
        tokens.append((starts[chosen, None] + places.minimum(last)).flatten())
        filled.append((places <= last).flatten())
        shapes.append((len(last), length))
    token, slot = torch.cat(tokens), torch.cat(filled).nonzero().squeeze(1)
    slots = torch.empty_like(slot)
    slots[token[slot]] = slot
    return SegmentBuckets(token, slots, shapes)


def segment_sdpa_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    buckets: SegmentBuckets | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    transformers' `"sdpa"`; where boundaries of segments are given, as for flash attention, it is causal attention within
    each segment. Segments of similar length are padded to the same power of two and computed together.

    Args:
        module: the attention layer.
        query: `(batch, heads, sequence, head_dim)`.
        key, value: `(batch, key-value heads, sequence, head_dim)`.
        attention_mask: the mask that `"sdpa"` would be given. Beside boundaries it says the same, and is not read.
        dropout, scaling: of the attention weights and scores, as `"sdpa"` takes them.
        is_causal: unset, the layer's own `is_causal`.
        sliding_window: how many tokens back a token attends to. If it is shorter than the longest segment, `"sdpa"` under
            the mask computes the attention.
        cu_seq_lens_q: `(segments + 1,)`, where segments begin and end in the flattened `(batch * sequence)`.
        max_length_q: length of the longest segment in tokens.
        buckets: [`segment_buckets`] of these boundaries; unset, they are computed here, in every layer anew.
        kwargs: what else transformers gives to attention functions.

    Returns:
        `(batch, sequence, heads, head_dim)`, and `None` in place of attention weights.

    Raises:
        ValueError: boundaries are given to a layer that is not causal.
    """
    if cu_seq_lens_q is None or (sliding_window is not None and sliding_window < (max_length_q or 0)):
        kwargs |= {"sliding_window": sliding_window, "is_causal": is_causal}
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise ValueError(
            f"{SEGMENT_SDPA} computes causal attention within each segment, but {type(module).__name__} is not causal "
            "(is_causal is False). Give the model attn_implementation='sdpa', which follows its mask."
        )
    tokens, slots, shapes = segment_buckets(cu_seq_lens_q) if buckets is None else buckets
    gathered = [heads.transpose(1, 2).flatten(0, 1).index_select(0, tokens) for heads in (query, key, value)]
    sizes = [segments * length for segments, length in shapes]
    attended = []
    for shape, *parts in zip(shapes, *(heads.split(sizes) for heads in gathered), strict=True):
        parts = [heads.unflatten(0, shape).transpose(1, 2) for heads in parts]
        output, _ = sdpa_attention_forward(module, *parts, None, dropout, scaling, is_causal=True)
        attended.append(output.flatten(0, 1))
    batch, _, length, _ = query.shape
    return torch.cat(attended).index_select(0, slots).unflatten(0, (batch, length)), None


AttentionInterface.register(SEGMENT_SDPA, segment_sdpa_forward)
# Rows that are not packed, and sliding windows, are computed under a mask.
AttentionMaskInterface.register(SEGMENT_SDPA, sdpa_mask)
