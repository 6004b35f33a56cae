"""The machine's own limits, measured in the same run: the rate of matrix multiplication, and the bandwidth of memory."""

import torch

from benchmarks.measuring import Report, interleaved
from benchmarks.scales import Scale


def measure(scale: Scale, report: Report) -> None:
    sides = {"gpu": (4096, 8192, 16384), "cpu": (1024, 2048), "tiny": (128,)}[scale.name]
    for side in sides:
        left, right = (torch.randn(side, side, device=scale.device, dtype=scale.dtype) for _ in range(2))
        timed = interleaved({"matrix": lambda: left @ right}, scale.device, scale.rounds)  # noqa: B023 -- run at once
        report.add("limits", {"side": side}, "matrix", flops=2 * side**3, **timed["matrix"])
    numbers = {"gpu": 2**30, "cpu": 2**26, "tiny": 2**16}[scale.name]
    source = torch.zeros(numbers, device=scale.device, dtype=scale.dtype)
    target = torch.empty_like(source)
    size = source.element_size() * numbers
    timed = interleaved({"copy": lambda: target.copy_(source)}, scale.device, scale.rounds)
    report.add("limits", {"bytes": size}, "copy", bytes=2 * size, **timed["copy"])
    # Decoding reads weights and hardly writes, so its limit is that of reading.
    timed = interleaved({"read": lambda: source.sum()}, scale.device, scale.rounds)
    report.add("limits", {"bytes": size}, "read", bytes=size, **timed["read"])
