"""Drawn texts: the same on every run, with all words in place, and only what the fonts can draw."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw

from mm1_hf.corpus.pages.fonts import find_fonts
from mm1_hf.corpus.pages.page import Page
from mm1_hf.corpus.pages.paper import contrast, draw_paper
from mm1_hf.corpus.pages.rendered_text import MOST_PAGES, render_pages


FONTS = find_fonts(None)
TEXT = "\n".join(
    f"Paragraph {index}: the quick brown fox jumps over the lazy dog, and over it again." for index in range(60)
)


def pages(text: str, name: str = "a", seed: int = 0) -> list[Page]:
    found = [page for _, page in render_pages(text, name, FONTS, seed, 448)]
    assert all(isinstance(page, Page) for page in found)
    return found


@pytest.fixture(scope="module")
def drawn() -> list[Page]:
    return [page for seed in range(8) for page in pages(TEXT, seed=seed)]


def test_every_word_is_on_a_page_in_its_order(drawn):
    for seed in range(8):
        assert " ".join(page.text for page in pages(TEXT, seed=seed)).split() == TEXT.split()


def test_pages_depend_on_seed_and_name_alone(drawn):
    again = pages(TEXT, seed=3)
    start = sum(len(pages(TEXT, seed=seed)) for seed in range(3))
    assert drawn[start : start + len(again)] == again
    assert pages(TEXT, "b")[0].picture != pages(TEXT, "a")[0].picture


def test_all_ink_is_in_the_boxes_of_words(drawn):
    """Against the page without what the boxes hold: only paper is left, whose levels differ little."""
    for page in drawn:
        picture = Image.open(io.BytesIO(page.picture)).convert("L")
        pen = ImageDraw.Draw(covered := Image.new("L", picture.size, 0))
        for line in page.lines:
            for word in line.words:
                pen.rectangle((word.box.x1 - 2, word.box.y1 - 2, word.box.x2 + 2, word.box.y2 + 2), 255)
        outside = Image.composite(Image.new("L", picture.size, picture.getpixel((2, 2))), picture, covered)
        darkest, brightest = outside.getextrema()
        inside_darkest, inside_brightest = picture.getextrema()
        assert brightest - darkest < 0.45 * (inside_brightest - inside_darkest)


def test_every_word_can_be_seen(drawn):
    for page in drawn:
        picture = Image.open(io.BytesIO(page.picture)).convert("L")
        for line in page.lines:
            for word in line.words:
                darkest, brightest = picture.crop(tuple(map(round, word.box))).getextrema()
                assert brightest - darkest > 40, (page.name, word)


def test_styles_differ(drawn):
    assert len({(page.height, page.width) for page in drawn}) > 2
    assert len({Image.open(io.BytesIO(page.picture)).getpixel((2, 2)) for page in drawn}) > 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("שלום", "script that is not drawn"),
        ("नमस्ते", "script that is not drawn"),
        ("漢字", "no font has all characters"),
        (" \n\t", "no text"),
        ("", "no text"),
    ],
)
def test_what_cannot_be_drawn_is_told(text, reason):
    ((name, why),) = render_pages(text, "a", FONTS, 0, 448)
    assert (name, why.reason) == ("a", reason)


def test_a_word_longer_than_a_line_is_broken():
    (page,) = pages("x" * 150)
    assert page.text.replace("\n", "") == "x" * 150 and len(page.lines) > 1


def test_a_long_text_ends_after_its_last_page():
    found = [page for _, page in render_pages(TEXT * 40, "a", FONTS, 0, 448)]
    assert len(found) == MOST_PAGES + 1 and found[-1].reason == "text too long"


def test_control_characters_are_left_out_and_accents_are_joined():
    (page,) = pages("e\u0301t\x07e\u0301")
    assert page.text == "été"


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False))
def test_ink_can_be_read_on_its_paper(draw):
    paper = draw_paper(draw)
    assert contrast(paper.colour, paper.ink) >= 4.5


def test_contrast_of_black_and_white_is_21():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)


def test_fonts_are_found_by_their_letters(tmp_path):
    names = [font.name for font in FONTS]
    assert "DejaVuSans.ttf" in names and names == sorted(names)
    # Computer Modern's symbols stand at the places of letters.
    assert not {"cmsy10.ttf", "cmex10.ttf", "cmmi10.ttf"} & set(names)
    assert FONTS[names.index("DejaVuSans.ttf")].has("Grüße Ω") and not FONTS[names.index("DejaVuSans.ttf")].has("漢")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    with pytest.raises(ValueError, match="holds no font file"):
        find_fonts(str(tmp_path))


def test_the_picture_is_grey_where_it_has_no_colours(drawn):
    for page in drawn:
        picture = Image.open(io.BytesIO(page.picture))
        red, green, blue = picture.convert("RGB").split()
        has_colours = ImageChops.difference(red, green).getbbox() or ImageChops.difference(red, blue).getbbox()
        assert picture.mode == ("RGB" if has_colours else "L")
