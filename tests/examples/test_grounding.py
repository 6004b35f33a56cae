"""The grounding example from its pictures to its figures, with parts of a few thousand parameters."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from machines import CPUS, pretend_cpu
from tiny import tiny_mm1, tiny_vision

from mm1_hf import MM1ForConditionalGeneration
from mm1_hf.grounding.regions import iou


EXAMPLE = Path(__file__).parents[2] / "examples" / "grounding.py"


@pytest.fixture(scope="module")
def example():
    specification = importlib.util.spec_from_file_location("grounding", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    # Its data classes look their module up.
    sys.modules["grounding"] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["grounding"]


@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_those_of_the_shapes_pixels(example, seed):
    draw = random.Random(seed)
    picture = example.draw_picture(0, 4, draw)
    pixels = np.asarray(picture.image())
    for shape in picture.shapes:
        ys, xs = np.nonzero((pixels == example.COLOURS[shape.colour]).all(axis=2))
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == tuple(shape.box)
        assert [iou(shape.box, other.box) for other in picture.shapes].count(0) == 3
        question = example.where(shape)
        assert example.REGIONS.boxes(question.answer, height=100, width=100)[0] == pytest.approx(shape.box, abs=0.051)
    assert len({shape.colour for shape in picture.shapes}) == 4


@CPUS
@pytest.mark.parametrize("given", [False, True], ids=["new", "given"])
def test_the_example_trains_and_measures(given, cpu_dtype, example, tmp_path, monkeypatch, capsys):
    pretend_cpu(monkeypatch, cpu_dtype)
    monkeypatch.setattr(example, "load_vision_encoder", lambda: tiny_vision("dinov2"))
    monkeypatch.setattr(example, "WIDTH", 64)
    monkeypatch.setattr(example, "FEATURE_LAYER", -2)
    options = ["--output", tmp_path / "trained", "--steps", 8, "--pictures", 8, "--held-out", 3, "--batch", 2]
    if given:
        for part in tiny_mm1():
            part.save_pretrained(tmp_path / "given")
        options += ["--model", tmp_path / "given"]
    monkeypatch.setattr(sys, "argv", ["grounding.py", *map(str, options)])
    example.main()
    summary = json.loads((tmp_path / "trained" / "results.json").read_text(encoding="utf-8"))
    assert set(summary["results"]) == {"own", "shuffled"}
    for figures in summary["results"].values():
        assert 6 <= figures["boxes"] <= 9 and 0 <= figures["recall@0.5"] <= 1
    losses = [loss for _, loss in summary["losses"]]
    assert losses[-1] < losses[0]
    assert "recall@0.5" in capsys.readouterr().out
    assert len(list((tmp_path / "trained").glob("held_out_*.png"))) == 3
    model = MM1ForConditionalGeneration.from_pretrained(tmp_path / "trained")
    encoder = model.model.vision_tower.state_dict()
    expected = (tiny_mm1()[0].model.vision_tower if given else tiny_vision("dinov2")).state_dict()
    # A new model's positions are interpolated to its tiles.
    frozen = {name for name in encoder if given or "position_embeddings" not in name}
    assert len(frozen) > 30 and all(torch.equal(encoder[name], expected[name]) for name in frozen)
