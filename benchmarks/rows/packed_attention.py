"""
Causal attention within the segments of a packed row, forward and backward. The pattern of lengths repeats with the row's
length, so that the sum of squared lengths grows in proportion to the row, and the square of the row's length does not matter
to a good implementation.
"""

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from benchmarks.measuring import Case, Report, empty, interleaved, peak_memory
from benchmarks.scales import Scale
from mm1_hf.accounting.flops import causal_pairs
from mm1_hf.model.segment_attention import SEGMENT_SDPA, segment_buckets
from mm1_hf.model.segments import boundary_kwargs, segment_positions


# Shares of a sixteenth of the shortest row that is not tiny, 2048 positions.
PATTERN = (0.35, 0.25, 0.15, 0.1, 0.08, 0.07)


def lengths_of(tokens: int, shortest: int) -> list[int]:
    """Lengths of the segments of a row: the pattern, repeated every `shortest` tokens."""
    pattern = [int(share * shortest) for share in PATTERN[:-1]]
    pattern.append(shortest - sum(pattern))
    return pattern * (tokens // shortest)


class Row:
    """
    Queries, keys and values of one row.

    Args:
        scale: the sizes of heads.
        tokens: length of the row.
    """

    def __init__(self, scale: Scale, tokens: int):
        text = scale.text
        self.lengths = lengths_of(tokens, scale.attention_tokens[0])
        numbers = torch.arange(1, len(self.lengths) + 1).repeat_interleave(torch.tensor(self.lengths))
        self.segments = numbers[None].to(scale.device)
        heads = (text["num_attention_heads"], text["num_key_value_heads"], text["num_key_value_heads"])
        self.states = [
            torch.randn(
                1, number, tokens, text["head_dim"], device=scale.device, dtype=scale.dtype, requires_grad=True
            )
            for number in heads
        ]
        self.module = SimpleNamespace(num_key_value_groups=heads[0] // heads[1], is_causal=True, training=True)

    def mask(self, implementation: str) -> Any:
        """What transformers makes for packed rows from restarting positions."""
        run, positions = self.segments, segment_positions(self.segments)

        def sees(row: Any, head: Any, query: Any, key: Any) -> Any:
            return (run[row, query] == run[row, key]) & (positions[row, query] >= positions[row, key])

        length = self.segments.shape[1]
        return ALL_MASK_ATTENTION_FUNCTIONS[implementation](
            batch_size=1,
            q_length=length,
            kv_length=length,
            mask_function=sees,
            allow_is_causal_skip=False,
            device=self.segments.device,
        )

    def step(self, implementation: str, with_backward: bool, buckets: bool = False) -> Case:
        """Forward and backward; the mask, or what stands for it, is made once, as for all layers of a model."""
        function = AttentionInterface()[implementation]
        kwargs = boundary_kwargs(self.segments, implementation)
        if buckets:
            kwargs["buckets"] = segment_buckets(kwargs["cu_seq_lens_q"].cpu()).to(self.segments.device)
        mask = None if kwargs else self.mask(implementation)

        def run() -> None:
            output, _ = function(self.module, *self.states, mask, scaling=self.states[0].shape[-1] ** -0.5, **kwargs)
            if with_backward:
                for each in self.states:
                    each.grad = None
                output.backward(output.detach())

        return run


def measure(scale: Scale, report: Report) -> None:
    on_gpu = scale.device.type == "cuda"
    width = scale.text["num_attention_heads"] * scale.text["head_dim"]
    for tokens in scale.attention_tokens:
        row = Row(scale, tokens)
        ways = {"sdpa": {}, SEGMENT_SDPA: {}}
        if on_gpu:
            ways |= {"flex_attention": {}, "segment_sdpa, buckets": {"buckets": True}}
        makers = {name: ("segment_sdpa" if "buckets" in name else name, extra) for name, extra in ways.items()}
        cases: dict[str, Case] = {}
        for name, (implementation, extra) in makers.items():
            try:
                cases[name] = row.step(implementation, with_backward=True, **extra)
            except Exception as error:
                report.add(
                    "packed attention", {"tokens": tokens}, name, error=f"{type(error).__name__}: {error}"[:200]
                )
        pairs = causal_pairs(*row.lengths)
        for name, timed in interleaved(cases, scale.device, scale.rounds).items():
            memory = None if "error" in timed else peak_memory(cases[name], scale.device)
            # Two products forward and five backward, of every pair that attends.
            report.add(
                "packed attention", {"tokens": tokens}, name, flops=7 * 2 * pairs * width, memory=memory, **timed
            )
        del cases, row
        empty(scale.device)


def prepare(scale: Scale) -> None:
    if scale.device.type == "cuda":
        # Flex attention compiles for one length, then for any.
        for tokens in scale.attention_tokens[:2]:
            Row(scale, tokens).step("flex_attention", with_backward=True)()
        empty(scale.device)
