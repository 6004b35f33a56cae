"""The device that a program uses, the dtype that it computes in, and what `TrainingArguments` must be told about both."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers.utils import is_torch_bf16_gpu_available


@dataclass(frozen=True)
class Machine:
    """
    What [`this_machine`] decides. Its three values agree with each other.

    Args:
        device: where models and batches belong. On a machine with several accelerators it has no index: it is the
            current one.
        dtype: dtype of the matrix products: that of autocast in training, and of weights that are not trained.
        arguments: the fields `bf16`, `fp16` and `use_cpu` of `TrainingArguments`.
    """

    device: torch.device
    dtype: torch.dtype
    arguments: dict[str, Any]


def this_machine(wanted: Mapping[str, Any] | None = None) -> Machine:
    """
    Decides where to compute, and in which dtype. The device is the accelerator if there is one, otherwise the CPU. The
    dtype is:

    - on a CUDA or ROCm GPU, bfloat16 if it has hardware for it, otherwise float16;
    - on Apple's GPUs, float32, because many of them emulate bfloat16;
    - on other accelerators, bfloat16 if `TrainingArguments` accepts it there, otherwise float32;
    - on a CPU, bfloat16 if it multiplies matrices faster in bfloat16 than in float32. Only newer CPUs do.

    Args:
        wanted: fields of `TrainingArguments` that are already decided, such as the `arguments` of a settings file. Of
            these, `bf16`, `fp16` and `use_cpu` replace what the machine would get. `use_cpu=False` asks for an
            accelerator if there is one. Other fields are ignored.

    Raises:
        ValueError: `fp16` is wanted on a CPU.

    Example:

    ```python
    >>> from mm1_hf.training.machine import this_machine

    >>> this_machine({"use_cpu": True, "bf16": False})
    Machine(device=device(type='cpu'), dtype=torch.float32, arguments={'bf16': False, 'fp16': False, 'use_cpu': True})

    ```
    """
    wanted = {} if wanted is None else wanted
    device = _device(wanted)
    dtype = _dtype(wanted, device)
    arguments: dict[str, Any] = {
        # Where both are wanted, TrainingArguments refuses them.
        "bf16": dtype is torch.bfloat16 or bool(wanted.get("bf16")),
        "fp16": dtype is torch.float16,
        "use_cpu": device.type == "cpu",
    }
    return Machine(device, dtype, arguments)


def _device(wanted: Mapping[str, Any]) -> torch.device:
    # `accelerate launch --cpu` sets this variable, and accelerate then uses the CPU.
    if wanted.get("use_cpu") or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    return _accelerator() or torch.device("cpu")


def _dtype(wanted: Mapping[str, Any], device: torch.device) -> torch.dtype:
    if wanted.get("fp16"):
        if device.type == "cpu":
            raise ValueError(
                "fp16 is true, but this run uses the CPU, where Trainer would ignore it and compute in float32. Leave "
                "fp16 out, so that the machine decides, or set bf16 to true or false."
            )
        return torch.float16
    if "bf16" in wanted:
        return torch.bfloat16 if wanted["bf16"] else torch.float32
    fastest = _fastest_dtype(device)
    return torch.float32 if fastest is torch.float16 and "fp16" in wanted else fastest


def _accelerator() -> torch.device | None:
    return torch.accelerator.current_accelerator(check_available=True)


def _fastest_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_is_faster_in_bfloat16() else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type != "mps" and is_torch_bf16_gpu_available() else torch.float32


@cache
def _cpu_is_faster_in_bfloat16() -> bool:
    """
    Measured, because torch has no public function that says whether its kernels use a CPU's bfloat16 instructions. CPUs
    with such instructions are about twice as fast in bfloat16, and the others at most half as fast. The measurement
    takes at most 0.2 s.
    """
    matrices = [torch.ones(256, 256, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)]
    seconds = [float("inf")] * 2
    threads = torch.get_num_threads()
    # On a busy machine, threads wait for each other longer than they compute. The first product of each dtype also
    # prepares its kernel, and each product may be interrupted: the fastest of several counts.
    torch.set_num_threads(1)
    try:
        for _ in range(6):
            for index, matrix in enumerate(matrices):
                start = time.perf_counter()
                matrix @ matrix
                seconds[index] = min(seconds[index], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return seconds[0] < seconds[1]
