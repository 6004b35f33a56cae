"""Fine-tuning from a file: what it resolves to, what it trains, and what it refuses."""

import json
import math

import pytest
import torch
import yaml
from conversations import as_prompts, conversations
from machines import CPUS, pretend_cpu
from PIL import Image
from tiny import tiny_mm1
from transformers import AutoModelForImageTextToText, AutoProcessor

from mm1_hf import MM1Config
from mm1_hf.cli import main
from mm1_hf.training.runs import build_run, train
from mm1_hf.training.settings import PretrainingSettings, SFTSettings, build_recipe, load_settings


@pytest.fixture
def settings(tmp_path):
    """Entries of a small run on two categories."""
    for part in tiny_mm1():
        part.save_pretrained(tmp_path / "model")
    conversations(40).to_parquet(tmp_path / "general" / "train.parquet")
    as_prompts(conversations(40, most_images=0)).to_parquet(tmp_path / "text-only" / "train.parquet")
    return {
        "model": str(tmp_path / "model"),
        "output_dir": str(tmp_path / "run"),
        "sources": {name: {"path": str(tmp_path / name), "layout": "chat"} for name in ("general", "text-only")},
        "recipe": "mm1.5-1b",
        "sequence_length": 200,
        "resolution": 56,
        "image_splitting": "none",
        "batch_size": 4,
        "rows_per_device": 2,
        "lanes": 2,
        "window": 16,
        "arguments": {
            "max_steps": 3,
            "logging_steps": 1,
            "save_steps": 2,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "learning_rate": 1e-3,
        },
    }


def write(tmp_path, settings) -> str:
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(tmp_path / "settings.yaml")


def history(tmp_path, step: int) -> list[dict]:
    state = json.loads((tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry for entry in state["log_history"] if "loss" in entry]


def test_the_command_trains_saves_and_goes_on(settings, tmp_path, capsys):
    settings |= {"frozen": ["encoder"], "learning_rates": {"connector": 1e-2}}
    assert main(["sft", "--config", write(tmp_path, settings)]) == 0
    printed = capsys.readouterr().out
    assert "stage: 'sft'" in printed and "'optim': 'adafactor'" in printed
    before, after = (AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("model", "run"))
    weights = dict(before.named_parameters())
    same = {name for name, weight in after.named_parameters() if torch.equal(weight, weights[name])}
    assert {name for name in weights if "vision_tower" in name} <= same
    assert not [name for name in same if "connector" in name and name.endswith("weight")]
    assert AutoProcessor.from_pretrained(tmp_path / "run").image_processor.image_splitting == "none"
    entries = history(tmp_path, 3)
    assert [entry["step"] for entry in entries] == [1, 2, 3]
    assert {name for entry in entries for name in entry} >= {"share/general", "loss/general", "dropped/text-only"}
    settings["arguments"]["max_steps"] = 5
    assert main(["sft", "--config", write(tmp_path, settings)]) == 0
    assert [entry["step"] for entry in history(tmp_path, 5)] == [1, 2, 3, 4, 5]


@CPUS
@pytest.mark.parametrize("lora", [None, "decoder+connector"])
def test_a_run_starts_on_any_cpu(lora, cpu_dtype, settings, tmp_path, monkeypatch, capsys):
    pretend_cpu(monkeypatch, cpu_dtype)
    settings |= {"lora": lora, "arguments": {"max_steps": 1, "logging_steps": 1, "report_to": "none"}}
    trainer = train(load_settings(SFTSettings, write(tmp_path, settings)))
    bf16 = cpu_dtype is torch.bfloat16
    printed = capsys.readouterr().out
    assert f"'bf16': {bf16}" in printed and "'fp16': False" in printed and "'use_cpu': True" in printed
    assert (trainer.args.bf16, trainer.args.fp16, trainer.args.use_cpu) == (bf16, False, True)
    assert trainer.accelerator.mixed_precision == ("bf16" if bf16 else "no")
    assert trainer.state.global_step == 1 and math.isfinite(trainer.state.log_history[0]["loss"])


def test_an_adapter_is_trained_and_saved(settings, tmp_path):
    settings |= {"lora": "decoder+connector"}
    assert main(["sft", "--config", write(tmp_path, settings)]) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_what_is_unset_is_the_recipes(settings, tmp_path):
    for name in ("sequence_length", "resolution", "image_splitting", "batch_size"):
        settings.pop(name)
    loaded = load_settings(SFTSettings, write(tmp_path, settings))
    stage = build_recipe(loaded, MM1Config.from_preset("mm1-tiny"))
    data = stage.data
    assert (stage.batch_size, data.sequence_length, data.unit) == (256, 2048, "documents")
    assert (data.image_splitting, data.resolution) == ("dynamic", 672)
    # 0.8 of the mixture, of which `general` is 1 part of 7.1.
    assert data.mixture == pytest.approx({"general": 0.8 / 7.1, "text-only": 0.1})
    settings["recipe"] = "mm1-3b"
    settings["sources"] = {name: {"path": "nowhere", "layout": "chat"} for name in ("vqav2", "dvqa")}
    mm1 = build_recipe(load_settings(SFTSettings, write(tmp_path, settings)), None).data
    assert (mm1.image_splitting, mm1.resolution) == ("static", 1344)
    assert mm1.mixture["dvqa"] / mm1.mixture["vqav2"] == pytest.approx(200 / 83)


def test_the_images_of_a_source_may_lie_in_a_folder_of_their_own(settings, tmp_path, capsys):
    """LLaVA's own layout: the JSON in one folder, the images in another."""
    (tmp_path / "images" / "coco").mkdir(parents=True)
    Image.new("RGB", (20, 30)).save(tmp_path / "images" / "coco" / "0.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    record = {"image": "coco/0.png", "conversations": turns}
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "llava.json").write_text(json.dumps([record] * 120), encoding="utf-8")
    llava = {"path": str(tmp_path / "json" / "llava.json"), "layout": "llava_chat"}
    settings["sources"] = {"general": llava | {"image_folder": str(tmp_path / "images")}}
    mixture = build_run(load_settings(SFTSettings, write(tmp_path, settings))).trainer.train_dataset
    assert "pixel_values" in next(iter(mixture))
    settings["sources"] = {"general": llava}
    mixture = build_run(load_settings(SFTSettings, write(tmp_path, settings))).trainer.train_dataset
    with pytest.raises(ValueError, match=r"100 were dropped \(missing file 100\).*\(image_folder\)"):
        next(iter(mixture))
    # Refused as the file is read, before a model is loaded.
    settings["sources"] = {"general": llava | {"image_folder": str(tmp_path / "none")}}
    settings["model"] = "no/such/model"
    assert main(["sft", "--config", write(tmp_path, settings)]) == 2
    assert "sources.general: image_folder is" in capsys.readouterr().err


def test_categories_are_seen_by_their_weights(settings, tmp_path):
    settings["sources"]["general"]["weight"] = 3.0
    settings["sources"]["text-only"]["weight"] = 1.0
    mixture = build_run(load_settings(SFTSettings, write(tmp_path, settings))).trainer.train_dataset
    stream = iter(mixture)
    for _ in range(30):
        mixture.consumed(next(stream)["mixture_state"])
    assert mixture.shares()["general"] == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("frozen", [[], ["encoder"]])
def test_the_continual_stage_cuts_1344_into_tiles_of_672(frozen, settings, tmp_path):
    fields = ("model", "output_dir", "sources", "batch_size", "lanes", "window")
    continual = {name: settings[name] for name in fields} | {"stage": "continual", "frozen": frozen}
    for source in continual["sources"].values():
        source["weight"] = 1.0
    continual["arguments"] = {"use_cpu": True, "bf16": False, "report_to": "none"}
    trainer = build_run(load_settings(PretrainingSettings, write(tmp_path, continual))).trainer
    images = trainer.processing_class.image_processor
    assert (images.image_splitting, images.size["height"], images.static_grid) == ("static", 672, 2)
    assert images.get_number_of_image_patches(1344, 1344) == 5
    assert trainer.model.config.vision_config.image_size == 672
    patches = (672 // trainer.model.config.vision_config.patch_size) ** 2
    assert trainer.model.model.connector.position_embedding.shape[1] == patches
    assert (trainer.args.optim, trainer.args.learning_rate) == ("adafactor", 1e-5)
    assert any(weight.requires_grad for weight in trainer.model.model.vision_tower.parameters()) is not bool(frozen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown entries: colour"),
        ({"sources": {}}, "sources names no data set"),
        ({"recipe": "mm9"}, "mm9"),
        ({"recipe": None}, "general have no weight"),
        ({"lora": "everything"}, "lora is 'everything', but one of decoder, decoder+connector, all, experts"),
        ({"lora": "decoder", "frozen": ["encoder"]}, "leave out frozen"),
        ({"frozen": ["tail"]}, "no part tail"),
        ({"image_splitting": "static", "resolution": 57}, "57 pixels does not divide into 2 x 2 tiles"),
        ({"image_splitting": "diced"}, "image_splitting is 'diced', but one of none, static, dynamic"),
        ({"sequence_length": 4}, "cannot hold one image"),
    ],
)
def test_wrong_settings_are_refused_by_the_command(settings, change, message, tmp_path, capsys):
    assert main(["sft", "--config", write(tmp_path, settings | change)]) == 2
    assert message in capsys.readouterr().err


def test_records_that_do_not_fit_stop_the_run(settings, tmp_path, capsys):
    assert main(["sft", "--config", write(tmp_path, settings | {"sequence_length": 22})]) == 2
    assert "chat longer than a row" in capsys.readouterr().err
