"""The clock of the suite: interleaved rounds, medians, peak memory, and the description of the machine."""

import gc
import json
import math
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "triton", "flash-attn", "liger-kernel")

Case = Callable[[], Any]


class Report:
    """
    Records of a row, appended to a file one by one, so that a row that is stopped keeps what it has measured.

    Args:
        path: file of one JSON object per line.
    """

    def __init__(self, path: Path):
        self.path = path

    def add(self, row: str, case: Mapping[str, Any], name: str, **values: Any) -> None:
        """
        Writes one record.

        Args:
            row: what is measured.
            case: the sizes that it is measured at; records of one row and case are compared with each other.
            name: who is measured.
            values: what was measured, such as `seconds`, `memory` in bytes, `flops` and `bytes`.
        """
        record = {"row": row, "case": dict(case), "name": name, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def empty(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _elapsed(case: Case, repeats: int, device: torch.device) -> tuple[float, float]:
    """Seconds of one call, on the device's clock where it has one, and the processor's seconds, of all its threads."""
    synchronize(device)
    processor = time.process_time()
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            case()
        end.record()
        synchronize(device)
        seconds = start.elapsed_time(end) / 1000
    else:
        begin = time.perf_counter()
        for _ in range(repeats):
            case()
        seconds = time.perf_counter() - begin
    return seconds / repeats, (time.process_time() - processor) / repeats


def interleaved(
    cases: Mapping[str, Case], device: torch.device, rounds: int, warm_up: int = 2, least: float = 0.02
) -> dict[str, dict[str, Any]]:
    """
    Times cases in turn, so that a change of the machine's speed meets them all.

    Args:
        cases: what to time, by name.
        device: where it runs.
        rounds: number of rounds. In each, every case is timed once.
        warm_up: number of calls before the first round, which are not timed.
        least: seconds that one timing should take at least. Shorter cases are called several times in a row.

    Returns:
        For each case the median `seconds` of a call, the `rounds` and `processor_seconds`; or the `error` that ended it.
    """
    results: dict[str, dict[str, Any]] = {}
    repeats: dict[str, int] = {}
    timings: dict[str, list[tuple[float, float]]] = {}
    for name, case in cases.items():
        try:
            for _ in range(warm_up):
                case()
            repeats[name] = max(1, math.ceil(least / max(_elapsed(case, 1, device)[0], 1e-7)))
            timings[name] = []
        except Exception as error:
            results[name] = failure(error)
            empty(device)
    for _ in range(rounds):
        for name in list(timings):
            try:
                timings[name].append(_elapsed(cases[name], repeats[name], device))
            except Exception as error:
                results[name] = failure(error)
                del timings[name]
                empty(device)
    for name, measured in timings.items():
        seconds, processor = zip(*measured, strict=True)
        results[name] = {
            "seconds": statistics.median(seconds),
            "rounds": [round(value, 7) for value in seconds],
            "processor_seconds": statistics.median(processor),
        }
    return results


def failure(error: BaseException) -> dict[str, str]:
    traceback.print_exception(error, limit=-4, file=sys.stderr)
    message = str(error).strip().splitlines()
    return {"error": f"{type(error).__name__}: {message[0][:200] if message else ''}"}


def peak_memory(case: Case, device: torch.device) -> int:
    """
    Bytes that are allocated at the peak of a call, beyond what was allocated before.

    Args:
        case: what to call. It has been called before, so that what is allocated only once does not count.
        device: where it runs.
    """
    empty(device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        case()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        case()
    alive = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


def profiled(case: Case, device: torch.device, number: int = 30) -> list[dict[str, Any]]:
    """
    The operations that take most of a call's time: kernels on a GPU, otherwise torch's operators.

    Args:
        case: what to call. It has been called before.
        device: where it runs.
        number: how many operations to list.

    Returns:
        For each its `name`, its own `seconds` and the number of `calls`.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        case()
        synchronize(device)
    found = [
        {
            "name": event.key[:160],
            "seconds": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6,
            "calls": event.count,
        }
        for event in profiler.key_averages()
    ]
    return sorted(found, key=lambda each: -each["seconds"])[:number]


def hardware(device: torch.device) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    found: dict[str, Any] = {"cpu": names[0] if names else platform.processor(), "cores": len(names)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory": properties.total_memory}
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return described.stdout.strip() or "unknown"
