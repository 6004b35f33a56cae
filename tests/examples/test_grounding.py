"""The grounding example from its pictures to its figures, with parts of a few thousand parameters."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import byte_tokenizer, tiny_decoder, tiny_vision

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


def test_the_example_trains_and_measures(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "load_decoder", lambda: (tiny_decoder(), byte_tokenizer()))
    monkeypatch.setattr(example, "load_vision_encoder", lambda: tiny_vision("dinov2"))
    options = ("--steps", 8, "--pictures", 8, "--held-out", 3, "--batch", 2, "--layers", 1)
    monkeypatch.setattr(sys, "argv", ["grounding.py", "--output", str(tmp_path), *map(str, options)])
    example.main()
    summary = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(summary["results"]) == {"own", "shuffled"}
    for figures in summary["results"].values():
        assert 6 <= figures["boxes"] <= 12 and 0 <= figures["recall@0.5"] <= 1
    losses = [loss for _, loss in summary["losses"]]
    assert losses[-1] < losses[0]
    assert "recall@0.5" in capsys.readouterr().out
    assert len(list(tmp_path.glob("held_out_*.png"))) == 3
    model = MM1ForConditionalGeneration.from_pretrained(tmp_path)
    assert model.config.text_config.num_hidden_layers == 1


def test_right_boxes_are_counted_as_found(example, monkeypatch):
    """By a model that knows the questions' answers and not the pictures, and one that sees."""
    draw = random.Random(0)
    pictures = [example.draw_picture(index, 3, draw) for index in range(4)]
    answers = {
        (np.asarray(picture.image()).tobytes(), example.where(shape).text): example.where(shape).answer
        for picture in pictures
        for shape in picture.shapes
    }

    def seeing(model, processor, pairs, **options):
        return [answers.get((np.asarray(image).tobytes(), text), "nowhere") for image, text in pairs]

    monkeypatch.setattr(example, "answer", seeing)
    results, found = example.measure(None, None, pictures, seed=0)
    assert results["own"]["recall@0.5"] == 1.0 and results["own"]["mean IoU"] > 0.99
    assert results["shuffled"]["recall@0.5"] < 0.5 and len(found) == results["own"]["boxes"] == 12
