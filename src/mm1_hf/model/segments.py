"""Packed rows: several examples in one row. `segment_ids` `(batch, sequence)` number the examples, 0 marks padding.

Packed rows need one full forward pass without a cache. Nothing here writes an attention mask: where positions restart and
neither a padding mask nor a cache is given, transformers builds the block-diagonal mask itself, and on that path it also
supports sliding windows, flex attention and variable-length flash attention.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.utils.generic import is_flash_attention_requested

from .segment_attention import SEGMENT_SDPA, SegmentBuckets, segment_buckets


def _starts(values: torch.Tensor, step: int) -> torch.Tensor:
    """`(batch, sequence)`, true where a value is not its left neighbour's plus `step`, and in the first column."""
    first = torch.ones_like(values[:, :1], dtype=torch.bool)
    return torch.cat([first, values[:, 1:] != values[:, :-1] + step], dim=1)


def _marks_padding(attention_mask: object | None) -> bool:
    """Whether a mask only marks padding. A 4-D mask, flex's, or one per layer type also says who attends to whom."""
    return attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2)


def segment_positions(segment_ids: torch.Tensor) -> torch.Tensor:
    """
    Positions that restart at 0 with every segment.

    Args:
        segment_ids: `(batch, sequence)`, 0 for padding.

    Returns:
        `(batch, sequence)`.

    Example:

    ```python
    >>> import torch
    >>> segment_positions(torch.tensor([[1, 1, 1, 2, 2, 0]])).tolist()
    [[0, 1, 2, 0, 1, 0]]

    ```
    """
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    start = torch.where(_starts(segment_ids, step=0), index, 0).cummax(dim=1).values
    return index - start


def segments_from_positions(
    position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, shape: tuple[int, ...]
) -> torch.Tensor | None:
    """
    The segments `(batch, sequence)` that restarting `position_ids` stand for. Positions outside `attention_mask` are
    padding. Without positions there are no segments, nor where the mask already says who attends to whom.

    Args:
        position_ids: `(batch, sequence)`, or `(1, sequence)` if all rows have the same.
        attention_mask: `(batch, sequence)`, 0 for padding.
        shape: `(batch, sequence)`.

    Returns:
        Segments counted from 1 in each row, 0 for padding; `None` if there are none.

    Example:

    ```python
    >>> import torch
    >>> segments_from_positions(torch.tensor([[0, 1, 2, 0, 1]]), None, (1, 5)).tolist()
    [[1, 1, 1, 2, 2]]

    ```
    """
    if position_ids is None or not _marks_padding(attention_mask):
        return None
    return mask_padding(_starts(position_ids.expand(shape), step=1).cumsum(dim=1), attention_mask)


def mask_padding(segment_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """
    Sets segments to 0 where the mask marks padding.

    Args:
        segment_ids: `(batch, sequence)`.
        attention_mask: `(batch, sequence)`, 0 for padding.

    Returns:
        `(batch, sequence)`.
    """
    return segment_ids if attention_mask is None else segment_ids * attention_mask.to(segment_ids)


def require_packed_inputs(
    segment_ids: torch.Tensor,
    shape: tuple[int, ...],
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
) -> None:
    """
    Refuses arguments that contradict packed rows.

    Args:
        segment_ids: `(batch, sequence)`, 0 for padding.
        shape: `(batch, sequence)` of the tokens.
        attention_mask: `(batch, sequence)`, 0 for padding, or `None`.
        past_key_values: an empty cache, or `None`.

    Raises:
        ValueError: the segments have another shape than the tokens, the mask says more than where padding is, or the cache
            holds tokens.
    """
    if segment_ids.shape != shape:
        raise ValueError(
            f"segment_ids has the shape {tuple(segment_ids.shape)}, and the tokens are {tuple(shape)}: give every token the "
            "number of its segment, and padding 0."
        )
    if not _marks_padding(attention_mask):
        given = tuple(attention_mask.shape) if hasattr(attention_mask, "shape") else type(attention_mask).__name__
        raise ValueError(
            f"segment_ids say which tokens attend to which, and so does this attention_mask ({given}). Leave out one of "
            "them, or give a mask (batch, sequence) that marks padding."
        )
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        raise ValueError(
            f"Packed rows (segment_ids) need one full forward pass without a cache, but past_key_values holds "
            f"{past_key_values.get_seq_length()} tokens. Leave out past_key_values, or pass one example per row."
        )


def boundary_kwargs(segment_ids: torch.Tensor, attn_implementation: str | None) -> dict[str, Any]:
    """
    The arguments that keep the segments of several rows apart in variable-length attention, flash or
    [`mm1_hf.model.segment_attention`]. Flash attention follows restarting positions by itself only in a batch of one row, so
    it is given the boundaries over the whole flattened batch.

    The host waits for the device once, because the number of segments and the longest one decide shapes.

    Args:
        segment_ids: `(batch, sequence)`, 0 for padding.
        attn_implementation: attention implementation of the decoder.

    Returns:
        `cu_seq_lens_q` and `cu_seq_lens_k` `(segments + 1,)`, and the length of the longest segment in tokens under
        `max_length_q` and `max_length_k`. For `"segment_sdpa"` also the `buckets` that its layers share. Empty for other
        attention implementations.
    """
    # Not by the name's prefix: without the flash-attn package, the name becomes that of a kernel on the Hub.
    flash = is_flash_attention_requested(requested_attention_implementation=attn_implementation)
    if not flash and attn_implementation != SEGMENT_SDPA:
        return {}
    # What follows runs on the host, so that this copy is the only one that waits.
    starts = _starts(segment_ids, step=0).flatten().cpu().nonzero().flatten()
    boundaries = torch.cat([starts, starts.new_tensor([segment_ids.numel()])]).to(torch.int32)
    longest = int(boundaries.diff().max())
    on_device = boundaries.to(segment_ids.device, non_blocking=True)
    kwargs: dict[str, Any] = {
        "cu_seq_lens_q": on_device,
        "cu_seq_lens_k": on_device,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    if attn_implementation == SEGMENT_SDPA:
        tokens, slots, shapes = segment_buckets(boundaries)
        tokens, slots = (index.to(segment_ids.device, non_blocking=True) for index in (tokens, slots))
        kwargs["buckets"] = SegmentBuckets(tokens, slots, shapes)
    return kwargs
