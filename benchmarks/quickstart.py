"""
Runs `mm1 quickstart` as a newcomer does, and measures its whole time beside its accuracy: an entry of the leaderboard in
benchmarks/README.md.

    python -m benchmarks.quickstart --output benchmarks/results/quickstart.json

The time is that of the command, from its start to its end: loading the embedded parts, encoding pictures, training, saving,
loading, measuring on held-out questions with their own and with shuffled images, and the report.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import commit, hardware, versions
from mm1_hf.training.machine import this_machine


# Shares of right answers that an entry has to reach, and how much the shuffled images have to take away.
BARS = {"overall": 0.92, "shape": 0.95, "colour": 0.85}
FROM_SEEING = 0.2
# Minutes on two threads of a CPU, by precision.
MINUTES = {"bfloat16": 6, "float32": 12}


def judge(accuracies: dict[str, dict[str, float]], minutes: float, precision: str) -> dict[str, bool]:
    """
    Which bars a run passes.

    Args:
        accuracies: of each kind of question the shares of right answers with its own (`model`) and with `shuffled` images.
        minutes: of the whole command.
        precision: `"bfloat16"` or `"float32"`.
    """
    passed = {f"{kind} {bar:.0%}": accuracies[kind]["model"] >= bar for kind, bar in BARS.items()}
    seeing = accuracies["overall"]["model"] - accuracies["overall"]["shuffled"]
    passed[f"{FROM_SEEING:.0%} more than with shuffled images"] = seeing >= FROM_SEEING
    passed[f"{MINUTES[precision]} minutes"] = minutes <= MINUTES[precision]
    return passed


def run(arguments: list[str], threads: int, folder: Path) -> dict[str, Any]:
    """Runs the command, and returns its figures with its time and the processor's time of all its threads."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "mm1_command", "quickstart", "--output", str(folder), *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    minutes = (time.perf_counter() - begin) / 60
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {"minutes": minutes, "processor_minutes": processor / 60, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU (default: 2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run for each (default: 0 1 2)")
    parser.add_argument("--steps", type=int, help="training steps (default: those of the command)")
    parser.add_argument("--questions", type=int, default=1000, help="held-out questions at least (default: 1000)")
    options = parser.parse_args()
    load_before = list(os.getloadavg())
    precision = str(this_machine().dtype).removeprefix("torch.")
    runs = []
    for seed in options.seeds:
        arguments = ["--seed", str(seed), "--questions", str(options.questions)]
        arguments += [] if options.steps is None else ["--steps", str(options.steps)]
        with tempfile.TemporaryDirectory() as folder:
            runs.append({"seed": seed, **run(arguments, options.threads, Path(folder))})
        runs[-1]["passed"] = judge(runs[-1]["accuracies"], runs[-1]["minutes"], precision)
    result = {
        "what": "mm1 quickstart as a whole: minutes, minutes of the processor, accuracy on held-out questions",
        "precision": precision,
        "threads": options.threads,
        "passed": all(all(each["passed"].values()) for each in runs),
        "runs": runs,
        "hardware": hardware(torch.device("cpu")),
        "load_before": load_before,
        "versions": versions(),
        "commit": commit(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for each in runs:
        failed = [name for name, passed in each["passed"].items() if not passed]
        accuracy = each["accuracies"]["overall"]["model"]
        print(
            f"seed {each['seed']}: {each['minutes']:.1f} min, {accuracy:.1%} right; missed: {', '.join(failed) or 'none'}"
        )


if __name__ == "__main__":
    main()
