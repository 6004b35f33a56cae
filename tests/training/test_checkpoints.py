"""Which checkpoint is resumed: the newest one that is whole."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from mixtures import mixture
from tiny import tiny_mm1
from transformers import TrainingArguments

from mm1_hf.training.checkpoints import checkpoint_fault, delete_oldest, last_complete_checkpoint
from mm1_hf.training.streams import MixtureTrainer


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The folder of a run with checkpoint-1 and checkpoint-2."""
    folder = tmp_path_factory.mktemp("run")
    MixtureTrainer(
        model=tiny_mm1()[0],
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            max_steps=2,
            save_steps=1,
            report_to="none",
            remove_unused_columns=False,
            ignore_data_skip=True,
        ),
        train_dataset=mixture(),
    ).train()
    return folder


@pytest.fixture
def run(written, tmp_path) -> Path:
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "mixture_0.json", "mm1_run.json", "trainer_state.json")


@pytest.mark.parametrize("left", [None, 0, 0.5, -1])
@pytest.mark.parametrize("name", ["model.safetensors", *FILES])
def test_a_checkpoint_lacking_anything_is_passed_over(name, left, run, caplog):
    """Each of its files missing, empty, cut in half, and without its last bytes."""
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2")
    file = run / "checkpoint-2" / name
    size = file.stat().st_size
    if left is None:
        file.unlink()
    else:
        os.truncate(file, size - 2 if left < 0 else int(left * size))
    with caplog.at_level("WARNING"):
        assert last_complete_checkpoint(run) == str(run / "checkpoint-1")
    assert name in str(checkpoint_fault(run / "checkpoint-2")) or "weights are missing" in str(
        checkpoint_fault(run / "checkpoint-2")
    )


def test_folders_of_others_are_passed_over(run):
    for name in ("checkpoint-999", "checkpoint-best", "checkpoint-³", "checkpoint-7"):
        (run / name).mkdir()
        (run / name / "trainer_state.json").write_text('{"a": 1}', encoding="utf-8")
    (run / "checkpoint-1000").write_text("a file", encoding="utf-8")
    # A copy under another name is not the checkpoint of that step.
    shutil.copytree(run / "checkpoint-1", run / "checkpoint-50")
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2")


def test_what_is_deleted_is_complete_and_old(run):
    """With a broken checkpoint of a later step and a folder of others, which Trainer would keep in place of good ones."""
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-9")
    (run / "checkpoint-999").mkdir()
    delete_oldest(run, newest=2, limit=2, best=None)
    assert {each.name for each in run.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (1, 2, 9, 999)}
    delete_oldest(run, newest=2, limit=1, best=str(run / "checkpoint-1"))
    assert (run / "checkpoint-1").exists()
    delete_oldest(run, newest=2, limit=1, best=None)
    assert {each.name for each in run.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (2, 9, 999)}


def test_shards_are_looked_at_each(run):
    folder = run / "checkpoint-2"
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "model-00001-of-00002.safetensors").write_bytes(whole)
    assert checkpoint_fault(folder) == "model-00002-of-00002.safetensors is missing"
    (folder / "model-00002-of-00002.safetensors").write_bytes(whole[:-8])
    assert "model-00002-of-00002.safetensors has" in str(checkpoint_fault(folder))
    (folder / "model-00002-of-00002.safetensors").write_bytes(whole)
    assert checkpoint_fault(folder) is None
    for broken in ("[]", "{}", '{"weight_map": {"a": 1}}', "{"):
        (folder / "model.safetensors.index.json").write_text(broken, encoding="utf-8")
        assert "model.safetensors.index.json" in str(checkpoint_fault(folder))


@pytest.mark.parametrize(
    "header", [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 8) + b'{"a": 1}']
)
def test_a_file_of_weights_that_is_none(header, run):
    (run / "checkpoint-2" / "model.safetensors").write_bytes(header)
    assert "model.safetensors is cut off" in str(checkpoint_fault(run / "checkpoint-2"))


def test_where_none_is_whole(run, tmp_path):
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    for step in (1, 2):
        (run / f"checkpoint-{step}" / "optimizer.pt").unlink()
    with pytest.raises(
        ValueError, match=r"checkpoint-2: optimizer.pt is missing; checkpoint-1: optimizer.pt is missing"
    ):
        last_complete_checkpoint(run)


@pytest.mark.parametrize("broken", [None, "", "{"])
def test_a_run_killed_in_its_first_save_begins_again(broken, run):
    shutil.rmtree(run / "checkpoint-2")
    (run / "checkpoint-1" / "trainer_state.json").unlink()
    if broken is not None:
        (run / "checkpoint-1" / "trainer_state.json").write_text(broken, encoding="utf-8")
    assert last_complete_checkpoint(run) is None


def test_the_state_of_every_process_is_looked_for(run):
    folder = run / "checkpoint-2"
    about = json.loads((folder / "mm1_run.json").read_text(encoding="utf-8"))
    (folder / "mm1_run.json").write_text(json.dumps(about | {"processes": 2}), encoding="utf-8")
    assert checkpoint_fault(folder) == "rng_state_0.pth is missing"
    for process in range(2):
        torch.save({}, folder / f"rng_state_{process}.pth")
    assert checkpoint_fault(folder) == "mixture_1.json is missing"
