"""Packed rows: several examples side by side in one row, told apart by `segment_ids` `(batch, sequence)`, 0 for padding.

Segments mean one full forward without a cache. Nothing here writes an attention mask: transformers builds the
block-diagonal one itself where positions restart and neither a padding mask nor a cache is given, and serves sliding
windows, flex and variable-length flash attention on that path.
"""

import torch
from transformers.cache_utils import Cache
from transformers.utils.generic import is_flash_attention_requested

from .segment_attention import SEGMENT_SDPA


def _starts(values: torch.Tensor, step: int) -> torch.Tensor:
    """Where a row's value is not its left neighbour's plus `step`: `(batch, sequence)`, true in the first column."""
    first = torch.ones_like(values[:, :1], dtype=torch.bool)
    return torch.cat([first, values[:, 1:] != values[:, :-1] + step], dim=1)


def _marks_padding(attention_mask: object | None) -> bool:
    """Whether a mask says nothing but which positions are padding; others (4-D, flex's, one per layer type) say more."""
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
    The segments `(batch, sequence)` that restarting `position_ids` stand for; positions outside `attention_mask` are
    padding. There are none without positions, or where a four-dimensional mask says already who sees whom.

    Args:
        position_ids: `(batch, sequence)`, or `(1, sequence)` for all rows alike.
        attention_mask: `(batch, sequence)`, 0 for padding.
        shape: `(batch, sequence)`.

    Returns:
        Segments counted from 1 in each row, 0 for padding; None where there are none.

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
    Segments with 0 where the mask marks padding.

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
    Refuses what does not go with packed rows.

    Args:
        segment_ids: `(batch, sequence)`, 0 for padding.
        shape: `(batch, sequence)` of the tokens.
        attention_mask: at most `(batch, sequence)`, 0 for padding.
        past_key_values: at most an empty cache.

    Raises:
        ValueError: segments of another shape than the tokens, or together with a ready-made mask of who sees whom or a cache
            that already holds tokens.
    """
    if segment_ids.shape != shape:
        raise ValueError(
            f"segment_ids has the shape {tuple(segment_ids.shape)}, and the tokens are {tuple(shape)}: give every token the "
            "number of its segment, 0 for padding."
        )
    if not _marks_padding(attention_mask):
        given = tuple(attention_mask.shape) if hasattr(attention_mask, "shape") else type(attention_mask).__name__
        raise ValueError(
            f"segment_ids say who sees whom, and so does this attention_mask ({given}). Leave out one of them, or give a "
            "mask (batch, sequence) that marks padding."
        )
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        raise ValueError(
            f"Packed rows (segment_ids) are one full forward without a cache, but past_key_values holds "
            f"{past_key_values.get_seq_length()} tokens. Leave out past_key_values, or pass one example per row."
        )


def boundary_kwargs(segment_ids: torch.Tensor, attn_implementation: str | None) -> dict[str, torch.Tensor | int]:
    """
    What variable-length attention, flash or [`mm1_hf.model.segment_attention`], needs to keep the segments of several rows
    apart. Flash reads restarting positions by itself only for a single row, so the boundaries over the whole flattened
    batch are given.

    Args:
        segment_ids: `(batch, sequence)`, 0 for padding.
        attn_implementation: the decoder's.

    Returns:
        `cu_seq_lens_q` and `cu_seq_lens_k` `(segments + 1,)` and the longest segment's length under `max_length_q` and
        `max_length_k`, both in tokens; nothing for other attention implementations.
    """
    # Not by its first letters: without the flash-attn package the name becomes that of a kernel from the Hub.
    flash = is_flash_attention_requested(requested_attention_implementation=attn_implementation)
    if not flash and attn_implementation != SEGMENT_SDPA:
        return {}
    starts = _starts(segment_ids, step=0).flatten().nonzero().flatten()
    boundaries = torch.cat([starts, starts.new_tensor([segment_ids.numel()])])
    longest = int(boundaries.diff().max())
    boundaries = boundaries.to(torch.int32)
    return {
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
    }
