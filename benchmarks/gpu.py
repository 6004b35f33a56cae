"""
Runs the tests marked `gpu`, prints what each gave and how long it took, and saves it as JSON. `benchmarks/gpu.sh` calls it.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

from benchmarks.measuring import commit, versions


ROOT = Path(__file__).parents[1]
MINUTES = 8


def marked_files() -> list[str]:
    """The test files that name the marker. Others may import packages that a bare machine does not have."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in files if "@pytest.mark.gpu" in file.read_text(encoding="utf-8")]


def run_tests(report: Path) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    return subprocess.run([*command, *marked_files()], cwd=ROOT, timeout=60 * MINUTES).returncode


def outcomes(report: Path) -> list[dict[str, str | float]]:
    found: list[dict[str, str | float]] = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if problem is None else problem.tag
        found.append(
            {
                "test": case.attrib["name"],
                "outcome": outcome,
                "reason": "" if problem is None else problem.attrib.get("message", "")[:200],
                "seconds": round(float(case.attrib["time"]), 2),
            }
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, help="JSON file to write")
    output = parser.parse_args().output
    if not torch.cuda.is_available():
        print("torch finds no GPU here: every test would be skipped.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        status = run_tests(report)
        cases = outcomes(report)
    hardware = {"gpu": torch.cuda.get_device_name(), "capability": list(torch.cuda.get_device_capability())}
    result = {"hardware": hardware, "versions": versions(), "commit": commit(), "tests": cases}
    print(
        f"\n{hardware['gpu']}, torch {result['versions']['torch']}, transformers {result['versions']['transformers']}"
    )
    width = max(len(str(case["test"])) for case in cases)
    for case in cases:
        reason = re.sub(r"\s+", " ", str(case["reason"]))
        print(f"{case['test']:{width}}  {case['outcome']:8}  {case['seconds']:7.2f} s  {reason[:80]}".rstrip())
    if output is not None:
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
