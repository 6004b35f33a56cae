"""What data writes cannot command a terminal, hide or reorder."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm1_hf.reporting.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb\nc\td\x7f", "a␍b␊c␉d␡"),
        ("\u202egnp\u2066.exe", r"\u202egnp\u2066.exe"),
        ("one\u2028two\u2029", r"one\u2028two\u2029"),
        ("half \ud83d", r"half \ud83d"),
        ("\ue000 \U000e0041 \U0010ffff", r"\ue000 \U000e0041 \U0010ffff"),
        ("pay\u200bpal \ufeff\u3164", r"pay\u200bpal \ufeff\u3164"),
        ("a\u200db", r"a\u200db"),
        # A second selector after one that is needed could carry hidden text.
        ("❤\ufe0f\ufe01\U000e0100", "❤\ufe0f" + r"\ufe01\U000e0100"),
    ],
)
def test_what_commands_or_hides_is_shown(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "Grüße, 日本語",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "❤\ufe0f\u200d\U0001f525",
        "می\u200cخواهم",
        "1\u00a0000",
    ],
)
def test_text_of_all_languages_stays(text):
    assert printable(text) == text


def test_what_is_kept_is_kept():
    assert printable("a\n\tb\r", keep="\n\t") == "a\n\tb␍"


@given(st.text(st.characters(codec=None)))
def test_nothing_dangerous_is_left(text):
    shown = printable(text)
    assert printable(shown) == shown
    shown.encode()
    for character in shown:
        assert character in "\u200c\u200d" or unicodedata.category(character) not in {
            "Cc",
            "Cf",
            "Cs",
            "Co",
            "Cn",
            "Zl",
            "Zp",
        }
