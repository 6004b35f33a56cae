"""The few-shot example: its questions can only be answered from the demonstrations' pictures, and it runs at toy size."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_vision


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import few_shot_names

        yield few_shot_names


def content(classes: int) -> list[list[bytes]]:
    return [[f"{each} {view}".encode() for view in range(6)] for each in range(classes)]


@given(seed=st.integers(0, 1000), classes=st.integers(5, 12))
@settings(max_examples=30, deadline=None)
def test_only_the_pictures_of_the_demonstrations_tell_the_name(example, seed, classes):
    for question in example.questions(content(classes), example.NAMES, 12, seed):
        shown = [(*picture.split(), name) for group in question.groups for picture, name in group]
        # No picture twice, the query's not among them.
        assert len({(each, view) for each, view, _ in shown} | {tuple(question.query.split())}) == 2 * 4 + 1
        name_of = {each: name for each, _, name in shown}
        assert len(set(name_of.values())) == 2 and len({(each, name) for each, _, name in shown}) == 2
        assert name_of[question.query.split()[0]] == question.answer
        # Of both classes as many, so that the names alone do not tell which one is asked for.
        assert all(len({name for _, name in group}) == 2 for group in question.groups)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_controls_keep_the_names_and_take_away_what_the_pictures_tell(example, seed):
    asked = example.questions(content(8), example.NAMES, 20, seed)
    plain, shuffled, dropped = (example.subject("drawings", asked, control).samples for control in example.CONTROLS)
    for question, sample, other, without in zip(asked, plain, shuffled, dropped, strict=True):
        for control in (other, without):
            assert control.images == sample.images and control.references == sample.references == question.answer
            names = [[shot.answer for shot in group] for group in control.pool]
            assert names == [[name for _, name in group] for group in question.groups]
        assert not any(shot.images for group in without.pool for shot in group)
        classes = {int(shot.images[0].read().split()[0]) for group in other.pool for shot in group}
        assert not classes & set(question.classes)


def test_rows_of_both_kinds_have_the_same_length(example):
    draw = example.random.Random(0)
    tokenizer = example.made_up_tokenizer()
    for arm in example.ARMS:
        for _ in range(20):
            row = example.draw_row(arm, 40, draw)
            assert len(row) == example.IMAGES
            assert len(tokenizer("".join(f" {name}\n" for _, _, name in row)).input_ids) == 2 * example.IMAGES
    for arm in example.ARMS[:2]:
        several = example.draw_row(arm, 400, draw)
        assert len({(each, name) for each, _, name in several}) == len({name for _, _, name in several})


@given(seed=st.integers(0, 1000), classes=st.integers(6, 300))
@settings(max_examples=30, deadline=None)
def test_names_change_in_one_kind_of_rows_alone(example, seed, classes):
    draw = example.random.Random(seed)
    for arm in example.ARMS:
        rows = [example.draw_row(arm, classes, draw) for _ in range(30)]
        names: dict[int, set[str]] = {}
        for each, _, name in (picture for row in rows for picture in row):
            names.setdefault(each, set()).add(name)
        assert (max(map(len, names.values())) > 1) == (arm == "several images")
        # Pictures of a class come again in a row of several, and no picture does.
        if arm != "single images":
            assert all(len({each for each, _, _ in row}) < len(set(row)) == example.IMAGES for row in rows)


def test_the_encoder_computes_each_picture_once(example):
    encoder = tiny_vision("dinov2")
    pixels = torch.rand(1, 3, 56, 56)
    expected = encoder(pixels).last_hidden_state
    remembering = example.remember(encoder)
    first, again = remembering(pixels), remembering(pixels.clone())
    assert again is first and torch.equal(first.last_hidden_state, expected)
    assert not torch.equal(remembering(1 - pixels).last_hidden_state, expected)


def write_clothes(folder: Path) -> Path:
    folder.mkdir()
    labels = np.repeat(np.arange(10, dtype=np.uint8), 6)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
    return folder


def test_without_the_clothes_it_says_how_to_get_them(example, tmp_path):
    with pytest.raises(ValueError, match="apt-get download dataset-fashion-mnist"):
        example.clothes(tmp_path, 2)


def test_the_example_trains_measures_and_draws(example, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")

    class Stripes:
        def __init__(self, index):
            self.name = str(index)

        def views(self):
            draw = np.random.default_rng(int(self.name))
            pixels = draw.integers(0, 256, (example.VIEWS, 56, 56, 3), dtype=np.uint8)
            return [Image.fromarray(view) for view in pixels]

    for name, value in {
        "TRAINING_CLASSES": 12,
        "FIRST_TEST_CLASS": 12,
        "TEST_CLASSES": 6,
        "TEST_PICTURES_OF_CLOTHES": 5,
        "PIXELS": 56,
        # The tiny encoder's features have only so many components.
        "WIDTH": 32,
        "drawings": lambda: [Stripes(index) for index in range(18)],
        "load_vision_encoder": lambda: tiny_vision("dinov2"),
    }.items():
        monkeypatch.setattr(example, name, value)
    fashion = write_clothes(tmp_path / "fashion")
    arguments = ["--fashion", fashion, "--output", tmp_path / "run", "--steps", 3, "--seeds", 2, "--questions", 4]
    monkeypatch.setattr(sys, "argv", ["few_shot_names.py", *map(str, arguments)])
    example.main()

    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["seeds"] == 2 and {"versions", "commit", "processor"} <= set(results["environment"])
    assert set(results["scores"]) == {"untrained", *example.ARMS}
    for arm, found in results["scores"].items():
        assert len(found) == 2 * len(example.CONTROLS) * 4
        for score in found.values():
            assert len(score["by_seed"]) == (1 if arm == "untrained" else 2)
            assert score["interval"][0] <= score["score"] <= score["interval"][1]
    assert Image.open(tmp_path / "run" / "few_shot_names.png").width > 500
