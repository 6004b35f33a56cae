"""
Runs the package on other releases of transformers, installed side by side in folders of their own.

    python tests/versions/run.py                     # every row: set up, tests, and the exchange of saved models
    python tests/versions/run.py --quick 5.16.1      # some rows, with the tests that continuous integration has time for

A row lists packages that take the place of the virtual environment's. Prints a table, and exits with 1 if anything failed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".versions"
# transformers up to 5.17 needs huggingface-hub 1.x, and that one httpx.
_HUB_1 = ("huggingface_hub==1.17.0", "httpx==0.28.1", "httpcore==1.0.9", "datasets==4.8.4")
ROWS: dict[str, tuple[str, ...]] = {
    "5.16.1": ("transformers==5.16.1", *_HUB_1),
    "5.17.0": ("transformers==5.17.0", *_HUB_1),
    "5.19.0": ("transformers==5.19.0",),
    "5.20.2": ("transformers==5.20.2",),
    "5.23.0": ("transformers==5.23.0",),
    "newest": ("transformers",),
    # What axolotl 0.19.0 pins, of the packages that are imported here.
    "axolotl": (
        "transformers==5.16.1",
        *_HUB_1,
        "peft==0.20.0",
        "trl==1.9.0",
        "accelerate==1.13.0",
        "tokenizers==0.23.1",
        "packaging==26.0",
        "typer==0.25.1",
        "typing-extensions==4.15.0",
        "hf_xet==1.4.3",
        "torchao==0.17.0",
    ),
}

QUICK = (
    "tests/model/test_versions.py",
    "tests/model/test_generation.py",
    "tests/model/test_processing_mm1.py",
    "tests/model/test_assistant_masks.py",
    "tests/model/test_saved_before.py",
    "tests/test_registration.py",
    "tests/data/test_collation.py",
    "tests/versions/steps.py",
)
FULL = (
    "tests/model",
    "tests/test_registration.py",
    "tests/test_assemble.py",
    "tests/test_upcycling.py",
    "tests/data/test_collation.py",
    "tests/training/test_lora.py",
    "tests/training/test_trainer.py",
    "tests/training/test_balancing.py",
    "tests/training/test_streams.py",
    "tests/versions/steps.py",
)


def environment(row: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return own | {
        "PYTHONPATH": str(FOLDER / row),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_MODULES_CACHE": str(FOLDER / f"{row}-modules"),
    }


def set_up(row: str) -> None:
    """Installs what is not there yet."""
    folder, wanted = FOLDER / row, "\n".join(ROWS[row])
    done = folder / ".installed"
    if not done.exists() or done.read_text() != wanted:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--upgrade",
                "--target",
                folder,
                *ROWS[row],
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        done.write_text(wanted)


def run_tests(row: str, quick: bool) -> tuple[bool, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "not slow", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, *(QUICK if quick else FULL)], cwd=ROOT, env=environment(row), capture_output=True, text=True
    )
    (FOLDER / f"{row}.log").write_text(result.stdout + result.stderr, encoding="utf-8")
    lines = result.stdout.splitlines()
    print("\n".join(line for line in lines if re.match(r"(FAILED|ERROR)\b", line)))
    counts = ", ".join(re.findall(r"\d+ (?:passed|failed|skipped|error)", lines[-1] if lines else ""))
    return result.returncode == 0, counts


def exchange(rows: list[str]) -> dict[str, list[str]]:
    """What each row could not load, of what every row saved."""
    script = str(Path(__file__).with_name("exchange.py"))
    folders = [str(FOLDER / "saved" / row) for row in rows]
    for row, folder in zip(rows, folders, strict=True):
        subprocess.run([sys.executable, script, "save", folder], env=environment(row), check=True, capture_output=True)
    wrong: dict[str, list[str]] = {}
    for row in rows:
        wrong[row] = []
        for options in ([], ["--stranger"]):
            result = subprocess.run(
                [sys.executable, script, "load", *options, *folders],
                env=environment(row),
                capture_output=True,
                text=True,
            )
            answers = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
            wrong[row] += [f"{answer['saved']}: {answer['differs']}" for answer in answers if answer["differs"]]
            if len(answers) != 3 * len(rows):
                wrong[row].append(f"{3 * len(rows) - len(answers)} were not tried: {result.stderr[-2000:]}")
    return wrong


def installed(row: str) -> str:
    code = "import transformers, huggingface_hub; print(transformers.__version__, huggingface_hub.__version__)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(row), capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="run the tests that continuous integration has time for")
    options = parser.parse_args()
    rows = options.rows or list(ROWS)
    if unknown := set(rows) - set(ROWS):
        parser.error(f"there are no rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    for row in rows:
        set_up(row)
    table, failed = [], False
    for row in rows:
        start = time.monotonic()
        passed, counts = run_tests(row, options.quick)
        failed |= not passed
        table.append((row, installed(row), counts, f"{time.monotonic() - start:.0f} s"))
    wrong = exchange(rows)
    failed |= any(wrong.values())
    for row, version, counts, seconds in table:
        loads = "loads all" if not wrong[row] else f"{len(wrong[row])} not loaded"
        print(f"{row:<9} transformers, hub {version:<15} {counts:<36} {seconds:>6}   {loads}")
    for row, problems in wrong.items():
        print("".join(f"{row}: {problem}\n" for problem in problems), end="")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
