"""Machines that a test can pretend to run on, so that both answers for a CPU are tested on every machine."""

import pytest
import torch

from mm1_hf.training import machine


# A CPU that multiplies matrices fast in bfloat16, and one that does not.
CPUS = pytest.mark.parametrize("cpu_dtype", [torch.bfloat16, torch.float32], ids=["bf16-cpu", "fp32-cpu"])


def pretend_cpu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """No accelerator, and a CPU that is fastest in this dtype."""
    monkeypatch.setattr(machine, "_accelerator", lambda: None)
    monkeypatch.setattr(machine, "_cpu_is_faster_in_bfloat16", lambda: dtype is torch.bfloat16)


def pretend_accelerator(monkeypatch: pytest.MonkeyPatch, kind: str, bfloat16: bool) -> None:
    """An accelerator such as `"cuda"`, with or without hardware for bfloat16. Nothing can be computed on it."""
    monkeypatch.setattr(machine, "_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or bfloat16)
    monkeypatch.setattr(machine, "is_torch_bf16_gpu_available", lambda: bfloat16)
