"""Pre-training from a file: what it resolves to, what it trains, and what it refuses."""

import json
import math

import datasets
import pytest
import torch
import yaml
from machines import CPUS, pretend_accelerator, pretend_cpu
from mixtures import records
from ranks import run_ranks
from streamed_runs import pretrain_one_rank
from tiny import byte_tokenizer, tiny_mm1, tiny_vision
from transformers import AutoModelForImageTextToText, AutoProcessor

from mm1_hf import MM1ConnectorConfig, MM1TextConfig, MM1TextForCausalLM, assemble
from mm1_hf.cli import main
from mm1_hf.training.runs import build_run, train
from mm1_hf.training.settings import PretrainingSettings, build_recipe, load_settings


@pytest.fixture
def settings(tmp_path):
    """Entries of a small run on three sources."""
    for part in tiny_mm1():
        part.save_pretrained(tmp_path / "model")
    sources = {}
    for kind in ("caption", "interleaved", "text"):
        datasets.Dataset.from_list(records(kind, 60)).to_parquet(tmp_path / kind / "train.parquet")
        sources[kind] = {"path": str(tmp_path / kind), "layout": "documents"}
    return {
        "model": str(tmp_path / "model"),
        "output_dir": str(tmp_path / "run"),
        "sources": sources,
        "sequence_length": 48,
        "max_images": 4,
        "batch_size": 4,
        "lanes": 2,
        "window": 16,
        "arguments": {
            "max_steps": 3,
            "logging_steps": 1,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "learning_rate": 1e-3,
            "warmup_steps": 0,
        },
    }


def write(tmp_path, settings, name: str = "settings.yaml") -> str:
    (tmp_path / name).write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(tmp_path / name)


def test_the_command_trains_saves_and_goes_on(settings, tmp_path, capsys):
    settings |= {"frozen": ["encoder"], "learning_rates": {"connector": 1e-2}, "peak_tflops": 1.0}
    settings["arguments"]["save_steps"] = 2
    assert main(["pretrain", "--config", write(tmp_path, settings)]) == 0
    printed = capsys.readouterr().out
    assert "'interleaved': 0.45" in printed and "batch_size: 4" in printed
    before, after = (AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("model", "run"))
    AutoProcessor.from_pretrained(tmp_path / "run")
    weights = dict(before.named_parameters())
    same = {name for name, weight in after.named_parameters() if torch.equal(weight, weights[name])}
    assert {name for name in weights if "vision_tower" in name} <= same
    assert not [name for name in same if "connector" in name and name.endswith("weight")]
    history = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3]
    assert set(history[0]) >= {
        "share/caption",
        "share/interleaved",
        "share/text",
        "dropped/caption",
        "grad_norm",
        "mfu",
    }
    assert {name for entry in history for name in entry} >= {"loss/caption", "loss/interleaved"}
    settings["arguments"]["max_steps"] = 5
    assert main(["pretrain", "--config", write(tmp_path, settings)]) == 0
    history = json.loads((tmp_path / "run" / "checkpoint-5" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4, 5]


@CPUS
@pytest.mark.parametrize("bf16", [None, True, False])
def test_a_run_starts_on_any_cpu(bf16, cpu_dtype, settings, tmp_path, monkeypatch, capsys):
    """What the machine decides, unless the file does, is what is printed and what the trainer computes in."""
    pretend_cpu(monkeypatch, cpu_dtype)
    settings["arguments"] = {
        "max_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
        **({} if bf16 is None else {"bf16": bf16}),
    }
    trainer = train(load_settings(PretrainingSettings, write(tmp_path, settings)))
    expected = cpu_dtype is torch.bfloat16 if bf16 is None else bf16
    printed = capsys.readouterr().out
    assert f"'bf16': {expected}" in printed and "'fp16': False" in printed and "'use_cpu': True" in printed
    assert (trainer.args.bf16, trainer.args.fp16, trainer.args.use_cpu) == (expected, False, True)
    assert trainer.accelerator.mixed_precision == ("bf16" if expected else "no")
    assert trainer.state.global_step == 1 and math.isfinite(trainer.state.log_history[0]["loss"])
    assert trainer.model.dtype is torch.float32, "the trained weights stay in float32"


def test_a_run_can_be_held_to_the_cpu(settings, tmp_path, monkeypatch):
    pretend_cpu(monkeypatch, torch.float32)
    pretend_accelerator(monkeypatch, "cuda", bfloat16=True)
    settings["arguments"] = {"use_cpu": True}
    run = build_run(load_settings(PretrainingSettings, write(tmp_path, settings)))
    assert run.trainer.args.use_cpu and not run.trainer.args.bf16 and run.trainer.model.device.type == "cpu"
    assert run.recipe.arguments["use_cpu"] and not run.recipe.arguments["bf16"]


def tiny_moe():
    """As `tiny_mm1`, with experts in every layer of the decoder."""
    torch.manual_seed(4)
    config = MM1TextConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        eos_token_id=256,
    )
    connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32)
    decoder = MM1TextForCausalLM(config).eval()
    return assemble(tiny_vision(), decoder, connector, tokenizer=byte_tokenizer(), verbose=False)


@pytest.mark.parametrize(
    "distributed",
    [{"fsdp_size": 2}, pytest.param({"fsdp_size": 2, "ep_size": 2}, marks=pytest.mark.slow)],
    ids=["fsdp", "fsdp-ep"],
)
def test_split_weights_are_saved_whole_and_resumed(settings, distributed, tmp_path):
    """On two ranks, in one go and with a stop after two of four steps."""
    if "ep_size" in distributed:
        for part in tiny_moe():
            part.save_pretrained(tmp_path / "model")
    settings |= {"distributed": distributed}
    files = []
    for name, steps in (("whole", 4), ("stopped", 2), ("stopped", 4)):
        changes = {"max_steps": steps, "lr_scheduler_type": "constant", "lr_scheduler_kwargs": None}
        run = {"output_dir": str(tmp_path / name), "arguments": settings["arguments"] | changes}
        files.append(write(tmp_path, settings | run, f"{name}-{steps}.yaml"))
    assert run_ranks(pretrain_one_rank, tmp_path, *files) == [True, True]
    before, whole, resumed, shards = (
        dict(AutoModelForImageTextToText.from_pretrained(tmp_path / name).named_parameters())
        for name in ("model", "whole", "stopped", "stopped/checkpoint-4")
    )
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=0, msg=name)
        assert torch.equal(shards[name], weight), name
    changed = [name for name in whole if "_proj" in name and name.endswith(("weight", "proj"))]
    assert changed and all(not torch.equal(before[name], whole[name]) for name in changed)
    history = json.loads((tmp_path / "stopped/checkpoint-4/trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]


def test_what_is_unset_is_the_recipes(settings, tmp_path):
    for name in ("batch_size", "max_images", "sequence_length"):
        settings.pop(name)
    settings["arguments"] = {"use_cpu": True}
    loaded = load_settings(PretrainingSettings, write(tmp_path, settings))
    stage = build_recipe(loaded, AutoModelForImageTextToText.from_pretrained(loaded.model))
    assert (stage.batch_size, stage.data.sequence_length, stage.data.max_images, stage.data.unit) == (
        512,
        4096,
        16,
        "rows",
    )
    assert stage.data.mixture == {"interleaved": 0.45, "caption": 0.45, "text": 0.10}
    assert stage.arguments["weight_decay"] == 0.1 and stage.arguments["warmup_steps"] == 2000


def test_weights_and_continual_settings_take_effect(settings, tmp_path):
    settings |= {"stage": "continual", "unit": "tokens", "rows_per_device": 2}
    for source in settings["sources"].values():
        source["weight"] = 2.0
    run = build_run(load_settings(PretrainingSettings, write(tmp_path, settings))).trainer
    assert run.args.optim == "adafactor" and run.args.gradient_accumulation_steps == 2
    assert run.train_dataset.unit == "tokens" and {source.weight for source in run.train_dataset.sources} == {2.0}
    assert run.processing_class.image_processor.image_splitting == "static"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown entries: colour"),
        ({"sources": {}}, "sources names no data set"),
        ({"sources": {"a": {"path": "x"}}}, "sources.a lacks the entries layout"),
        ({"sources": {"a": "x"}}, "sources.a holds .x., but must hold entries"),
        ({"stage": "sft"}, "stages of pre-training are"),
        ({"frozen": ["tail"]}, "no part tail"),
        ({"batch_size": 5, "rows_per_device": 2}, "does not divide"),
        ({"distributed": {"fsdp_size": 2}}, "is 2 processes, but 1 were started"),
        ({"peak_tflops": -1}, "peak_tflops"),
    ],
)
def test_wrong_settings_are_refused(settings, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_run(load_settings(PretrainingSettings, write(tmp_path, settings | change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nowhere"}, "nowhere"),
        ({"layout": "pairs"}, "pairs"),
        ({"weight": 0}, "sources.caption: weight is 0"),
        ({"weight": -1.0}, "sources.caption: weight is -1"),
    ],
)
def test_wrong_sources_are_refused_by_the_command(settings, change, message, tmp_path, capsys):
    settings["sources"]["caption"] |= change
    assert main(["pretrain", "--config", write(tmp_path, settings)]) == 2
    assert message in capsys.readouterr().err


def test_a_source_without_weight_needs_the_recipes_name(settings, tmp_path):
    settings["sources"]["pictures"] = settings["sources"].pop("caption")
    with pytest.raises(ValueError, match="pictures have no weight"):
        build_run(load_settings(PretrainingSettings, write(tmp_path, settings)))


def test_a_file_that_is_none(tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("a: [", encoding="utf-8")
    (tmp_path / "list.yaml").write_text("[]", encoding="utf-8")
    for name, message in (
        ("broken.yaml", "neither YAML"),
        ("list.yaml", "must hold entries"),
        ("none.yaml", "none.yaml"),
    ):
        assert main(["pretrain", "--config", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
