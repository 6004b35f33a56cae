"""
Runs the suite: every row in a process of its own with a time limit, and the results in one JSON file that is written after
each row.

    python -m benchmarks.suite --scale cpu --output benchmarks/results/suite-cpu.json

On a GPU all rows first prepare side by side, which is mostly compiling, and then measure one after the other. A worker whose
row has failed or was stopped leaves the records that it had written.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


# By importance, because a limit of the whole run ends it where it is; with the seconds that each may take on a GPU.
ROWS = {
    "limits": 20,
    "training": 90,
    "decoding:1": 60,
    "decoding:16": 60,
    "training_moe": 70,
    "moe_layer": 45,
    "packed_attention": 40,
    "loss_head": 40,
    "first_token": 80,
}
# On a CPU also what does not depend on the device. On a GPU there is no time for it.
CPU_ROWS = [*ROWS, "fine_tuning", "images", "start", "growth"]
# How much longer a row may take at another scale.
PATIENCE = {"gpu": 1, "tiny": 5, "cpu": 40}
PREPARATION = 90
# Dense bfloat16 operations per second of the data sheets, by which MFU is usually stated.
DATA_SHEETS = {"H100 PCIe": 756e12, "H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}


@dataclass
class Worker:
    """
    Args:
        row: name of the row, as in [`ROWS`].
        process: the process that measures it, or None if it was not started yet.
        records, ready, log: files that it writes.
    """

    row: str
    process: subprocess.Popen | None
    records: Path
    ready: Path
    log: Path


def work(row: str, scale_name: str, device: str, records: Path, ready: Path) -> None:
    """What a worker does: prepare, wait for a line on the standard input, measure."""
    from benchmarks.measuring import Report, failure
    from benchmarks.scales import scale

    name, *arguments = row.split(":")
    module: Any = importlib.import_module(f"benchmarks.rows.{name}")
    sizes, report = scale(scale_name, device), Report(records)
    state: list[Any] = []
    if hasattr(module, "prepare"):
        try:
            prepared = module.prepare(sizes, *arguments)
            state = [] if prepared is None else [prepared]
        except Exception as error:
            # What it could not prepare, the measurement may still do.
            report.add(row, {}, "preparation", **failure(error))
    ready.touch()
    sys.stdin.readline()
    try:
        module.measure(sizes, report, *arguments, *state)
    except Exception as error:
        report.add(row, {}, "row", **failure(error))


def start(worker: Worker, options: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "benchmarks.suite", "--work", worker.row, "--scale", options.scale]
    command += ["--device", options.device, "--records", str(worker.records), "--ready", str(worker.ready)]
    with worker.log.open("w") as log:
        worker.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True)


def wait_for_preparation(workers: list[Worker], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if all(
            worker.ready.exists() or worker.process is None or worker.process.poll() is not None for worker in workers
        ):
            return
        time.sleep(0.2)


def run(worker: Worker, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Lets a worker measure, and says how it ended."""
    if worker.process is None:
        start(worker, options)
    process: Any = worker.process
    begin = time.monotonic()
    outcome = "measured"
    try:
        process.communicate("go\n", timeout=max(seconds, 1))
        if process.returncode:
            outcome = f"ended with code {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        outcome = f"stopped after {seconds:.0f} s"
    except BrokenPipeError:
        process.wait()
        outcome = f"ended with code {process.returncode}"
    tail = "" if outcome == "measured" else worker.log.read_text(errors="replace")[-1500:]
    return {"row": worker.row, "outcome": outcome, "seconds": round(time.monotonic() - begin, 1), "log": tail}


def read_records(workers: list[Worker]) -> list[dict[str, Any]]:
    lines = [line for worker in workers if worker.records.exists() for line in worker.records.read_text().splitlines()]
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            # The last line of a worker that was stopped.
            continue
    return records


def add_shares(records: list[dict[str, Any]], gpu: str) -> dict[str, float]:
    """Adds each record's share of the machine's limits, and returns the limits: those measured, and the data sheet's."""
    limits: dict[str, float] = {}
    sheet = next((rate for name, rate in DATA_SHEETS.items() if name in gpu), None)
    if sheet:
        limits["data_sheet_flops_per_second"] = sheet
    for record in records:
        if record["row"] == "limits" and "error" not in record:
            rate = record.get("flops", record.get("bytes")) / record["seconds"]
            key = {"matrix": "flops_per_second"}.get(record["name"], f"{record['name']}_bytes_per_second")
            limits[key] = max(limits.get(key, 0), rate)
    bandwidth = max((value for key, value in limits.items() if "bytes" in key), default=None)
    for record in records:
        if record["row"] == "limits" or "error" in record:
            continue
        if "flops" in record and "flops_per_second" in limits:
            record["share_of_matrix_limit"] = record["flops"] / record["seconds"] / limits["flops_per_second"]
        if "flops" in record and sheet:
            record["mfu"] = record["flops"] / record["seconds"] / sheet
        if "bytes" in record and bandwidth:
            record["share_of_bandwidth"] = record["bytes"] / record["seconds"] / bandwidth
    return limits


def table(records: list[dict[str, Any]]) -> str:
    """All records, one a line."""
    lines = []
    for record in records:
        case = ", ".join(f"{key} {value}" for key, value in record["case"].items())
        if "error" in record:
            lines.append(f"{record['row']} | {case} | {record['name']} | {record['error']}")
            continue
        parts = [f"{1000 * record['seconds']:.3f} ms"]
        if record.get("memory") is not None:
            parts.append(f"{record['memory'] / 2**30:.2f} GiB")
        if "tokens_per_second" in record:
            parts.append(f"{record['tokens_per_second']:.0f} tokens/s")
        for key, words in (
            ("mfu", "MFU"),
            ("share_of_matrix_limit", "of matrix limit"),
            ("share_of_bandwidth", "of bandwidth"),
        ):
            if key in record:
                parts.append(f"{100 * record[key]:.1f} % {words}")
        lines.append(f"{record['row']} | {case} | {record['name']} | {', '.join(parts)}")
    return "\n".join(lines)


def save(workers: list[Worker], outcomes: list[dict[str, Any]], about: dict[str, Any], output: Path) -> None:
    records = read_records(workers)
    limits = add_shares(records, about["hardware"].get("gpu", ""))
    result = {**about, "limits": limits, "rows": outcomes, "records": records}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def describe(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.measuring import commit, hardware, versions

    return {
        "scale": options.scale,
        "hardware": hardware(torch.device(options.device)),
        "threads": torch.get_num_threads(),
        "load_before": list(os.getloadavg()),
        "versions": versions(),
        "commit": commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("gpu", "cpu", "tiny"), default="cpu")
    parser.add_argument("--device", default=None, help="cuda or cpu (default: cuda for the scale gpu)")
    parser.add_argument("--rows", help="rows to measure, with commas between them (default: those for the device)")
    parser.add_argument(
        "--minutes", type=float, default=None, help="when to stop (default: when all rows are measured)"
    )
    parser.add_argument("--together", action="store_true", help="prepare all rows side by side, as on a GPU")
    parser.add_argument("--output", type=Path, default=Path("suite.json"), help="JSON file to write")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--records", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ready", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = options.device or ("cuda" if options.scale == "gpu" else "cpu")
    if options.work:
        work(options.work, options.scale, options.device, options.records, options.ready)
        return
    rows = options.rows.split(",") if options.rows else list(ROWS) if options.device == "cuda" else CPU_ROWS
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            Worker(row, None, *(Path(folder, f"{index}.{suffix}") for suffix in ("jsonl", "ready", "log")))
            for index, row in enumerate(rows)
        ]
        if options.together or options.device == "cuda":
            for worker in workers:
                start(worker, options)
        about = describe(options)
        wait_for_preparation(workers, PREPARATION * PATIENCE[options.scale])
        print(f"prepared after {time.monotonic() - begin:.0f} s", flush=True)
        outcomes: list[dict[str, Any]] = []
        for worker in workers:
            seconds = float(ROWS.get(worker.row, 60) * PATIENCE[options.scale])
            if options.minutes is not None:
                seconds = min(seconds, begin + 60 * options.minutes - time.monotonic())
            outcomes.append(run(worker, options, seconds))
            print(f"{worker.row}: {outcomes[-1]['outcome']}, {outcomes[-1]['seconds']} s", flush=True)
            save(workers, outcomes, about, options.output)
        records = json.loads(options.output.read_text())["records"]
    print(table(records))


if __name__ == "__main__":
    main()
