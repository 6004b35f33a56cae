"""Scores go with the weights that were measured, and with no others."""

import json
import sys

import pytest
import torch
from tiny import tiny_mm1

import mm1_hf.cli
from mm1_hf.evaluation.models import load_model
from mm1_hf.evaluation.models.weights import require_measured, weights_digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in tiny_mm1():
        part.save_pretrained(folder)
    return folder


def results(path, **model):
    path.write_text(json.dumps({"model": model}), encoding="utf-8")
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_belong_to_the_weights_that_were_measured(folder, dtype, tmp_path):
    measured = results(tmp_path / "results.json", **load_model(str(folder), dtype=dtype).describe())
    require_measured(measured, folder)
    further = tmp_path / "further"
    model, processor = tiny_mm1()
    with torch.no_grad():
        model.lm_head.weight += 0.1
    for part in (model, processor):
        part.save_pretrained(further)
    with pytest.raises(ValueError, match=r"other weights .* Measure it again: mm1 eval --model"):
        require_measured(measured, further)


def test_the_digest_sees_a_change_of_any_parameter(folder):
    model, _ = tiny_mm1()
    seen = {weights_digest(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.mul_(1.01).add_(1e-3)
        seen.add(weights_digest(model))
    assert len(seen) == 1 + len(list(model.parameters()))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"kind": "endpoint", "name": "served"}, "endpoint 'served'"),
        ({"name": "a", "weights": "ab", "dtype": "sin"}, "no dtype"),
    ],
)
def test_what_does_not_say_its_weights_is_refused(model, told, folder, tmp_path):
    with pytest.raises(ValueError, match=told):
        require_measured(results(tmp_path / "results.json", **model), folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 5}', '{"model": null}'])
def test_what_is_no_result_is_refused(text, folder, tmp_path):
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="does not say which model"):
        require_measured(tmp_path / "results.json", folder)


def test_scores_are_not_pushed_with_quantised_weights(folder, tmp_path, monkeypatch, capsys):
    measured = results(tmp_path / "results.json")
    arguments = ["mm1", "push", str(folder), "a/b", "--quantize", "int8", "--eval", str(measured)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert mm1_hf.cli.main() != 0
    assert "before the weights are quantised" in capsys.readouterr().err
