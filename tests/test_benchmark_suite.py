"""The suite's rows run at toy size, a stopped row keeps its records, and results are compared and written as a page."""

import argparse
import json
import sys
from io import StringIO
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import compare, page, suite
from benchmarks.measuring import Report, interleaved, torch
from benchmarks.rows import fine_tuning, training
from benchmarks.scales import scale


QUICK = ["limits", "packed_attention", "loss_head", "growth"]
SLOW = ["training", "training_moe", "decoding:1", "moe_layer", "first_token", "fine_tuning", "images", "start"]


def records_of(row: str, tmp_path: Path) -> list[dict]:
    records = tmp_path / "records.jsonl"
    suite.work(row, "tiny", "cpu", records, tmp_path / "ready")
    return [json.loads(line) for line in records.read_text().splitlines()]


@pytest.mark.parametrize("row", [*QUICK, *(pytest.param(row, marks=pytest.mark.slow) for row in SLOW)])
def test_every_row_runs(row, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", StringIO("go\n"))
    found = records_of(row, tmp_path)
    assert (tmp_path / "ready").exists()
    assert found and not [record for record in found if "error" in record]
    assert all(record["rounds"] and record["name"] for record in found)
    # A difference of two times may be anything at toy size.
    assert row.startswith("decoding") or all(record["seconds"] > 0 for record in found)


def test_the_suite_knows_its_rows():
    files = {file.stem for file in (Path(suite.__file__).parent / "rows").glob("*.py")} - {"__init__"}
    assert {row.partition(":")[0] for row in suite.CPU_ROWS} == files


def test_a_failing_row_says_why_and_leaves_its_records(tmp_path, monkeypatch):
    def measure(sizes, report):
        report.add("limits", {}, "matrix", seconds=1.0)
        raise RuntimeError("no more")

    monkeypatch.setattr("benchmarks.rows.limits.measure", measure)
    monkeypatch.setattr(sys, "stdin", StringIO("go\n"))
    found = records_of("limits", tmp_path)
    assert found[0]["seconds"] == 1.0 and found[1]["error"] == "RuntimeError: no more"


def test_a_row_that_takes_too_long_is_stopped(tmp_path):
    script = "import sys; sys.stdin.readline(); print('begun', flush=True); import time; time.sleep(600)"
    worker = suite.Worker("limits", None, *(tmp_path / name for name in ("records", "ready", "log")))
    with worker.log.open("w") as log:
        command = [sys.executable, "-c", script]
        worker.process = suite.subprocess.Popen(command, stdin=suite.subprocess.PIPE, stdout=log, text=True)
    # The process prints after its start; until then it may be stopped before.
    outcome = suite.run(worker, argparse.Namespace(), 5)
    assert outcome["outcome"] == "stopped after 5 s" and worker.process.returncode


def test_shares_are_of_the_run_s_own_limits():
    records = [
        {"row": "limits", "case": {"side": 1}, "name": "matrix", "flops": 50, "seconds": 1.0},
        {"row": "limits", "case": {"side": 2}, "name": "matrix", "flops": 100, "seconds": 1.0},
        {"row": "limits", "case": {}, "name": "copy", "bytes": 30, "seconds": 3.0},
        {"row": "limits", "case": {}, "name": "read", "bytes": 40, "seconds": 2.0},
        {"row": "decoding", "case": {}, "name": "MM1", "flops": 25, "bytes": 20, "seconds": 2.0},
        {"row": "decoding", "case": {}, "name": "Llama", "error": "out of memory"},
    ]
    limits = suite.add_shares(records, "NVIDIA H100 80GB HBM3")
    assert limits["flops_per_second"] == 100 and limits["read_bytes_per_second"] == 20
    assert records[4]["share_of_matrix_limit"] == pytest.approx(0.125)
    assert records[4]["share_of_bandwidth"] == pytest.approx(0.5)
    assert records[4]["mfu"] == pytest.approx(12.5 / 989.4e12)


def test_an_error_ends_one_case_alone():
    calls = []
    cases = {"good": lambda: calls.append(1), "bad": lambda: 1 / 0}
    results = interleaved(cases, torch.device("cpu"), rounds=3, warm_up=2, least=0)
    assert results["bad"]["error"].startswith("ZeroDivisionError")
    assert len(results["good"]["rounds"]) == 3 and len(calls) == 2 + 1 + 3


def test_rows_of_training_are_full_and_their_labels_are_text(tmp_path):
    sizes = scale("cpu", "cpu")
    segments = training.segments_of_a_row(4096, 144, training.random.Random(0))
    assert sum(sum(texts) + 144 * (len(texts) - 1) for texts in segments) == 4096
    batch = training.packed_batch(scale("tiny", "cpu"), 511, seed=0)
    inputs = batch.inputs
    assert sum(batch.lengths) == inputs["input_ids"].numel() and (inputs["segment_ids"] > 0).all()
    assert batch.tiles == len(inputs["pixel_values"]) and batch.targets == int((inputs["labels"] != -100).sum())
    assert batch.tiles * scale("tiny", "cpu").image_tokens == int((inputs["input_ids"] == 511).sum())
    assert sizes.image_tokens == 144


def test_packed_conversations_fit_their_rows():
    lengths = fine_tuning.lengths_of(50)
    rows = fine_tuning.rows_of(lengths, 400)
    assert sorted(index for row in rows for index in row) == list(range(50))
    assert max(sum(lengths[index] for index in row) for row in rows) <= 400


def record(name, seconds, **values):
    return {"row": "loss head", "case": {"vocabulary": 10}, "name": name, "seconds": seconds, **values}


def test_compare_says_what_got_worse():
    before = [
        record("a", 1.0, rounds=[0.9, 1.1]),
        record("b", 1.0, rounds=[0.9, 1.1]),
        record("c", 1.0, memory=100),
        record("d", 1.0),
        record("e", 2.0),
        record("f", 1.0),
    ]
    after = [
        record("a", 1.2, rounds=[1.15, 1.3]),
        # Its rounds overlap with those before.
        record("b", 1.2, rounds=[1.05, 1.3]),
        record("c", 1.0, memory=200),
        {"row": "loss head", "case": {"vocabulary": 10}, "name": "d", "error": "out of memory"},
        record("e", 1.0),
    ]
    worse, better = compare.changes(before, after, 0.05)
    assert [line.split(" | ")[2].split(":")[0] for line in worse] == ["a", "c", "d", "f"]
    assert "1000.000 to 1200.000 ms, 1.20 times" in worse[0] and "missing" in worse[3]
    assert len(better) == 1 and "0.50 times" in better[0]


def test_compare_s_exit_status(tmp_path, monkeypatch, capsys):
    result = {"hardware": {}, "threads": 1, "scale": "tiny", "versions": {}, "records": [record("a", 1.0)]}
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(result))
    new.write_text(json.dumps(result | {"threads": 2, "records": [record("a", 3.0)]}))
    monkeypatch.setattr(sys, "argv", ["compare", str(old), str(new)])
    assert compare.main() == 1
    assert "Not the same threads: 1 and 2" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["compare", str(old), str(old)])
    assert compare.main() == 0


def test_the_exponent_of_a_power_is_found():
    assert page.exponent([(x, 3 * x**1.7) for x in (1, 2, 5, 9)]) == pytest.approx(1.7)


def test_the_page_shows_every_record(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    report = Report(tmp_path / "records")
    for tokens in (64, 128):
        for name in ("sdpa", "segment_sdpa"):
            report.add("packed attention", {"tokens": tokens}, name, seconds=tokens / 1000, memory=2**20, flops=5)
    report.add("decoding", {"batch": 1}, "MM1", error="OutOfMemoryError: a | b")
    result = {
        "scale": "tiny",
        "hardware": {"cpu": "A CPU", "cores": 2},
        "threads": 2,
        "versions": {"torch": "2.13.0", "triton": "not installed"},
        "commit": "abc",
        "rows": [{"row": "decoding:1", "outcome": "stopped after 5 s"}],
        "records": [json.loads(line) for line in report.path.read_text().splitlines()],
    }
    file, output = tmp_path / "suite-cpu.json", tmp_path / "docs" / "benchmarks.md"
    file.write_text(json.dumps(result))
    monkeypatch.setattr(sys, "argv", ["page", str(output), str(file)])
    assert page.main() == 0
    text = output.read_text()
    assert "## A CPU, 2 threads" in text and "torch 2.13.0" in text and "triton" not in text
    assert "| 128 | segment_sdpa | 128 ms | 1 MiB |" in text and "OutOfMemoryError: a / b" in text
    assert "segment_sdpa 1.00" in text and "Row decoding:1: stopped after 5 s." in text
    chart = output.parent / "benchmarks" / "suite-cpu-packed-attention.png"
    assert chart.stat().st_size > 5000 and f"](benchmarks/{chart.name})" in text
