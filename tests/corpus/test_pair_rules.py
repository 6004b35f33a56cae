import pytest
from engine_documents import document
from hypothesis import given
from hypothesis import strategies as st

from mm1_hf.corpus.pair_rules import caption_fault, one_image


ADDRESS, DEVICE = "caption is an address or a file name", "caption is the name of a device or program"
SHORT, LONG, LETTERS, WORD = (
    "caption too short",
    "caption too long",
    "caption of few letters",
    "caption repeats a word",
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("A red bus on a bridge", None),
        ("Photo of a red bus", None),
        ("see bus.jpg at the bridge", None),
        ("eine rote Brücke über den Fluss", None),
        ("桥上的红色巴士", None),
        ("https://a.example/b.jpg", ADDRESS),
        ("www.example.com bus.JPEG, red.png", ADDRESS),
        ("my_red_bus.jpg", ADDRESS),
        ("IMG_1234", DEVICE),
        ("DSC 0042 copy", DEVICE),
        ("Screenshot 2024-01-02 at 10.11.12 pm", DEVICE),
        ("", SHORT),
        ("bus", SHORT),
        ("red bus", SHORT),
        ("a b c", SHORT),
        ("word " * 257, LONG),
        ("x" * 3001, LONG),
        ("12 34 56 of 789 #### 2021", LETTERS),
        ("sale sale sale sale bus now", WORD),
        ("bus bus bus", None),
    ],
)
def test_captions(text, why):
    assert caption_fault(text) == why


@given(st.text(max_size=400))
def test_every_caption_is_judged(text):
    caption_fault(text)


@pytest.mark.parametrize("text", ["img" + "1" * 10**6 + "x", "a" * 10**6, "a." * 10**6, "https://" * 10**5])
def test_a_long_caption_is_not_searched(text):
    """Where a rule tried every place of a text as a beginning, these would take hours."""
    assert caption_fault(text) == LONG


def test_one_image():
    assert one_image(document("a", "b", b"x")) is None
    assert one_image(document("a", "b", b"x", b"y")) == "several images"
    assert one_image(document("a", "b")) == "no image left"
