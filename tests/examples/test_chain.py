"""The way from a pre-trained model to answers, each example reading what the last one wrote, with a model of a few thousand
parameters."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from machines import CPUS, pretend_cpu
from PIL import Image
from tiny import tiny_mm1
from transformers import AutoModelForImageTextToText, AutoProcessor

from mm1_hf.data.collation import IGNORED, MM1Collator
from mm1_hf.evaluation.answering import answer
from mm1_hf.quickstart.easy_vqa import Picture, Question


EXAMPLES = Path(__file__).parents[2] / "examples"
COLOURS = ("red", "blue", "green", "teal")


def script(name: str):
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def pictures(tmp_path) -> list[Picture]:
    """Plain colours with easy-VQA's kinds of questions."""
    made = []
    for index in range(24):
        colour, path = COLOURS[index % 4], tmp_path / f"{index}.png"
        Image.new("RGB", (64, 64), colour).save(path)
        questions = (
            Question("what colour?", colour, "colour"),
            Question("what shape?", "circle", "shape"),
            Question("is it red?", "yes" if colour == "red" else "no", "yes/no"),
        )
        made.append(Picture(index, path, questions))
    return made


def run(monkeypatch, pictures, name: str, *arguments: object):
    """Runs an example as from the command line, at toy size."""
    module = script(name)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    for constant, value in {"SEQUENCE_LENGTH": 256, "PAGES": 40}.items():
        if hasattr(module, constant):
            monkeypatch.setattr(module, constant, value)
    if hasattr(module, "load_split"):
        monkeypatch.setattr(module, "load_split", lambda split: pictures)
    module.main()
    return module


def fell(folder: Path) -> bool:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results["after"] < results["before"]


@torch.no_grad()
def logits(folder: Path, batch) -> torch.Tensor:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


@CPUS
def test_each_example_reads_what_the_last_one_wrote(cpu_dtype, pictures, tmp_path, monkeypatch, capsys):
    pretend_cpu(monkeypatch, cpu_dtype)
    for part in tiny_mm1():
        part.save_pretrained(tmp_path / "pretrained")
    run(
        monkeypatch,
        pictures,
        "continual",
        "--model",
        tmp_path / "pretrained",
        "--output",
        tmp_path / "continual",
        "--steps",
        6,
    )
    assert fell(tmp_path / "continual")
    # 2 x 2 tiles of the encoder's side, and the whole picture.
    processor = AutoProcessor.from_pretrained(tmp_path / "continual")
    images = processor.image_processor
    assert images.image_splitting == "static" and images.size["height"] == 56

    sft = run(
        monkeypatch, pictures, "sft", "--model", tmp_path / "continual", "--output", tmp_path / "sft", "--steps", 8
    )
    assert fell(tmp_path / "sft")
    batch = MM1Collator(processor)([sft.conversation(pictures[0])])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert torch.equal(ids[labels != IGNORED], labels[labels != IGNORED])
    assert processor.decode(labels[labels != IGNORED]) == "red<|im_end|>circle<|im_end|>yes<|im_end|>"

    run(monkeypatch, pictures, "lora", "--model", tmp_path / "sft", "--output", tmp_path / "lora", "--steps", 8)
    assert fell(tmp_path / "lora")
    torch.testing.assert_close(
        logits(tmp_path / "lora", batch), logits(tmp_path / "lora" / "merged", batch), atol=1e-5, rtol=1e-5
    )
    assert (logits(tmp_path / "lora", batch) - logits(tmp_path / "sft", batch)).abs().max() > 1e-3

    monkeypatch.syspath_prepend(EXAMPLES)
    options = ("--output", tmp_path / "dpo", "--steps", 4, "--learning-rate", 1e-3)
    run(monkeypatch, pictures, "dpo", "--model", tmp_path / "lora" / "merged", *options)
    results = json.loads((tmp_path / "dpo" / "results.json").read_text(encoding="utf-8"))
    assert results["after"]["eval_loss"] < results["before"]["eval_loss"]

    # The adapter is loaded over its base, and answers as the whole model that it was merged into.
    asked = ("--image", pictures[0].path, "--max-new-tokens", 8, "Describe the picture.")
    for folder, whole in (("lora", "lora/merged"), ("dpo", "dpo")):
        capsys.readouterr()
        run(monkeypatch, pictures, "generate", "--model", tmp_path / folder, *asked)
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / whole).eval()
        processor = AutoProcessor.from_pretrained(tmp_path / whole)
        (expected,) = answer(model, processor, [(pictures[0].image(), "Describe the picture.")], max_new_tokens=8)
        assert capsys.readouterr().out.strip() == expected


def test_drawn_pages_can_be_read():
    continual = script("continual")
    first, second = (continual.page(random.Random(seed)) for seed in (0, 1))
    assert first["image"] != second["image"] and first["text"] != second["text"]
    assert len(first["text"].splitlines()) == 4


def notebook_cells() -> list[str]:
    notebook = json.loads((EXAMPLES / "fine_tune.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_draws_images_where_none_are_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in tiny_mm1():
        part.save_pretrained(tmp_path / "model")
    names: dict = {}
    for index, cell in enumerate(notebook_cells()):
        if "data" not in names:
            exec(compile(cell, f"cell {index}", "exec"), names)
            names |= {"MODEL": str(tmp_path / "model")} if index == 0 else {}
    assert names["PICTURES"] is None and names["data"].shape == {"train": (270, 2), "test": (30, 2)}
    answers = set()
    for example in names["data"]["test"]:
        answer = example["messages"][1]["content"]
        levels = np.asarray(example["images"][0].convert("L"), dtype=float)
        first, second = {
            "left": (levels[:, :48], levels[:, 48:]),
            "right": (levels[:, 48:], levels[:, :48]),
            "top": (levels[:48], levels[48:]),
            "bottom": (levels[48:], levels[:48]),
        }[answer]
        assert first.max() < second.min()
        answers.add(answer)
    assert len(answers) == 4


@CPUS
def test_the_notebook_runs(cpu_dtype, pictures, tmp_path, monkeypatch, capsys):
    pretend_cpu(monkeypatch, cpu_dtype)
    for part in tiny_mm1():
        part.save_pretrained(tmp_path / "model")
    lines = [
        json.dumps({"file_name": picture.path.name, "question": question.text, "answer": question.answer})
        for picture in pictures
        for question in picture.questions
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    cells = notebook_cells()
    assert sum(bool(line.strip()) for cell in cells for line in cell.splitlines()) < 90
    values = {
        "MODEL": str(tmp_path / "model"),
        "PICTURES": str(tmp_path),
        "OUTPUT": str(tmp_path / "adapter"),
        "STEPS": 3,
    }
    names: dict = {}
    for index, cell in enumerate(cells):
        exec(compile(cell, f"cell {index}", "exec"), names)
        # The first cell is what a user fills in.
        assert index or set(values) <= set(names)
        names |= values if index == 0 else {}
    printed = capsys.readouterr().out
    # The control: the same conversations, each with an image of another one.
    own, shuffled = names["held_out_batches"]["own"], names["held_out_batches"]["shuffled"]
    for index, (batch, other) in enumerate(zip(own, shuffled, strict=True)):
        assert torch.equal(batch["input_ids"], other["input_ids"]) and torch.equal(batch["labels"], other["labels"])
        assert torch.equal(other["pixel_values"], own[(index + 1) % len(own)]["pixel_values"])
    assert names["after"]["own"] < names["before"]["own"]
    assert "<|im_end|>" in printed
    for name in ("own", "shuffled"):
        assert f"with {name} images: {names['before'][name]:.3f} before, {names['after'][name]:.3f} after" in printed
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
