import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from mm1_hf import MM1Config
from mm1_hf.accounting.parameters import count_parameters
from mm1_hf.quickstart.report import Example, KindAccuracy, QuickstartResults, write_report


EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Checks that tags close in order, and collects text and references."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.tags, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    results = QuickstartResults(
        parameters=count_parameters(MM1Config.from_preset("mm1-tiny")),
        accuracies={"overall": KindAccuracy(0.9412, 0.6134, 0.5056, 1003), "shape": KindAccuracy(1.0, 0.4, 0.33, 120)},
        losses=[(10, 2.0), (20, 0.5), (30, 0.1)],
        examples=[Example(images[0], "what?", "circle", "circle"), Example(images[1], EVIL, EVIL, "blue & green")],
        seconds={"train": 1234.5},
        environment={"hardware": EVIL, "torch": "9.9"},
        model_dir="some folder/model",
    )
    write_report(path, results)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(written):
    return Page(written)


def test_it_needs_nothing_beside_itself(page):
    assert page.references and all(reference.startswith("data:image/") for reference in page.references)
    assert "script" not in page.tags and "link" not in page.tags


def test_it_says_what_was_measured(page):
    for words in ("94.1%", "61.3%", "50.6%", "1,003", "100.0%", "1,234 s", "9.9", "275,376"):
        assert words in page.text, words


def test_colours_stay_with_their_words(written):
    """On a narrow page a heading breaks between words, but never between the colour and the first of them."""
    headings = re.findall(r'<span class="name"><span class="key (\w+)"></span>(\w+)</span> ([\w ]+)</th>', written)
    assert headings == [
        ("model", "this", "model"),
        ("shuffled", "images", "shuffled"),
        ("majority", "most", "frequent answer"),
    ]
    assert ".name { white-space: nowrap; }" in written


def test_words_of_data_stay_words(page):
    assert page.text.count(EVIL) == 3
    assert "wrong, it is blue & green" in page.text
    assert page.text.count("\u2713 right") == 1


def test_it_says_how_to_go_on(page):
    assert "mm1 ask --model some folder/model --image FILE" in page.text
    snippet = page.text[page.text.index("import mm1_hf") : page.text.index("For real photographs")]
    compile(snippet, "report", "exec")
