import re
from dataclasses import replace

import pytest

from mm1_hf import MM1Config
from mm1_hf.cli import main
from mm1_hf.planning import planner
from mm1_hf.planning.memory import DeviceMemory, Layout, state_memory
from mm1_hf.planning.planner import plan, token_budget
from mm1_hf.training.recipes import STAGES, recipe


GB = 10**9


@pytest.fixture
def activations(monkeypatch):
    """In place of the dry run, which has tests of its own: 10 GB."""
    asked = []

    def device_memory(config, row, layout, *, optimizer, gradient_checkpointing):
        asked.append((row, layout, gradient_checkpointing))
        states = state_memory(config, layout, optimizer)
        return DeviceMemory(**vars(states) | {"activations": 10 * GB})

    monkeypatch.setattr(planner, "device_memory", device_memory)
    return asked


def cells(text, label):
    """The numbers of the line that begins with `label`."""
    line = next(line for line in text.splitlines() if line.strip().startswith(label))
    return [float(number.replace(",", "")) for number in re.findall(r"(?<=\s)[\d,.]+", line.split(label, 1)[1])]


def test_the_schedule_is_one_of_400_billion_positions(activations):
    text = plan("mm1-3b", 64)
    # 512 rows of 4096 positions, 200,000 times; nine of ten have 16 images of 144 tokens.
    assert cells(text, "positions") == [4096, 4096, 2_097_152, 419.43]
    assert cells(text, "images, at most") == [16, 0, 7373, 1.47]
    assert cells(text, "image tokens, at most") == [2304, 0, 1_061_683, 212.34]
    assert cells(text, "text tokens, at least") == [1792, 4096, 1_035_469, 207.09]
    assert cells(text, "loss tokens, about") == [1792, 4095, 1_035_418, 207.08]
    assert "100B positions would have 47,684 steps" in text


@pytest.mark.parametrize(
    ("preset", "stage", "images", "tiles", "share"),
    [
        ("mm1-3b", "pretrain", 16, 16, 0.9),
        ("mm1.5-3b", "pretrain", 16, 16, 0.6),
        # 28 tiles fit 4096 positions; static splitting makes 4 and an overview of each image.
        ("mm1-3b", "continual", 5, 25, 1.0),
        ("mm1-3b", "sft", 2, 10, 1 - 13 / 1448),
        ("mm1.5-3b", "sft", 14, 14, 0.9),
    ],
)
def test_images_of_a_row(preset, stage, images, tiles, share):
    budget = token_budget(recipe(preset, stage), MM1Config.from_preset(preset))
    assert (budget.images, budget.tiles, budget.image_tokens) == (images, tiles, 144 * tiles)
    assert budget.image_share == pytest.approx(share)


def test_memory_by_layout(activations):
    text = plan("mm1-3b", 64, gradient_checkpointing=True)
    names = ("weights", "gradients", "optimizer", "buckets", "gathered", "activations", "update", "peak")
    layouts = {}
    for layout in ("DDP=64", "FSDP2=64", "TP=8 x FSDP2=8"):
        layouts[layout] = dict(zip(("passes", *names), cells(text, layout), strict=True))
    ddp, fsdp, tp = layouts.values()
    total = 3.804
    assert ddp["weights"] + ddp["gradients"] + ddp["optimizer"] == pytest.approx(16 * total, abs=0.2)
    assert ddp["peak"] == pytest.approx(20 * total + 4 * total, abs=0.2), "the optimizer's step takes more than 10 GB"
    assert fsdp["weights"] == pytest.approx(4 * total / 64, abs=0.1)
    assert fsdp["peak"] == pytest.approx(16 * total / 64 + fsdp["gathered"] + 10, abs=0.2)
    assert [layout["passes"] for layout in layouts.values()] == [8, 8, 64]
    assert tp["weights"] > 0.99 * fsdp["weights"], "encoder and connector are on every rank of a group"
    for row, _, checkpointing in activations:
        assert (row.positions, row.tiles, row.targets, row.rows) == (4096, 16, 1792, 1)
        assert checkpointing
    assert "  no" in text.split("DDP=64")[1].splitlines()[0]
    assert "fits" in text.split("  FSDP2=64")[1].splitlines()[0]


def test_experts_are_spread_by_the_most_ranks_that_divide(activations):
    plan("mm1-3b-moe", 32)
    assert [layout.ep for _, layout, _ in activations] == [1, 1, 32, 1]
    activations.clear()
    plan("mm1-3b-moe", 64, ep=16, tp=2)
    assert [(layout.ep, layout.tp) for _, layout, _ in activations] == [(1, 1), (1, 1), (16, 1), (1, 2)]


def test_tensor_parallel_groups_share_rows(activations):
    plan("mm1-3b", 1024, tp=8)
    assert [layout for _, layout, _ in activations] == [Layout(data=128, sharded=True, tp=8)]
    activations.clear()
    plan("mm1-30b", 8)
    assert activations[-1][1] == Layout(data=1, tp=8)
    activations.clear()
    plan("mm1-3b", 1)
    assert [str(layout) for _, layout, _ in activations] == ["one GPU"]


def test_more_gpus_than_rows_take_a_given_number_of_expert_parallel_ranks(activations):
    text = plan("mm1-3b-moe", 1024, tp=8, ep=16)
    groups = Layout(data=128, sharded=True, tp=8)
    assert [layout for _, layout, _ in activations] == [groups, replace(groups, ep=16)]
    ends = {line.index("in 80 GB") for line in text.splitlines() if "in 80 GB" in line}
    assert {line.index("fits") for line in text.splitlines() if line.endswith("  fits")} == ends, "the columns line up"


def test_time_is_work_over_speed(activations):
    days = [cells(plan("mm1-30b", gpus), "Time at 40% MFU of 989 TFLOP/s:")[0] for gpus in (256, 512)]
    assert days[0] == pytest.approx(2 * days[1], rel=0.02)
    # 6 operations for each of the decoder's parameters and positions, and the encoder's share of 5 %.
    assert days[1] == pytest.approx(6 * 29.7e9 * 419.4e9 * 1.1 / (512 * 989e12 * 0.4) / 86400, rel=0.05)


def test_later_stages_have_their_tiles_and_optimizer(activations):
    text = plan("mm1-3b", 32, stage="continual")
    assert "25 tiles of 672 pixels" in text
    assert "adafactor" in text
    ddp = cells(text, "DDP=32")
    assert ddp[3] < 0.02 * ddp[1], "AdaFactor keeps rows and columns alone"
    assert plan("mm1.5-3b", 32).count("16 tiles of 378 pixels") == 1
    assert plan("mm1.5-3b", 32, stage="sft").count("14 tiles of 672 pixels") == 1


@pytest.mark.parametrize("preset", ["mm1-proxy-9m", "mm1-ablation-1.2b", "mm1-7b-moe", "mm1.5-1b"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_planned(preset, stage, activations):
    report, assumptions = plan(preset, 8, stage=stage).split("Assumptions:")
    layouts = [line[2:18].strip() for line in report.splitlines() if line.endswith(("  fits", "  no"))]
    assert layouts[:2] == ["DDP=8", "FSDP2=8"]
    assert assumptions
    assert max(map(len, report.splitlines())) <= 140


def test_the_command_prints_a_plan_with_a_dry_run(capsys):
    assert main(["plan", "mm1-tiny", "--gpus", "2"]) == 0
    text = capsys.readouterr().out
    assert cells(text, "DDP=2")[6] > 0
    assert "Assumptions:" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mm1-4b", "--gpus", "8"], "mm1-4b"),
        (["mm1-3b", "--gpus", "24"], "does not divide"),
        (["mm1-3b", "--gpus", "2", "--mfu", "40"], "MFU"),
        (["mm1-3b", "--gpus", "8", "--tp", "3"], "tensor-parallel groups of 3"),
        (["mm1-30b", "--gpus", "16", "--tp", "16"], "num_attention_heads=56"),
        (["mm1-3b-moe", "--gpus", "8", "--ep", "3"], "64 experts"),
        (["mm1-3b-moe", "--gpus", "8", "--ep", "16"], "divides 8"),
        (["mm1-3b", "--gpus", "8", "--ep", "8"], "dense"),
        (["mm1-3b", "--gpus", "1024", "--tp", "8", "--ep", "16"], "dense"),
        (["mm1-3b-moe", "--gpus", "1024", "--tp", "8", "--ep", "12"], "64 experts"),
        (["mm1-3b-moe", "--gpus", "1024", "--tp", "8", "--ep", "4"], "multiple of 8"),
        (["mm1-3b", "--gpus", "1024", "--tp", "1"], "does not divide into passes of 1024 devices"),
        (["mm1-3b", "--gpus", "8", "--memory", "0"], "--memory"),
    ],
)
def test_what_cannot_be_planned_is_said(arguments, words, capsys):
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
