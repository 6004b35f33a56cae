"""The quickstart's accuracies come from the runner, and are those of asking question by question."""

import torch
from tiny import tiny_mm1

from mm1_hf.evaluation.answering import answer
from mm1_hf.evaluation.results import read_rows
from mm1_hf.quickstart.easy_vqa import load_split
from mm1_hf.quickstart.run import _held_out, _measure


def test_the_answers_are_those_of_asking_directly(tmp_path):
    model, processor = tiny_mm1()
    asked = _held_out(load_split("test"), 30)
    training = load_split("train")[:50]
    accuracies, examples = _measure(model, processor, asked, training, 0, tmp_path)
    pairs = [(picture.image(), question.text) for picture, question in asked]
    direct = answer(model, processor, pairs)
    assert [row["answer"] for row in read_rows(tmp_path / "evaluation")] == direct
    right = sum(said == question.answer for said, (_, question) in zip(direct, asked, strict=True))
    assert accuracies["overall"].model == right / len(asked) and accuracies["overall"].count == len(asked) >= 30
    assert examples
    own, shuffled = (read_rows(tmp_path / name) for name in ("evaluation", "evaluation-shuffled"))
    assert [row["question"] for row in own] == [row["question"] for row in shuffled]

    # A second quickstart in the same folder has other weights, and is measured anew.
    with torch.no_grad():
        model.lm_head.weight.neg_()
    _measure(model, processor, asked, training, 0, tmp_path)
    again = [row["answer"] for row in read_rows(tmp_path / "evaluation")]
    assert again == answer(model, processor, pairs) != direct
