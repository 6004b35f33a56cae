"""Device, dtype and `TrainingArguments` on every kind of machine."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from machines import CPUS, pretend_accelerator, pretend_cpu
from tiny import tiny_mm1
from transformers import Trainer, TrainingArguments

import mm1_hf
from mm1_hf.data.collation import MM1Collator
from mm1_hf.model.segment_attention import SEGMENT_SDPA
from mm1_hf.training import machine
from mm1_hf.training.machine import this_machine


NO, BF16, FP16 = {"bf16": False, "fp16": False}, {"bf16": True, "fp16": False}, {"bf16": False, "fp16": True}
PRECISIONS = {torch.float32: NO, torch.bfloat16: BF16, torch.float16: FP16}


@pytest.mark.parametrize(
    ("kind", "bfloat16", "dtype"),
    [
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("mps", True, torch.float32),
        ("mps", False, torch.float32),
        ("xpu", True, torch.bfloat16),
        ("xpu", False, torch.float32),
    ],
)
def test_every_machine_has_its_answer(kind, bfloat16, dtype, monkeypatch):
    if kind == "cpu":
        pretend_cpu(monkeypatch, torch.bfloat16 if bfloat16 else torch.float32)
    else:
        pretend_accelerator(monkeypatch, kind, bfloat16)
    given = this_machine()
    assert (given.device, given.dtype) == (torch.device(kind), dtype)
    assert given.arguments == {**PRECISIONS[dtype], "use_cpu": kind == "cpu"}


@pytest.mark.parametrize(
    ("kind", "bfloat16", "wanted", "dtype"),
    [
        ("cpu", True, {"bf16": False}, torch.float32),
        ("cpu", False, {"bf16": True}, torch.bfloat16),
        ("cpu", True, {"fp16": False}, torch.bfloat16),
        ("cpu", False, {"use_cpu": False}, torch.float32),
        ("cuda", True, {"bf16": False}, torch.float32),
        ("cuda", True, {"fp16": True}, torch.float16),
        ("cuda", True, {"fp16": False}, torch.bfloat16),
        ("cuda", True, {"use_cpu": False, "learning_rate": 1.0}, torch.bfloat16),
        ("cuda", False, {"bf16": False}, torch.float32),
        ("cuda", False, {"fp16": False}, torch.float32),
        ("cuda", False, {"bf16": True}, torch.bfloat16),
        ("mps", False, {"bf16": True}, torch.bfloat16),
    ],
)
def test_what_is_wanted_comes_first(kind, bfloat16, wanted, dtype, monkeypatch):
    if kind == "cpu":
        pretend_cpu(monkeypatch, torch.bfloat16 if bfloat16 else torch.float32)
    else:
        pretend_accelerator(monkeypatch, kind, bfloat16)
    given = this_machine(wanted)
    assert (given.device.type, given.dtype) == (kind, dtype)
    assert given.arguments == {**PRECISIONS[dtype], "use_cpu": kind == "cpu"}


@CPUS
@pytest.mark.parametrize("how", ["argument", "accelerate launch --cpu"])
def test_a_machine_with_a_gpu_can_use_its_cpu(how, cpu_dtype, monkeypatch):
    pretend_cpu(monkeypatch, cpu_dtype)
    pretend_accelerator(monkeypatch, "cuda", bfloat16=True)
    if how == "argument":
        given = this_machine({"use_cpu": True})
    else:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        given = this_machine()
    assert (given.device.type, given.dtype) == ("cpu", cpu_dtype)
    assert given.arguments == {**PRECISIONS[cpu_dtype], "use_cpu": True}


def test_float16_on_a_cpu_is_refused(monkeypatch):
    pretend_cpu(monkeypatch, torch.float32)
    with pytest.raises(ValueError, match="fp16 is true, but this run uses the CPU"):
        this_machine({"fp16": True})


@CPUS
@pytest.mark.parametrize("wanted", [{}, {"bf16": True}, {"bf16": False}, {"use_cpu": False}], ids=str)
def test_training_arguments_accept_every_answer_for_a_cpu(wanted, cpu_dtype, tmp_path, monkeypatch):
    pretend_cpu(monkeypatch, cpu_dtype)
    given = this_machine(wanted)
    arguments = TrainingArguments(str(tmp_path), **given.arguments)
    assert arguments.device == given.device
    assert arguments.mixed_precision == ("bf16" if given.dtype is torch.bfloat16 else "no")


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs a GPU")
def test_training_arguments_use_the_accelerator(tmp_path):
    given = this_machine()
    arguments = TrainingArguments(str(tmp_path), **given.arguments)
    assert arguments.device.type == given.device.type != "cpu"


@pytest.mark.parametrize(
    ("bfloat16", "float32", "faster"),
    [
        ([1.0] * 6, [2.0] * 6, True),
        ([2.0] * 6, [1.0] * 6, False),
        ([1.0] * 6, [1.0] * 6, False),
        ([9.0, 9.0, 1.0, 9.0, 9.0, 9.0], [2.0] * 6, True),
        ([2.0] * 6, [9.0, 9.0, 9.0, 9.0, 9.0, 1.0], False),
    ],
    ids=["faster", "slower", "equal", "interrupted", "float32 interrupted"],
)
def test_the_fastest_product_of_each_dtype_counts(bfloat16, float32, faster, monkeypatch):
    """With a clock that shows these seconds for one product after the other, in turns."""
    durations = [second for pair in zip(bfloat16, float32, strict=True) for second in pair]
    readings = iter([reading for second in durations for reading in (0.0, second)])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(readings))
    threads = torch.get_num_threads()
    assert machine._cpu_is_faster_in_bfloat16.__wrapped__() is faster
    assert torch.get_num_threads() == threads


def test_it_is_measured_once(monkeypatch):
    machine._cpu_is_faster_in_bfloat16()
    monkeypatch.setattr(machine, "time", None)
    assert this_machine({"use_cpu": True}) == this_machine({"use_cpu": True})


def test_nothing_else_asks_what_the_machine_has():
    """The package, the examples and the README ask `this_machine`."""
    root = Path(__file__).parents[2]
    files = [*Path(mm1_hf.__file__).parent.rglob("*.py"), *(root / "examples").iterdir(), root / "README.md"]
    asking = re.compile(r"cuda\.is_available|bf16_supported|bf16_gpu|[\"']?(bf16|use_cpu)[\"']?\s*[=:]\s*+(?!True)")
    found = [
        f"{file.relative_to(root)}: {line.strip()}"
        for file in files
        if file.is_file() and file.name != "machine.py"
        for line in file.read_text(encoding="utf-8").splitlines()
        if asking.search(line)
    ]
    assert not found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="trains on a GPU")
@pytest.mark.parametrize("attention", ["sdpa", SEGMENT_SDPA, "flex_attention"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_gpu_trains_in_half_precision(precision, attention, tmp_path):
    """
    Its losses follow those of float32, and its weights stay float32. In float16 they follow later: Trainer's gradient scaler
    skips the first steps, until its scale no longer overflows.
    """
    images = torch.rand(4, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    rows = [
        {"text": index % 2 * "<image>" + "words" * (1 + index), "images": list(images[: index % 2])}
        for index in range(4)
    ]
    histories = []
    for wanted in ({"bf16": False, "fp16": False}, {precision: True}):
        model, processor = tiny_mm1()
        processor.image_processor.image_splitting = "none"
        model.set_attn_implementation({"text_config": attention})
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=20,
            logging_steps=1,
            learning_rate=0.001,
            lr_scheduler_type="constant",
            per_device_train_batch_size=len(rows),
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **this_machine(wanted).arguments,
        )
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=MM1Collator(processor))
        trainer.train()
        histories.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    exact, half = histories
    # Every step has the whole data, so that a skipped one shows as a loss that stays.
    skipped = np.isclose(half, half[0], rtol=1e-4).sum() - 1
    assert skipped == 0 if precision == "bf16" else skipped < 12
    np.testing.assert_allclose(half[skipped:], exact[: len(half) - skipped], rtol=0.03)
    assert half[-1] < half[0]
