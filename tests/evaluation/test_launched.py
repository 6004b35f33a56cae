"""`mm1 eval` under torchrun and `accelerate launch`, with ranks that are killed: the numbers of one process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from generating import far_from_initial
from tiny import tiny_mm1

from mm1_hf.evaluation.results import read_rows


pytestmark = pytest.mark.slow

QUESTIONS, ANSWERS = 300, 900
KILLS = 3
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    # With --cpu it starts one process, whatever their number, unless there is MPI.
    "accelerate": [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, processor = tiny_mm1()
    for part in (far_from_initial(model), processor):
        part.save_pretrained(folder)
    return folder


def start(model: Path, output: Path, launcher: list[str]) -> subprocess.Popen:
    command = [sys.executable, *launcher, "-m", "mm1_hf.cli", "eval", "--model", str(model), "--tasks", "easy_vqa"]
    command += ["--shots", "0", "1", "--trials", "2", "--limit", str(QUESTIONS), "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def answered(output: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (output / "journal").glob("*.jsonl"))


def ranks(process: subprocess.Popen) -> list[int]:
    return [int(each) for each in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def straight(model, tmp_path_factory):
    """A run of one process that nobody disturbed: its scores, and its table of answers."""
    output = tmp_path_factory.mktemp("straight")
    process = start(model, output, [])
    assert process.wait() == 0, process.stderr.read()
    return json.loads((output / "results.json").read_text())["scores"], read_rows(output)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="The ranks are found in /proc.")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_that_are_killed_leave_a_run_that_ends_with_the_same_numbers(launcher, model, straight, tmp_path):
    draw = random.Random(launcher)
    killed = 0
    for _ in range(KILLS):
        process = start(model, tmp_path, LAUNCHERS[launcher])
        before = answered(tmp_path)
        until = before + draw.randrange(1, max(2, (ANSWERS - before) // 2))
        while process.poll() is None and answered(tmp_path) < until:
            time.sleep(0.02)
        if process.poll() is None:
            os.kill(draw.choice(ranks(process)), signal.SIGKILL)
            killed += 1
        assert process.wait() != 0
    assert killed == KILLS and not (tmp_path / "results.json").exists()
    process = start(model, tmp_path, LAUNCHERS[launcher])
    assert process.wait() == 0, process.stderr.read()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["processes"] == 2 and results["scores"] == straight[0]
    assert read_rows(tmp_path) == straight[1]
    # Of both ranks there are answers.
    assert all(path.stat().st_size for path in (tmp_path / "journal").iterdir())
    assert len(list((tmp_path / "journal").iterdir())) == 2
