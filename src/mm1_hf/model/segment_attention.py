"""
Attention over packed rows, computed segment by segment. Under a mask, torch's fused attention computes every pair of a row's
tokens, although most pairs lie in two different segments. On a GPU, [`mm1_hf.model.varlen_attention`] computes it if torch
has that kernel.

Importing this module registers it with transformers as the attention implementation `"segment_sdpa"`. It is for decoders
that support flash attention, because they pass the boundaries of segments on to their attention function.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .varlen_attention import serves_varlen, varlen_attention


SEGMENT_SDPA = "segment_sdpa"


# Segments are padded to multiples of at least this number of tokens.
_LEAST_STEP = 8


class SegmentBuckets(NamedTuple):
    """
    Segments sorted into buckets by their lengths, rounded up: between two powers of two there are four steps, of at least 8
    tokens. Each segment gets that many slots, so that a bucket is one batch of equal lengths. The keys of a branch begin
    with its shared beginning, whose length is rounded up in the same way.

    Args:
        queries:
            `(query slots,)`, the flat index of the token in each slot. Slots after a segment's end repeat its last token;
            no token before attends to them.
        keys: `(key slots,)`, the same for the keys and values.
        slots: `(tokens,)`, the query slot of each token.
        shapes: number of segments, query slots per segment and key slots per segment, of each bucket.
        masks:
            for each bucket of branches `(segments, 1, query slots, key slots)`, true where a query attends to a key;
            otherwise `None`, for causal attention.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    slots: torch.Tensor
    shapes: list[tuple[int, int, int]]
    masks: list[torch.Tensor | None]

    def to(self, device: torch.device) -> "SegmentBuckets":
        """
        Copies the buckets without making the host wait.

        Args:
            device: device of the copies.
        """
        indices = (self.queries, self.keys, self.slots)
        queries, keys, slots = (index.to(device, non_blocking=True) for index in indices)
        masks = [None if mask is None else mask.to(device, non_blocking=True) for mask in self.masks]
        return SegmentBuckets(queries, keys, slots, self.shapes, masks)


def _padded(lengths: torch.Tensor) -> torch.Tensor:
    step = (lengths.clamp(min=1).double().log2().ceil().exp2() / 4).long().clamp(min=_LEAST_STEP)
    return (lengths + step - 1) // step * step


def segment_buckets(boundaries: torch.Tensor, shared: torch.Tensor | None = None) -> SegmentBuckets:
    """
    Sorts segments into buckets. The shapes are read by the host: on an accelerator this waits for the device, unless
    `boundaries` are on the CPU.

    Args:
        boundaries: `(segments + 1,)`, where segments begin and end in the flattened `(batch * sequence)`.
        shared:
            `(segments, 2)`, where the shared beginning of each segment begins, and its length: 0 for a segment that is not
            a branch. Unset, there are no branches.
    """
    starts, lengths = boundaries[:-1].long(), boundaries.diff().long()
    if shared is None:
        shared = torch.zeros_like(starts)[:, None].expand(-1, 2)
    padded, padded_shared = _padded(lengths), _padded(shared[:, 1])
    queries, keys, filled, shapes = [], [], [], []
    masks: list[torch.Tensor | None] = []
    for length, shared_length in torch.stack([padded, padded_shared], dim=1).unique(dim=0).tolist():
        chosen = (padded == length) & (padded_shared == shared_length)
        places = torch.arange(length, device=boundaries.device)
        last = lengths[chosen, None] - 1
        own = starts[chosen, None] + places.minimum(last)
        queries.append(own.flatten())
        filled.append((places <= last).flatten())
        shapes.append((len(last), length, shared_length + length))
        if not shared_length:
            keys.append(own.flatten())
            masks.append(None)
            continue
        shared_places = torch.arange(shared_length, device=boundaries.device)
        begin, last = shared[chosen].unsqueeze(1).unbind(dim=-1)
        keys.append(torch.cat([begin + shared_places.minimum(last - 1), own], dim=1).flatten())
        is_shared = (shared_places < last)[:, None].expand(-1, length, -1)
        causal = (places[:, None] >= places).expand(len(last), -1, -1)
        masks.append(torch.cat([is_shared, causal], dim=-1)[:, None])
    token, slot = torch.cat(queries), torch.cat(filled).nonzero().squeeze(1)
    slots = torch.empty_like(slot)
    slots[token[slot]] = slot
    return SegmentBuckets(token, torch.cat(keys), slots, shapes, masks)


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
    each segment. Without `buckets`, torch's variable-length kernel computes it where there is one, in half precision.
    Otherwise, segments of similar length are padded to the same power of two and computed together. A branch also
    attends to its shared beginning, if there are `buckets`, which alone know of branches.

    Args:
        module: the attention layer.
        query: `(batch, heads, sequence, head_dim)`.
        key, value: `(batch, key-value heads, sequence, head_dim)`.
        attention_mask: the mask that `"sdpa"` would be given. Beside boundaries it says the same, and is not read.
        dropout, scaling: of the attention weights and scores, as `"sdpa"` takes them.
        is_causal: unset, the layer's own `is_causal`.
        sliding_window: how many tokens back a token attends to. If it is shorter than the longest segment, `"sdpa"` under
            the mask computes the attention, unless the variable-length kernel does.
        cu_seq_lens_q: `(segments + 1,)`, where segments begin and end in the flattened `(batch * sequence)`.
        max_length_q: length of the longest segment in tokens.
        buckets: [`segment_buckets`] of these boundaries; unset, they are computed here, in every layer anew, if
            there is no variable-length kernel.
        kwargs: what else transformers gives to attention functions.

    Returns:
        `(batch, sequence, heads, head_dim)`, and `None` in place of attention weights.

    Raises:
        ValueError: boundaries are given to a layer that is not causal.
    """
    by_kernel = buckets is None and max_length_q is not None and serves_varlen(query, dropout)
    is_cut = sliding_window is not None and sliding_window < (max_length_q or 0)
    if cu_seq_lens_q is None or (is_cut and not by_kernel):
        kwargs |= {"sliding_window": sliding_window, "is_causal": is_causal}
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise ValueError(
            f"{SEGMENT_SDPA} computes causal attention within each segment, but {type(module).__name__} is not causal "
            "(is_causal is False). Give the model attn_implementation='sdpa', which follows its mask."
        )
    if by_kernel:
        return varlen_attention(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window), None
    buckets = segment_buckets(cu_seq_lens_q) if buckets is None else buckets
    dtype = query.dtype
    if query.device.type == "cpu" and dtype is torch.bfloat16:
        # On CPUs torch's fused attention takes two to three times as long in bfloat16, forward and backward.
        query, key, value = query.float(), key.float(), value.float()
    heads = zip((query, key, value), (buckets.queries, buckets.keys, buckets.keys), strict=True)
    gathered = [each.transpose(1, 2).flatten(0, 1).index_select(0, tokens) for each, tokens in heads]
    sizes = [[shape[0] * shape[column] for shape in buckets.shapes] for column in (1, 2, 2)]
    attended = []
    parts_of = zip(*(each.split(size) for each, size in zip(gathered, sizes, strict=True)), strict=True)
    for (segments, *_), mask, parts in zip(buckets.shapes, buckets.masks, parts_of, strict=True):
        parts = [each.unflatten(0, (segments, -1)).transpose(1, 2) for each in parts]
        output, _ = sdpa_attention_forward(module, *parts, mask, dropout, scaling, is_causal=mask is None)
        attended.append(output.flatten(0, 1))
    batch, _, length, _ = query.shape
    return torch.cat(attended).to(dtype).index_select(0, buckets.slots).unflatten(0, (batch, length)), None


AttentionInterface.register(SEGMENT_SDPA, segment_sdpa_forward)
# Rows that are not packed, and sliding windows, are computed under a mask.
AttentionMaskInterface.register(SEGMENT_SDPA, sdpa_mask)
