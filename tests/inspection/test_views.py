"""The terminal's view of a row and the page's, against the row itself."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.data.documents import Document, ImagePart
from mm1_hf.data.examples import ChatEncoder, ExampleEncoder
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.shared_images import take_apart
from mm1_hf.inspection.row_page import write_page
from mm1_hf.inspection.rows import InspectedRow
from mm1_hf.inspection.sources import inspect_chat, inspect_packed
from mm1_hf.inspection.terminal import render


ANSWER = "<b>A & B</b>\n\x1b[31mred."
CHAT = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": ANSWER}]


@pytest.fixture(scope="module")
def chat() -> InspectedRow:
    processor = tiny_mm1()[1]
    processor.image_processor.image_splitting = "dynamic"
    processor.image_processor.position_indicators = "index"
    return inspect_chat(processor, {"messages": CHAT, "images": [Image.new("RGB", (90, 80), "red")]}, "a <row>", "trl")


@pytest.fixture(scope="module")
def packed() -> InspectedRow:
    encoder = ExampleEncoder(tiny_mm1()[1], 64)
    image = ImagePart(Image.new("RGB", (30, 20), "blue"))
    documents = [Document("caption", (image, f"caption {number}"), f"pair {number}") for number in range(2)]
    examples = [example for pieces in encoder.encode(documents) for example in pieces]
    return inspect_packed(encoder, examples, 64, "a packed row")


@pytest.fixture(scope="module")
def apart() -> InspectedRow:
    processor = tiny_mm1()[1]
    image = Image.new("RGB", (30, 20), "blue")
    documents = [
        take_apart(LAYOUTS["chat"]({"messages": CHAT * number, "images": [image]}, f"picture {number}"))
        for number in (2, 3)
    ]
    encoder = ChatEncoder(processor, 512)
    examples = [example for pieces in encoder.encode(documents) for example in pieces]
    return inspect_packed(encoder, examples, 512, "a row with branches")


class Page(HTMLParser):
    """Texts and titles of the tokens, by their classes; and what the page points to."""

    def __init__(self, text: str):
        super().__init__()
        self.tokens: list[tuple[str, str]] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if given.get("title"):
            self.tokens.append((given["class"], given["title"]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_terminal_marks_what_is_learned(chat):
    plain = render(chat, colour=False)
    ours, trls = plain.split("labels of mm1")[1].split("labels of trl")
    joined = re.sub(r"\s+", " ", ours)
    assert "⟦<b>A & B</b>⟧ ⟦␛[31mred.<|im_end|>⟧" in joined and joined.count("⟦") == 2
    assert "!" not in ours and "! image placeholders are targets, although the model never writes them: 20\n" in trls
    assert "⟦(0, 1, 1)<image 0: 1,1 x4>" in trls and "<image 0: overview x4>" in ours and "⟦<image" not in ours
    assert "80 x 90 pixels, scaled to 100 x 112 in 2 x 2 tiles and an overview" in plain
    assert "| 1,1  | 1,2  |" in plain and "\x1b" not in plain


def test_colours_end_with_their_lines(chat):
    coloured = render(chat, colour=True)
    assert all(line.count("\x1b[0m") * 2 == line.count("\x1b[") for line in coloured.splitlines())
    assert "\x1b[30;42m" in coloured and "\x1b[97;41m" in coloured
    # The data's own escape is none any more.
    assert coloured.count("\x1b[31m") == len(chat.readings[1].warnings) == 3
    stripped = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    bare = re.sub("[⟦⟧]", "", render(chat, colour=False))
    assert re.sub(r"\s+", "", stripped) == re.sub(r"\s+", "", bare)


def test_packed_examples_stand_apart_in_the_terminal(packed):
    plain = render(packed, colour=False)
    assert plain.index("example 1: pair 0") < plain.index("⟦caption 0<eos>⟧") < plain.index("example 2: pair 1")
    assert "2 examples, 2 images as 2 tiles of 4 placeholders, 8 in all" in plain
    padding = packed.readings[0].count("padding")
    assert padding and f"<{padding} of padding>" in plain


@pytest.mark.parametrize("name", ["chat", "packed"])
def test_the_page_holds_the_whole_row(name, request, tmp_path):
    row = request.getfixturevalue(name)
    write_page(tmp_path / "deep" / "row.html", row)
    text = (tmp_path / "deep" / "row.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert len(page.sources) == len(row.tiles) * (1 + len(row.readings))
    shown = iter(page.tokens)
    for reading in row.readings:
        positions = iter(enumerate(reading.positions))
        for index, place in positions:
            if place.kind == "padding":
                continue
            classes, title = next(shown)
            assert classes == f"t {('learned' if place.kind == 'text' else 'wrong') if place.learned else place.kind}"
            if place.tile is not None:
                last = index + row.tokens_per_tile - 1
                assert title == f"positions {index} to {last}"
                for _ in range(row.tokens_per_tile - 1):
                    next(positions)
            else:
                target = f"label {place.label}" if place.learned else "not a target"
                assert title == f"position {index}, token {place.token_id}, {target}"
    assert next(shown, None) is None
    assert all(f'class="warning">{warning}' in text for warning in row.readings[-1].warnings)
    assert text.count('<div class="segment"') == len(row.segments) * len(row.readings)


def test_the_page_escapes_what_the_data_say(chat, tmp_path):
    write_page(tmp_path / "row.html", chat)
    text = (tmp_path / "row.html").read_text(encoding="utf-8")
    assert "<title>a &lt;row&gt;</title>" in text and "<b>A" not in text


def test_branches_are_named_after_their_example(apart, tmp_path):
    named = [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
    shown = render(apart, colour=False)
    assert "2 examples with 5 branches, 2 images" in shown
    assert re.findall(r"example (\d), branch (\d)", shown) == [(str(one), str(two)) for one, two in named]
    assert [shown.count(f"example {number}: picture {number + 1}") for number in (1, 2)] == [1, 1]
    write_page(tmp_path / "row.html", apart)
    page = (tmp_path / "row.html").read_text(encoding="utf-8")
    assert re.findall(r"example (\d) &middot; branch (\d)", page) == [(str(one), str(two)) for one, two in named]
    assert "<dt>branches</dt><dd>5</dd>" in page
