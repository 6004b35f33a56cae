"""Runs that are finished, gone on with other settings, begun twice at once, or unable to save."""

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from killed_runs import STEPS, finish, toy_settings
from mixtures import mixture, records
from ranks import run_ranks
from tiny import tiny_mm1
from transformers import TrainerCallback, TrainingArguments

from mm1_hf.cli import main
from mm1_hf.training import runs
from mm1_hf.training.output_folder import hold
from mm1_hf.training.streams import MixtureTrainer
from mm1_hf.training.trainer import MM1Trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, Path]:
    """For each command, a folder with the settings and the output of a finished run."""
    folders = {}
    for command in ("pretrain", "sft"):
        folder = folders[command] = tmp_path_factory.mktemp(command)
        runs.train(toy_settings(command, folder, 0))
    return folders


@pytest.fixture
def again(finished, tmp_path):
    """Settings that resume a copy of a finished run."""

    def settings(command: str):
        shutil.copytree(finished[command] / "run", tmp_path / command)
        return replace(toy_settings(command, finished[command], 0), output_dir=str(tmp_path / command))

    return settings


def contents(folder: str | Path) -> dict[str, bytes]:
    files = (file for file in Path(folder).rglob("*") if file.is_file() and file.name != "_mm1_run.lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("command", ["pretrain", "sft"])
@pytest.mark.parametrize("damage", [None, "no final model", "half a final model"])
def test_a_finished_run_stays_finished(command, damage, again, finished, caplog):
    settings = again(command)
    if damage:
        model = Path(settings.output_dir) / "model.safetensors"
        os.truncate(model, 1000)
        if damage == "no final model":
            model.unlink()
    trainer = runs.train(settings)
    assert trainer.state.global_step == STEPS
    expected = contents(finished[command] / "run")
    # It holds the output folder and the time.
    for name in ("training_args.bin",):
        expected.pop(name)
    after = contents(settings.output_dir)
    assert {name: after[name] for name in expected} == expected
    assert sorted(after) == sorted(contents(finished[command] / "run"))
    assert "it is not trained" in caplog.text


def arguments(folder: Path, **settings) -> TrainingArguments:
    fixed = {
        "use_cpu": True,
        "report_to": "none",
        "remove_unused_columns": False,
        "save_steps": 1,
        "disable_tqdm": True,
    }
    return TrainingArguments(output_dir=str(folder), **fixed | settings)


def rows(number: int) -> list[dict]:
    draw = torch.Generator().manual_seed(0)
    made = [torch.randint(0, 250, (8,), generator=draw) for _ in range(number)]
    return [{"input_ids": ids, "labels": ids} for ids in made]


@pytest.mark.parametrize("epochs", [2, 1.5])
@pytest.mark.parametrize("skip", [False, True])
def test_epochs_end_alike(epochs, skip, tmp_path):
    """On a list of rows, whose length says how many steps there are."""

    def trainer() -> MM1Trainer:
        given = arguments(
            tmp_path, num_train_epochs=epochs, per_device_train_batch_size=2, save_steps=100, ignore_data_skip=skip
        )
        return MM1Trainer(tiny_mm1()[0], given, train_dataset=datasets.Dataset.from_list(rows(8)).with_format("torch"))

    first = trainer()
    first.train()
    assert first.state.global_step == 4 * epochs
    before = contents(tmp_path)
    second = trainer()
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 4 * epochs and contents(tmp_path) == before
    for name, weight in first.model.named_parameters():
        assert torch.equal(weight, second.model.get_parameter(name)), name


def test_a_run_that_kept_only_its_best_checkpoint_is_finished(tmp_path):
    """Trainer deletes the last checkpoint then, and with it what tells that the run has ended."""

    def trainer() -> MM1Trainer:
        given = arguments(
            tmp_path,
            max_steps=4,
            learning_rate=1e-3,
            metric_for_best_model="loss",
            # As the loss falls, the first checkpoint is the best one.
            greater_is_better=True,
            eval_strategy="steps",
            eval_steps=1,
            save_total_limit=1,
            load_best_model_at_end=True,
        )
        data = datasets.Dataset.from_list(rows(8)).with_format("torch")
        return MM1Trainer(tiny_mm1()[0], given, train_dataset=data, eval_dataset=data)

    first = trainer()
    first.train()
    (kept,) = tmp_path.glob("checkpoint-*")
    assert kept.name == "checkpoint-1"
    before = contents(tmp_path)
    for _ in range(2):
        again = trainer()
        again.train(resume_from_checkpoint=True)
        assert contents(tmp_path) == before
    for name, weight in first.model.named_parameters():
        assert torch.equal(weight, again.model.get_parameter(name)), name


def test_the_epoch_in_the_log_is_that_of_the_whole_run(finished, again):
    settings = again("pretrain")
    for step in (4, 6):
        shutil.rmtree(Path(settings.output_dir) / f"checkpoint-{step}")
    runs.train(settings)
    logs = [
        json.loads((Path(folder) / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
        for folder in (finished["pretrain"] / "run", settings.output_dir)
    ]
    epochs = [[entry["epoch"] for entry in log] for log in logs]
    assert epochs[0] == epochs[1] == pytest.approx([step / STEPS for step in range(1, STEPS + 1)])


CHANGES = {
    "optim": ({"arguments": {"optim": "adafactor"}}, "optim: 'adamw_torch.*' in the checkpoint, 'adafactor' now"),
    "rate": ({"arguments": {"learning_rate": 1e-6}}, "learning_rate: 0.01 in the checkpoint, 1e-06 now"),
    "schedule": ({"arguments": {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": None}}, "lr_scheduler_type: "),
    "warm-up": ({"arguments": {"warmup_steps": 2}}, "warmup_steps: 1.* in the checkpoint, 2.* now"),
    "decay": ({"arguments": {"weight_decay": 0.0}}, "weight_decay: "),
    "clipping": ({"arguments": {"max_grad_norm": 0.5}}, "max_grad_norm: "),
    "part's rate": (
        {"learning_rates": {"connector": 0.1}},
        "learning_rates.connector: None in the checkpoint, 0.1 now",
    ),
    "frozen": ({"frozen": ("encoder",)}, "trained weights.encoder: "),
    "batch": ({"batch_size": 8}, "gradient_accumulation_steps: 2 in the checkpoint, 4 now"),
    "rows": ({"rows_per_device": 1}, "per_device_train_batch_size: 2 in the checkpoint, 1 now"),
    "length": ({"sequence_length": 64}, "sequence_length: 48 in the checkpoint, 64 now"),
    "images": ({"max_images": 3}, "max_images: 4 in the checkpoint, 3 now"),
    "seed": ({"seed": 1}, "seed: 0 in the checkpoint, 1 now"),
    "lanes": ({"lanes": 4}, "lanes: 2 in the checkpoint, 4 now"),
    "unit": ({"unit": "tokens"}, "unit: 'rows' in the checkpoint, 'tokens' now"),
    "splitting": ({"image_splitting": "dynamic"}, "image_splitting: 'none' in the checkpoint, 'dynamic' now"),
    "resolution": ({"resolution": 112}, "another resolution: .*position_embedding"),
    "fewer steps": (
        {"arguments": {"max_steps": 3}},
        "max_steps is 3, but .*checkpoint-4 has been trained for 4 steps",
    ),
}


def changed(settings, change: dict):
    change = dict(change)
    if "arguments" in change:
        change["arguments"] = settings.arguments | change["arguments"]
    return replace(settings, **change)


# One of each kind; `make test-all` runs the others.
_QUICK = ("optim", "rate", "frozen", "batch", "splitting", "resolution", "fewer steps")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _QUICK else pytest.mark.slow) for name in CHANGES]
)
def test_what_decides_the_result_must_be_that_of_the_checkpoint(name, again):
    change, message = CHANGES[name]
    settings = again("pretrain")
    shutil.rmtree(Path(settings.output_dir) / "checkpoint-6")
    before = contents(settings.output_dir)
    with pytest.raises(ValueError, match=message) as refused:
        runs.train(changed(settings, change))
    assert "output" in str(refused.value)
    assert contents(settings.output_dir) == before


def of_source(settings, **change):
    caption = replace(settings.sources["caption"], **change)
    return replace(settings, sources={**settings.sources, "caption": caption})


def test_the_records_must_be_those_of_the_checkpoint(again, tmp_path):
    settings = again("pretrain")
    shutil.rmtree(Path(settings.output_dir) / "checkpoint-6")
    for name, number in (("fewer", 50), ("others", 60)):
        made = records("caption", number)
        if name == "others":
            made[0]["parts"][1]["text"] += "!"
        datasets.Dataset.from_list(made).to_parquet(tmp_path / name / "train.parquet")
    for change, message in (
        ({"path": str(tmp_path / "fewer")}, "sources.caption.records: 60 in the checkpoint, 50 now"),
        ({"path": str(tmp_path / "others")}, "sources.caption.digest of 16 records: "),
        ({"path": str(tmp_path / "others")}, "sources.caption.path: "),
        ({"streaming": True}, "sources.caption.streaming: False in the checkpoint, True now"),
        ({"weight": 3.0}, "sources.caption.weight: "),
    ):
        with pytest.raises(ValueError, match=message):
            runs.train(of_source(settings, **change))
    turned = replace(settings, sources=dict(reversed(settings.sources.items())))
    with pytest.raises(ValueError, match="order of the sources: "):
        runs.train(turned)


def test_what_may_change_is_followed_and_said(again, caplog):
    settings = again("pretrain")
    more = {"max_steps": STEPS + 1, "logging_steps": 2, "dataloader_num_workers": 2, "save_total_limit": 1}
    trainer = runs.train(changed(settings, {"arguments": more}))
    assert trainer.state.global_step == STEPS + 1
    assert f"max_steps: {STEPS} in the checkpoint, {STEPS + 1} now" in caplog.text
    assert [each.name for each in Path(settings.output_dir).glob("checkpoint-*")] == [f"checkpoint-{STEPS + 1}"]


def test_another_adapter_is_refused(finished, tmp_path):
    settings = replace(toy_settings("sft", finished["sft"], 0), output_dir=str(tmp_path / "run"), lora="decoder")
    stopped = changed(settings, {"arguments": {"max_steps": 2}})
    runs.train(stopped)
    with pytest.raises(ValueError, match=r"trained weights|does not hold the weights of this model"):
        runs.train(replace(stopped, lora="decoder+connector"))
    trainer = runs.train(changed(settings, {"arguments": {"max_steps": 3}}))
    assert trainer.state.global_step == 3


def test_the_last_whole_checkpoint_is_resumed_with_the_same_end(again, finished, caplog):
    settings = again("pretrain")
    shutil.rmtree(Path(settings.output_dir) / "checkpoint-6")
    os.truncate(Path(settings.output_dir) / "checkpoint-4" / "model.safetensors", 1000)
    (Path(settings.output_dir) / "checkpoint-999").mkdir()
    runs.train(changed(settings, {"arguments": {"save_total_limit": 1, "save_steps": 3}}))
    kept = {each.name for each in Path(settings.output_dir).glob("checkpoint-*")}
    assert kept == {"checkpoint-4", f"checkpoint-{STEPS}", "checkpoint-999"}
    assert "checkpoint-4 cannot be resumed: model.safetensors is cut off" in caplog.text
    end = Path(f"checkpoint-{STEPS}") / "model.safetensors"
    assert (Path(settings.output_dir) / end).read_bytes() == (finished["pretrain"] / "run" / end).read_bytes()


def test_the_second_run_in_a_folder_is_refused(again, tmp_path):
    settings = again("pretrain")
    entered, leave = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def first() -> None:
        with hold(settings.output_dir):
            entered.set()
            leave.wait(60)

    process = multiprocessing.get_context("fork").Process(target=first)
    process.start()
    assert entered.wait(60)
    with pytest.raises(ValueError, match=rf"Another run uses the output folder .*process {process.pid} on "):
        runs.train(settings)
    with pytest.raises(ValueError, match="Another run uses the output folder"):
        MixtureTrainer(
            tiny_mm1()[0],
            arguments(Path(settings.output_dir), max_steps=1, ignore_data_skip=True),
            train_dataset=mixture(),
        ).train()
    # Nothing stays behind when a run is killed.
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert runs.train(settings).state.global_step == STEPS
    with hold(settings.output_dir), hold(settings.output_dir):
        pass


def hold_on_one_rank(rank: int, folder: str) -> str:
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"})
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": "0"})
    from accelerate import PartialState

    PartialState(cpu=True)
    with hold(f"{folder}/run"):
        pass
    try:
        with hold(f"{folder}/file/run"):
            return "held"
    except ValueError as error:
        return str(error)


def test_the_ranks_of_a_run_share_its_folder(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for message in run_ranks(hold_on_one_rank, tmp_path, str(tmp_path)):
        assert "cannot be written to: Not a directory" in message


@pytest.mark.parametrize("command", ["pretrain", "sft"])
def test_an_output_folder_that_cannot_be_written_to_is_found_first(command, finished, tmp_path, capsys):
    settings = toy_settings(command, finished[command], 0)
    (tmp_path / "file").write_text("", encoding="utf-8")
    entries = {
        "model": "/no/such/model",
        "output_dir": str(tmp_path / "file" / "run"),
        "sources": {"caption": {"path": "nowhere", "layout": "chat"}},
    }
    with pytest.raises(ValueError, match="cannot be written to"):
        runs.train(replace(settings, **entries | {"sources": settings.sources}))
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(entries | {"model": settings.model}), encoding="utf-8")
    assert main([command, "--config", str(tmp_path / "settings.yaml")]) == 2
    assert "cannot be written to: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("failing", ["model.safetensors", "optimizer.pt", "trainer_state.json", "final model"])
def test_a_full_disk_is_told_and_healed(failing, again, finished, monkeypatch):
    settings = again("pretrain")
    for step in (4, 6):
        shutil.rmtree(Path(settings.output_dir) / f"checkpoint-{step}")
    kept = contents(Path(settings.output_dir) / "checkpoint-2")
    full = OSError(28, "No space left on device")

    def fail(*args, **kwargs):
        raise full

    with monkeypatch.context() as patched:
        if failing == "optimizer.pt":
            patched.setattr(torch, "save", lambda *args, **kwargs: fail())
        elif failing == "trainer_state.json":
            patched.setattr("transformers.trainer_callback.TrainerState.save_to_json", fail)
        else:
            save = MM1Trainer.save_model
            final = failing == "final model"
            patched.setattr(
                MM1Trainer,
                "save_model",
                lambda self, folder=None, _internal_call=False: (
                    save(self, folder, _internal_call) if final and _internal_call else fail()
                ),
            )
        with pytest.raises(
            OSError, match=r"could not be written: .*No space left on device.*resumes from .*checkpoint-"
        ):
            runs.train(settings)
    assert contents(Path(settings.output_dir) / "checkpoint-2") == kept
    runs.train(settings)
    for end in ("model.safetensors", f"checkpoint-{STEPS}/model.safetensors"):
        assert (Path(settings.output_dir) / end).read_bytes() == (finished["pretrain"] / "run" / end).read_bytes()


class Spoil(TrainerCallback):
    """Makes the loss, or only the gradients, of a step NaN."""

    def __init__(self, step: int, model, what: str):
        self.step, self.model, self.what = step, model, what

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            weight = self.model.lm_head.weight
            if self.what == "loss":
                weight.data[0, 0] = float("nan")
            else:
                weight.register_hook(lambda gradient: gradient * float("inf"))


def spoiled(folder: Path, what: str) -> MM1Trainer:
    model = tiny_mm1()[0]
    given = arguments(folder, max_steps=4, ignore_data_skip=True, save_steps=1)
    return MM1Trainer(model, given, train_dataset=mixture(), callbacks=[Spoil(2, model, what)])


@pytest.mark.parametrize("what", ["loss", "gradients"])
def test_a_run_stops_before_nan_is_saved_over(what, tmp_path):
    words = {"loss": "the loss is", "gradients": "the norm of the gradients is"}
    with pytest.raises(ValueError, match=f"In step 3 {words[what]} NaN or infinite"):
        spoiled(tmp_path, what).train()
    assert sorted(each.name for each in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def nan_on_one_rank(rank: int, folder: str) -> str:
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"})
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": "0"})
    trainer = spoiled(Path(folder) / "run", "loss")
    if rank == 0:
        trainer.remove_callback(Spoil)
    try:
        trainer.train()
    except ValueError as error:
        return str(error)
    return "trained"


def test_all_ranks_stop_where_one_loss_is_nan(tmp_path):
    for message in run_ranks(nan_on_one_rank, tmp_path, str(tmp_path)):
        assert message.startswith("In step 3 the loss is NaN")


def test_a_run_finished_in_another_process_is_the_same(finished, again):
    """The digest that the campaign of kills compares is that of this process too."""
    import hashlib

    settings = again("pretrain")
    shutil.rmtree(settings.output_dir)
    weights = (finished["pretrain"] / "run" / "model.safetensors").read_bytes()
    assert finish(settings) == hashlib.sha256(weights).hexdigest()
