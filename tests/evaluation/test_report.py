import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from evaluated import FakeModel
from evaluation_runs import made, text_samples
from PIL import Image

from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation import report
from mm1_hf.evaluation.cells import EvaluationSettings
from mm1_hf.evaluation.chart import shots_chart
from mm1_hf.evaluation.runner import evaluate


EVIL = "</span><script>alert('x')</script>\u202e"


class Page(HTMLParser):
    """Checks that tags close in order, and collects text and references."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.tags, self.text, self.cards = [], [], [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag == "article":
            self.cards.append(dict(attributes))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def subject(name="mine", number=30, **fields):
    noise = Image.effect_noise((300, 200), 60).convert("RGB")
    samples = [replace(sample, images=(ImagePart(noise),)) for sample in text_samples(number, **fields)]
    # The same image would mark every sample as the query itself.
    samples = [replace(sample, images=(ImagePart(noise.rotate(index)),)) for index, sample in enumerate(samples)]
    samples[0] = replace(samples[0], error="missing file: 0.png")
    samples[1] = replace(samples[1], references=None)
    samples[2] = replace(samples[2], images=(ImagePart(b"no image"),))
    return made(name, samples)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    subjects = [subject(), subject("coco", question=EVIL)]
    evaluate(FakeModel(("yes", EVIL), name=EVIL), subjects, EvaluationSettings((0, 4, 8)), folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_it_needs_nothing_beside_itself(page):
    assert page.references and all(reference.startswith("data:image/") for reference in page.references)
    assert page.tags.count("script") == 1 and "link" not in page.tags


def test_words_of_data_stay_words(page):
    shown = EVIL.replace("\u202e", "\\u202e")
    assert page.text.count(shown) > 10 and "\u202e" not in page.text


def test_it_shows_answers_of_every_verdict_with_their_demonstrations(page):
    assert {card["data-verdict"] for card in page.cards} == {"right", "wrong", "error", "none"}
    assert {card["data-task"] for card in page.cards} == {
        f"{name}, {shots} shots" for name in ("mine", "coco") for shots in (0, 4, 8)
    }
    assert page.text.count("8 demonstrations") > 10 and "no image" not in page.text
    assert "missing file: 0.png" in page.text and "corrupt image" in page.text


def test_it_has_a_chart_and_the_papers_rows(page):
    assert page.tags.count("polyline") == 2 and "Score by number of demonstrations" in page.text
    # MM1's CIDEr on COCO with 8 shots.
    assert "MM1-30B" in page.text and "123.1" in page.text


def test_its_size_is_bounded(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "_IMAGE_BYTES", 100_000)
    evaluate(FakeModel(("yes",)), [subject()], EvaluationSettings((8,)), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(text) < 400_000
    shown, left_out = len(Page(text).cards), int(re.search(r"(\d+) more are left out", text)[1])
    assert shown + left_out == 30 and left_out


def test_a_chart_keeps_labels_apart_and_needs_two_numbers_of_shots():
    def entry(task, shots, value):
        return {"task": task, "shots": shots, "score": value, "unit": "fraction", "standard_error": 0.01}

    assert not shots_chart([entry("a", 0, 0.5)])
    scores = [entry(task, shots, 0.5) for task in "abcdefghijkl" for shots in (0, 4)]
    chart = shots_chart([*scores, {**entry("mme", 0, 1000), "unit": "points"}])
    heights = [float(height) for height in re.findall(r'<text x="502" y="([\d.]+)"', chart)]
    assert len(heights) == 12 and all(b - a >= 14.9 for a, b in pairwise(heights))
    assert "mme" not in chart
