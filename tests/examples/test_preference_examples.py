"""The preference and reward examples on a model of a few thousand parameters: what they train, measure and save."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from machines import CPUS, pretend_cpu
from tiny import tiny_mm1
from transformers import AutoModelForImageTextToText, AutoProcessor


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    model, processor = tiny_mm1()
    with torch.no_grad():
        # A trained model's head tells tokens apart; that of a new one hardly does, whatever the layers before it learn.
        model.lm_head.weight.mul_(10)
    processor.image_processor.image_splitting = "none"
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@CPUS
@pytest.mark.parametrize(
    ("name", "measure", "steps", "learning_rate"),
    [
        ("dpo", "eval_loss", 4, 1e-3),
        ("kto", "eval_loss", 4, 1e-3),
        ("grpo", "eval_reward", 10, 1e-2),
        ("rloo", "eval_reward", 16, 1e-3),
    ],
)
def test_the_example_trains_and_saves(
    name, measure, steps, learning_rate, cpu_dtype, model_folder, tmp_path, monkeypatch, capsys
):
    pretend_cpu(monkeypatch, cpu_dtype)
    monkeypatch.syspath_prepend(EXAMPLES)
    specification = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    options = {"model": model_folder, "output": tmp_path, "steps": steps, "learning-rate": learning_rate}
    arguments = [text for option, value in options.items() for text in (f"--{option}", str(value))]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    example.main()

    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    before, after = (results[when][measure] for when in ("before", "after"))
    assert after < before if measure == "eval_loss" else after > before
    assert f"{before:.3f} before, {after:.3f} after" in capsys.readouterr().out

    # A whole model, no adapter, that differs from the one it came from in the decoder alone.
    base, trained = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (model_folder, tmp_path))
    assert type(trained) is type(base)
    own, others = trained.state_dict(), base.state_dict()
    changed = {key for key in others if not own[key].equal(others[key])}
    assert own.keys() == others.keys() and changed
    assert all(key.startswith("model.language_model.layers.") for key in changed)
    assert AutoProcessor.from_pretrained(tmp_path).image_processor.image_splitting == "none"
