import re

import pytest

from mm1_hf.cli import main
from mm1_hf.training.planner import plan


def number(text, label):
    return float(re.search(rf"{label}\D*?\s([\d.,]+)", text).group(1).replace(",", ""))


def test_the_schedule_is_one_of_400_billion_positions():
    text = plan("mm1-3b", 64)
    # 512 rows of 4096 positions and 16 images of 144 tokens, 200,000 times
    assert number(text, "positions") == 419.4
    assert number(text, "image tokens, at most") == pytest.approx(1_179_648 * 200_000 / 1e9, abs=0.1)
    assert number(text, "text tokens, at least") == pytest.approx(917_504 * 200_000 / 1e9, abs=0.1)


def test_memory_is_16_bytes_a_parameter_and_sharded_by_fsdp():
    ddp, fsdp = map(float, re.search(r"  sum\s+([\d.]+)\s+([\d.]+)", plan("mm1-3b", 64)).groups())
    assert ddp == pytest.approx(16 * 3.8e9 / 2**30, rel=0.01)
    assert fsdp == pytest.approx(ddp / 64, abs=0.05)


def test_time_halves_with_twice_the_gpus():
    days = [number(plan("mm1-30b", gpus), "TFLOP/s:") for gpus in (256, 512)]
    assert days[0] == pytest.approx(2 * days[1], rel=0.01)


def test_the_command_prints_the_plan(capsys):
    assert main(["plan", "mm1-tiny", "--gpus", "2"]) == 0
    assert "Assumed:" in capsys.readouterr().out
    assert main(["plan", "mm1-3b", "--gpus", "24"]) == 2
    assert "does not divide" in capsys.readouterr().err
    assert main(["plan", "mm1-3b", "--gpus", "2", "--mfu", "40"]) == 2
