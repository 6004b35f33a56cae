"""Packed rows: several examples in one row. `segment_ids` `(batch, sequence)` number the examples, 0 marks padding.

Neighbouring positions with the same number form a run. A run with a positive number is a segment. A run with a negative
number is a branch of the last segment before it: its tokens also see that segment, which is then the shared beginning of
its branches, but no other branch, and their positions go on from the end of the shared beginning. So
`[1, 1, 1, -1, -1, -2, 2, 2, 0]` holds the examples `1 1 1 -1 -1` and `1 1 1 -2`, which share three tokens, then the example
`2 2`, and one position of padding. The first token of a branch may be a target: the last token of the shared beginning
predicts it.

Packed rows need one full forward pass without a cache. Where there are no branches, a decoder of another class gets no
attention mask: where positions restart and neither a padding mask nor a cache is given, transformers builds the
block-diagonal mask itself, and on that path it also supports sliding windows, flex attention and variable-length flash
attention.
"""

from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from .segment_attention import SEGMENT_SDPA, segment_buckets
from .varlen_attention import has_varlen


def _starts(values: torch.Tensor, step: int) -> torch.Tensor:
    """`(batch, sequence)`, true where a value is not its left neighbour's plus `step`, and in the first column."""
    first = torch.ones_like(values[:, :1], dtype=torch.bool)
    return torch.cat([first, values[:, 1:] != values[:, :-1] + step], dim=1)


def _marks_padding(attention_mask: object | None) -> bool:
    """Whether a mask only marks padding. A 4-D mask, flex's, or one per layer type also says who attends to whom."""
    return attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2)


class Runs(NamedTuple):
    """
    The runs of a packed row, for every position of the row. All fields have the shape `(batch, sequence)`.

    Args:
        begins: whether a run begins at the position.
        is_branch: whether the position is in a branch.
        start: column where the position's run begins.
        segment: column where its segment begins; for a branch, the shared beginning.
        shared_end: column after the shared beginning of a branch; has no meaning outside of branches.
    """

    begins: torch.Tensor
    is_branch: torch.Tensor
    start: torch.Tensor
    segment: torch.Tensor
    shared_end: torch.Tensor

    @property
    def shared_length(self) -> torch.Tensor:
        """Number of tokens of the shared beginning, `(batch, sequence)`; 0 outside of branches."""
        return torch.where(self.is_branch, self.shared_end - self.segment, 0)


def find_runs(segment_ids: torch.Tensor) -> Runs:
    """
    Finds the segments and branches of packed rows.

    Args:
        segment_ids: `(batch, sequence)`, 0 for padding, negative for branches.
    """
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    begins, is_branch = _starts(segment_ids, step=0), segment_ids < 0
    after_branch = torch.nn.functional.pad(is_branch[:, :-1], (1, 0))

    def last(places: torch.Tensor) -> torch.Tensor:
        return torch.where(places, index, 0).cummax(dim=1).values

    return Runs(begins, is_branch, last(begins), last(begins & ~is_branch), last(begins & is_branch & ~after_branch))


def segment_positions(segment_ids: torch.Tensor) -> torch.Tensor:
    """
    Positions that restart at 0 with every segment, and in branches go on from the end of the shared beginning.

    Args:
        segment_ids: `(batch, sequence)`, 0 for padding, negative for branches.

    Returns:
        `(batch, sequence)`.

    Example:

    ```python
    >>> import torch
    >>> segment_positions(torch.tensor([[1, 1, 1, 2, 2, -2, -2, -3, 0]])).tolist()
    [[0, 1, 2, 0, 1, 2, 3, 2, 0]]

    ```
    """
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    runs = find_runs(segment_ids)
    return index - runs.start + runs.shared_length


def preceding_columns(segment_ids: torch.Tensor) -> torch.Tensor:
    """
    The column of the token that precedes each token in its example, and so predicts it: the column to the left; for the
    first token of a branch, the last column of the shared beginning.

    Args:
        segment_ids: `(batch, sequence)`, 0 for padding, negative for branches.

    Returns:
        `(batch, sequence)`. The first token of a segment has none; its value is the column to the left.

    Example:

    ```python
    >>> import torch
    >>> preceding_columns(torch.tensor([[1, 1, -1, -1, -2]])).tolist()
    [[-1, 0, 1, 2, 1]]

    ```
    """
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    runs = find_runs(segment_ids)
    return torch.where(runs.begins & runs.is_branch, runs.shared_end, index) - 1


def example_counts(segment_ids: torch.Tensor) -> torch.Tensor:
    """
    The number of examples that each token belongs to: a shared beginning belongs to one for each of its branches.

    Args:
        segment_ids: `(batch, sequence)`, 0 for padding, negative for branches.

    Returns:
        `(batch, sequence)`, 0 at padding.

    Example:

    ```python
    >>> import torch
    >>> example_counts(torch.tensor([[1, 1, -1, -1, -2, 2, 0]])).tolist()
    [[2, 2, 1, 1, 1, 1, 0]]

    ```
    """
    runs = find_runs(segment_ids)
    branches = torch.zeros_like(segment_ids).scatter_add(
        1, runs.segment, (runs.begins & runs.is_branch).to(segment_ids)
    )
    shared_by = torch.where(runs.is_branch, 1, branches.gather(1, runs.segment).clamp(min=1))
    return torch.where(segment_ids == 0, 0, shared_by)


def has_branches(segment_ids: torch.Tensor) -> bool:
    """
    Whether any of the rows has a branch. The host waits for the device.

    Args:
        segment_ids: `(batch, sequence)`, 0 for padding, negative for branches.
    """
    return not bool((segment_ids >= 0).all())


def packed_mask(
    segment_ids: torch.Tensor, config: PreTrainedConfig, dtype: torch.dtype, window: int | None = None
) -> Any:
    """
    The attention mask of packed rows, in the form that the decoder's attention implementation takes.

    Args:
        segment_ids: `(batch, sequence)`, 0 for padding, negative for branches.
        config: configuration of the decoder. Only its attention implementation is used.
        dtype: dtype of the decoder's computation, which a mask of `"eager"` attention has.
        window:
            number of positions back, its own included, that a token attends to. Distances are those of the positions, not
            of the columns. Unset, it is not limited.

    Returns:
        A mask `(batch, 1, sequence, sequence)`, or a `BlockMask` for flex attention.
    """
    runs, positions = find_runs(segment_ids), segment_positions(segment_ids)
    run = runs.begins.cumsum(dim=1)

    def sees(row: Any, head: Any, query: Any, key: Any) -> Any:
        is_shared = (runs.segment[row, query] == runs.segment[row, key]) & ~runs.is_branch[row, key]
        seen = (key <= query) & (is_shared | (run[row, query] == run[row, key]))
        return seen if window is None else seen & (positions[row, query] - positions[row, key] < window)

    batch, length = segment_ids.shape
    return ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation](
        batch_size=batch,
        q_length=length,
        kv_length=length,
        mask_function=sees,
        allow_is_causal_skip=False,
        dtype=dtype,
        config=config,
        device=segment_ids.device,
    )


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
        segment_ids: `(batch, sequence)`, 0 for padding, negative for branches.
        attn_implementation: attention implementation of the decoder.

    Returns:
        `cu_seq_lens_q` and `cu_seq_lens_k` `(runs + 1,)`, and the length of the longest example in tokens under
        `max_length_q` and `max_length_k`. For `"segment_sdpa"` also the `buckets` that its layers share, where they are not
        left to a variable-length kernel. Empty for other attention implementations.

    Raises:
        ValueError: there are branches, and the attention is flash attention, which only knows where segments begin and end.
    """
    # Not by the name's prefix: without the flash-attn package, the name becomes that of a kernel on the Hub.
    flash = is_flash_attention_requested(requested_attention_implementation=attn_implementation)
    if not flash and attn_implementation != SEGMENT_SDPA:
        return {}
    # What follows runs on the host, so that this copy is the only one that waits.
    on_host = segment_ids.cpu()
    if flash and has_branches(on_host):
        raise ValueError(
            f"These rows have branches (negative segment_ids), which {attn_implementation} cannot compute: it only knows "
            "where segments begin and end. Load the model with attn_implementation='sdpa', 'segment_sdpa' or "
            "'flex_attention', or give every example a segment of its own."
        )
    runs = find_runs(on_host)
    starts = runs.begins.flatten().nonzero().flatten()
    boundaries = torch.cat([starts, starts.new_tensor([segment_ids.numel()])]).to(torch.int32)
    shared_lengths = runs.shared_length.flatten()[starts]
    longest = int((boundaries.diff() + shared_lengths).max())
    on_device = boundaries.to(segment_ids.device, non_blocking=True)
    kwargs: dict[str, Any] = {
        "cu_seq_lens_q": on_device,
        "cu_seq_lens_k": on_device,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    if attn_implementation == SEGMENT_SDPA and not (segment_ids.is_cuda and has_varlen() and not shared_lengths.any()):
        row_starts = starts - starts % segment_ids.shape[1]
        shared = torch.stack([row_starts + runs.segment.flatten()[starts], shared_lengths], dim=1)
        kwargs["buckets"] = segment_buckets(boundaries, shared).to(segment_ids.device)
    return kwargs
