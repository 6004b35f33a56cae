"""`mm1 eval` as it is typed: on easy-VQA and a task of one's own, with a tiny model, and what it says of mistakes."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from machines import pretend_cpu
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.cli import main
from mm1_hf.evaluation.models import endpoint


TASK = """\
data: [someone/colours]
split: test
shots: {split: train}
columns: {id: id, image: image, question: question, answer: answer}
metric: exact_match
max_new_tokens: 4
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tiny model, a task with its data, and the CPU of a machine that computes in float32."""
    monkeypatch.chdir(tmp_path)
    pretend_cpu(monkeypatch, torch.float32)
    for part in tiny_mm1():
        part.save_pretrained("model")
    (tmp_path / "colours.yaml").write_text(TASK, encoding="utf-8")
    (tmp_path / "data").mkdir()
    for split, number in (("train", 6), ("test", 4)):
        lines = []
        for index in range(number):
            Image.new("RGB", (56, 56), (40 * index, 0, 0)).save(f"data/{split}-{index}.png")
            record = {"id": f"{split}{index}", "image": f"{split}-{index}.png", "question": "Red?", "answer": "yes"}
            lines.append(json.dumps(record))
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def evaluated(output: str, *arguments: str) -> int:
    return main(
        ["eval", "--model", "model", "--tasks", "colours.yaml", "--data", "data", "--output", output, *arguments]
    )


def test_a_task_of_ones_own_is_measured_compared_and_listed(folder, capsys):
    assert evaluated("run", "--shots", "0", "2", "--trials", "2") == 0
    printed = capsys.readouterr().out
    assert "colours      0  exact_match" in printed and "report: run/report.html" in printed
    results = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
    assert [score["samples"] for score in results["scores"]] == [4, 4]
    assert results["model"]["name"] == "model" and results["model"]["dtype"] == "float32"
    assert results["model"]["tiling"] is not None and results["tasks"]["colours"]["data"]["source"]
    assert evaluated("again", "--shots", "0", "2", "--trials", "2", "--batch-size", "1") == 0
    again = json.loads((folder / "again" / "results.json").read_text(encoding="utf-8"))
    assert again["scores"] == results["scores"]
    capsys.readouterr()
    assert main(["eval", "compare", "run", "again"]) == 0
    printed = capsys.readouterr().out
    assert "95 % interval" in printed and printed.count("colours") == 2
    assert main(["eval", "--list"]) == 0
    assert "easy_vqa" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["fixed", "rices"])
def test_demonstrations_may_be_chosen_otherwise(how, folder):
    assert evaluated("run", "--shots", "2", "--demonstrations", how, "--style", "chat") == 0
    results = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["tasks"]["colours"]["demonstrations"]["how"] == how


def test_a_model_that_was_trained_further_is_another(folder, capsys):
    assert evaluated("run") == 0
    model, _ = tiny_mm1()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained("model")
    assert evaluated("run") == 2
    assert "holds a run with other settings (model.weights:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tasks", "easy_vqa", "--output", "x"], "give --model DIR"),
        (["--model", "model", "--output", "x"], "name the tasks with --tasks"),
        (["--model", "model", "--tasks", "easy_vqa"], "give a folder for the results with --output"),
        (
            ["--model", "model", "--tasks", "easyvqa", "--output", "x"],
            "There is no task 'easyvqa'. Did you mean easy_vqa?",
        ),
        (["--model", "nowhere/at/all", "--tasks", "easy_vqa", "--output", "x"], "There is no folder nowhere/at/all"),
        (["--model", "model", "--tasks", "textvqa", "--output", "x"], "hf download"),
        (
            ["--model", "model", "--tasks", "easy_vqa", "--data", "coco=x", "--output", "x"],
            "names coco, which is not one",
        ),
        (["--model", "model", "--tasks", "easy_vqa", "--output", "x", "--judge-model", "y"], "give --judge too"),
        (["--model", "model", "--tasks", "easy_vqa", "--output", "x", "--shots", "4", "4"], "each once"),
        (
            ["--model", "model", "--tasks", "colours.yaml", "--data", "data", "--output", "x", "--shots", "9"],
            "9 demonstr",
        ),
        (["--endpoint", "no address", "--tasks", "easy_vqa", "--output", "x"], "The endpoint is 'no address'"),
        (["compare", "model", "model"], "holds no finished run"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, told, folder, capsys):
    capsys.readouterr()
    assert main(["eval", *arguments]) == 2
    error = capsys.readouterr().err.split("\r")[-1].splitlines()[-1]
    assert error.startswith("mm1 eval: ") and told in error
    assert not (folder / "x" / "results.json").exists()


def test_a_missing_column_is_named(folder, capsys):
    (folder / "colours.yaml").write_text(TASK.replace("question: question", "question: asked"), encoding="utf-8")
    assert evaluated("run") == 2
    assert "has no column 'asked'" in capsys.readouterr().err


class Server(ThreadingHTTPServer):
    """Answers chats with `yes`, until it has answered as many as it may."""

    def __init__(self, answers: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.left, self.asked = answers, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.left -= 1
        if self.server.left < 0:
            self.send_error(503)
            return
        self.server.asked += 1
        choice = {"index": 0, "message": {"role": "assistant", "content": "Yes"}, "finish_reason": "stop"}
        content = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def test_an_endpoint_that_dies_in_the_middle_is_gone_on_with(folder, capsys, monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.001)
    with Server(7) as server:
        arguments = ["eval", "--endpoint", f"http://127.0.0.1:{server.server_port}/v1", "--model", "served"]
        arguments += [
            "--tasks",
            "easy_vqa",
            "--limit",
            "20",
            "--style",
            "chat",
            "--output",
            "run",
            "--batch-size",
            "1",
        ]
        assert main(arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "The answers to 7 questions are saved in run: give the same command again" in error
        server.left = 100
        assert main(arguments) == 0
        assert server.asked == 20
        server.shutdown()
    assert "easy_vqa      0  exact_match" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_numbers_of_one(folder):
    command = [
        "-m",
        "mm1_hf.cli",
        "eval",
        "--model",
        "model",
        "--tasks",
        "easy_vqa",
        "--limit",
        "200",
        "--shots",
        "0",
        "2",
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    for output, start in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc_per_node", "2"])):
        subprocess.run(
            [sys.executable, *start, *command, "--output", output], check=True, capture_output=True, env=environment
        )
    one, two = (json.loads((folder / name / "results.json").read_text(encoding="utf-8")) for name in ("one", "two"))
    assert one["scores"] == two["scores"] and two["processes"] == 2
