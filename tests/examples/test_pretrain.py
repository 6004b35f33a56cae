"""The pre-training example from its data to its figures, with parts of a few thousand parameters."""

import importlib.util
import json
import sys
from pathlib import Path

import datasets
import pytest
from machines import CPUS, pretend_cpu
from mixtures import png, records
from tiny import byte_tokenizer, tiny_decoder, tiny_vision

from mm1_hf import MM1ForConditionalGeneration


EXAMPLE = Path(__file__).parents[2] / "examples" / "pretrain.py"


@pytest.fixture
def data(tmp_path) -> Path:
    """Three sources as `prepare_pretraining_data.py` writes them."""
    folder = tmp_path / "data"
    captions = [{"image": {"bytes": png(index), "path": None}, "text": f"number {index}"} for index in range(300)]
    for split, share in (("train", slice(40, None)), ("test", slice(40))):
        datasets.Dataset.from_list(captions[share]).to_parquet(folder / "captions" / f"{split}.parquet")
        interleaved = datasets.Dataset.from_list(records("interleaved", 40))
        interleaved.to_parquet(folder / "interleaved" / f"{split}.parquet")
        (folder / "text").mkdir(exist_ok=True)
        lines = [json.dumps({"text": "some words " * 40}) for _ in range(40)]
        (folder / "text" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def run(monkeypatch, *arguments: object) -> None:
    specification = importlib.util.spec_from_file_location("pretrain", EXAMPLE)
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    monkeypatch.setattr(example, "load_decoder", lambda: (tiny_decoder(), byte_tokenizer()))
    monkeypatch.setattr(example, "load_vision_encoder", lambda: tiny_vision("dinov2"))
    monkeypatch.setattr(example, "SEQUENCE_LENGTH", 96)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
    example.main()


@CPUS
def test_the_example_trains_measures_and_goes_on(cpu_dtype, data, tmp_path, monkeypatch, capsys):
    pretend_cpu(monkeypatch, cpu_dtype)
    arguments = ("--data", data, "--output", tmp_path / "run", "--captions", 20)
    run(monkeypatch, *arguments, "--steps", 4)
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert set(results["before"]) == set(results["after"]) == {"interleaved", "caption", "text"}
    assert all(results["after"][source] < loss for source, loss in results["before"].items())
    assert results["image_gain"]["captions"] == 20
    printed = capsys.readouterr().out
    assert "20 captions: loss" in printed
    MM1ForConditionalGeneration.from_pretrained(tmp_path / "run")
    run(monkeypatch, *arguments, "--steps", 5)
    state = json.loads((tmp_path / "run" / "checkpoint-5" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 5 and state["log_history"][0]["step"] == 4
