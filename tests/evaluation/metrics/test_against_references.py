"""Every metric gives the scores of the packages whose rules it follows; reference_cases.json holds those scores."""

import json
from pathlib import Path

import pytest

from mm1_hf.evaluation.metrics import load
from mm1_hf.evaluation.metrics.cider.scoring import cider
from mm1_hf.evaluation.metrics.cider.tokenizer import tokenize
from mm1_hf.evaluation.metrics.mathvista.scoring import normalize as mathvista_form
from mm1_hf.evaluation.metrics.mmmu.scoring import read_choice
from mm1_hf.evaluation.metrics.vqa_accuracy.scoring import normalize


CASES = json.loads(Path(__file__).with_name("reference_cases.json").read_text(encoding="utf-8"))


def scores_of(name: str, key: str, predictions, references, **columns) -> list[float]:
    return [sample[key] for sample in load(name).per_sample(predictions, references, **columns)]


def test_vqa_answers_are_normalised_as_officially():
    wrong = [
        (raw, normalize(raw), expected) for raw, expected in CASES["vqa"]["normalized"] if normalize(raw) != expected
    ]
    assert not wrong


def test_vqa_accuracy_with_the_evalai_normaliser():
    predictions, references, expected = zip(*CASES["vqa"]["evalai"], strict=True)
    found = scores_of("vqa_accuracy", "vqa_accuracy", predictions, references, normalizer="evalai")
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("images", CASES["cider"], ids=len)
def test_cider_on_the_same_words(images):
    candidates, references, expected = zip(*images, strict=True)
    assert cider(candidates, references) == pytest.approx(expected, abs=1e-6)


def test_captions_are_split_as_in_java():
    wrong = [(caption, tokenize(caption), words) for caption, words in CASES["tokens"] if tokenize(caption) != words]
    assert not wrong


@pytest.mark.parametrize("name", ["anls", "relaxed_accuracy", "exact_match"])
def test_scores_of_single_answers(name):
    predictions, references, expected = zip(*CASES[name], strict=True)
    assert scores_of(name, name, predictions, references) == pytest.approx(expected, abs=1e-9)


def test_ocrbench():
    predictions, references, datasets, expected = zip(*CASES["ocrbench"], strict=True)
    assert scores_of("ocrbench", "accuracy", predictions, references, datasets=datasets) == list(expected)


def test_mme():
    predictions, references, categories, ids, expected = zip(*CASES["mme"]["rows"], strict=True)
    metric = load("mme")
    samples = metric.per_sample(predictions, references)
    assert [sample["accuracy"] for sample in samples] == list(expected)
    result = metric.aggregate(samples, categories=categories, question_ids=ids)
    assert result["perception"] == pytest.approx(CASES["mme"]["perception"])
    assert result["cognition"] == pytest.approx(CASES["mme"]["cognition"])
    assert result["mme"] == pytest.approx((CASES["mme"]["perception"] + CASES["mme"]["cognition"]) / 28)


def test_pope():
    predictions, references = zip(*CASES["pope"]["rows"], strict=True)
    metric = load("pope")
    result = metric.aggregate(metric.per_sample(predictions, references), categories=["random"] * len(predictions))
    for name in ("accuracy", "precision", "recall", "f1"):
        assert result[name] == pytest.approx(CASES["pope"][name])


def test_mmmu_letters():
    wrong = [case for case in CASES["mmmu"]["choice"] if read_choice(case[0], case[1]) != case[2]]
    assert not wrong


def test_mmmu_open_answers():
    predictions, references, expected = zip(*CASES["mmmu"]["open"], strict=True)
    columns = {"question_types": ["open"] * len(predictions), "options": [[]] * len(predictions)}
    found = scores_of("mmmu", "accuracy", predictions, references, **columns)
    assert found == list(expected)


def test_mathvista_answers_are_compared_as_in_the_original():
    wrong = [
        (case, mathvista_form(case[0], case[1], case[2], case[3]))
        for case in CASES["mathvista"]
        if mathvista_form(case[0], case[1], case[2], case[3]) != case[4]
    ]
    assert not wrong
