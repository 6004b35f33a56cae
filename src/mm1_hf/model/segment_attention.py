"""Attention over packed rows segment by segment, for devices without variable-length kernels. Under a mask, torch's fused
attention computes every pair of a row's tokens, most of which lie in two segments.

Importing this registers it with transformers under the name `"segment_sdpa"`, for decoders that could run flash attention.
"""

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


SEGMENT_SDPA = "segment_sdpa"


def segment_sdpa_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    transformers' `"sdpa"`, and with boundaries of segments, as flash attention is given them, causal attention within each
    segment. Segments of similar length are padded to a power of two and computed together.

    Args:
        module: the attention layer.
        query: `(batch, heads, sequence, head_dim)`.
        key, value: `(batch, key-value heads, sequence, head_dim)`.
        attention_mask: what `"sdpa"` is given; it says the same as the boundaries, and is not read beside them.
        dropout, scaling: of the attention's weights and scores.
        sliding_window: how many tokens back are seen. One shorter than the longest segment is left to the mask.
        cu_seq_lens_q: `(segments + 1,)`, boundaries in the flattened `(batch * sequence)`.
        max_length_q: tokens of the longest segment.
        kwargs: what else transformers gives to attention functions.

    Returns:
        `(batch, sequence, heads, head_dim)`, and no weights.
    """
    if cu_seq_lens_q is None or (sliding_window is not None and sliding_window < (max_length_q or 0)):
        kwargs |= {"sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    tokens, slots, shapes = _buckets(cu_seq_lens_q)
    gathered = [heads.transpose(1, 2).flatten(0, 1).index_select(0, tokens) for heads in (query, key, value)]
    sizes = [segments * length for segments, length in shapes]
    attended = []
    for shape, *parts in zip(shapes, *(heads.split(sizes) for heads in gathered), strict=True):
        parts = [heads.unflatten(0, shape).transpose(1, 2) for heads in parts]
        output, _ = sdpa_attention_forward(module, *parts, None, dropout, scaling, is_causal=True)
        attended.append(output.flatten(0, 1))
    batch, _, length, _ = query.shape
    return torch.cat(attended).index_select(0, slots).unflatten(0, (batch, length)), None


def _buckets(boundaries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
    """
    Sorts segments by the next power of two of their lengths.

    Args:
        boundaries: `(segments + 1,)`.

    Returns:
        The token of each slot `(slots,)`, where a slot behind a segment's end has its last token, which no token before it
        sees; the slot of each token `(tokens,)`; and the segments and the length of each bucket.
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
    return token, slots, shapes


AttentionInterface.register(SEGMENT_SDPA, segment_sdpa_forward)
# For rows that are not packed, and for sliding windows.
AttentionMaskInterface.register(SEGMENT_SDPA, sdpa_mask)
