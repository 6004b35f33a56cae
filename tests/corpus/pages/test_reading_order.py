"""Words in reading order: columns, tables, headings of columns, and that no word is lost."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf.corpus.pages.page import Word
from mm1_hf.corpus.pages.reading_order import reading_order
from mm1_hf.grounding.regions import Box


LETTER, HEIGHT, LEADING = 6.0, 10.0, 14.0


def written(text: str, left: float, top: float, scale: float = 1.0) -> list[Word]:
    """The words of a line, each letter as wide as any other."""
    words = []
    for word in text.split():
        right = left + len(word) * LETTER * scale
        words.append(Word(word, Box(left, top, right, top + HEIGHT * scale)))
        left = right + LETTER * scale
    return words


def block(lines: list[str], left: float, top: float, leading: float = LEADING) -> list[Word]:
    return [word for index, line in enumerate(lines) for word in written(line, left, top + index * leading)]


def prose(draw: random.Random, lines: int, letters: int) -> list[str]:
    """Lines of words that nearly fill a column of so many letters; the last one is shorter."""
    made = []
    for index in range(lines):
        line = f"{draw.choice('abcdefgh')}{index}"
        while len(line) < (letters if index + 1 < lines else letters // 2) - 9:
            line += " " + "".join(draw.choices("etaoinshr", k=draw.randint(2, 8)))
        made.append(line)
    return made


def texts(words: list[Word]) -> list[str]:
    return [line.text for line in reading_order(words)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 3), st.floats(0, 9), st.booleans(), st.booleans())
def test_columns_are_read_one_after_the_other(seed, number, shift, titled, shuffled):
    """Whatever their lengths and the heights of their lines; also if the words are stored in no order at all."""
    draw = random.Random(seed)
    # Columns that are stored in no order have to be told by their filled lines.
    columns = [prose(draw, draw.randint(8, 30), 40) for _ in range(number)]
    words, expected = [], []
    if titled:
        words += written("A title over all of the columns of the page is here", 80, 20, 1.6)
        expected.append("A title over all of the columns of the page is here")
    for index, lines in enumerate(columns):
        words += block(lines, 40 + index * 41 * LETTER + index * 12, 60 + index * shift)
        expected += lines
    if shuffled:
        draw.shuffle(words)
    assert texts(words) == expected


def test_the_rows_of_a_table_are_read_as_rows():
    rows = [("Wheat", "230", "580"), ("Barley", "210", "750"), ("Oats", "370", "710"), ("Rye", "280", "140")]
    words = [
        word
        for index, row in enumerate(rows)
        for place, cell in enumerate(row)
        for word in written(cell, 40 + 120 * place, 40 + index * LEADING)
    ]
    assert texts(words) == [" ".join(row) for row in rows]


def test_an_index_is_read_by_columns_because_it_is_stored_so():
    left, right = ([f"{name}{index} {index}" for index in range(6)] for name in ("alpha", "omega"))
    assert texts(block(left, 40, 40) + block(right, 200, 40)) == left + right


def test_headings_of_columns_go_with_their_columns():
    draw = random.Random(0)
    left, right = prose(draw, 8, 40), prose(draw, 8, 40)
    # Its middle stands over the right heading, and not over the left one.
    words = written("Figure 1: a caption under a picture", 250, 20)
    words += written("ABSTRACT", 40, 50) + block(left, 40, 70) + written("KEYWORDS", 310, 50) + block(right, 310, 70)
    assert texts(words) == ["Figure 1: a caption under a picture", "ABSTRACT", *left, "KEYWORDS", *right]


def test_a_header_of_two_ends_is_one_line():
    draw = random.Random(0)
    left, right = prose(draw, 8, 40), prose(draw, 8, 40)
    words = written("The title", 40, 10) + written("page 7", 500, 10) + block(left, 40, 60) + block(right, 310, 60)
    assert texts(words) == ["The title page 7", *left, *right]


def test_text_between_columns_and_below_them():
    draw = random.Random(1)
    upper, lower = [prose(draw, 6, 40) for _ in range(2)], [prose(draw, 6, 40) for _ in range(2)]
    wide = "A line that goes over both of the columns, from the left to the right end of the page"
    words = block(upper[0], 40, 20) + block(upper[1], 310, 20) + written(wide, 40, 130)
    words += block(lower[0], 40, 160) + block(lower[1], 310, 160)
    assert texts(words) == [*upper[0], *upper[1], wide, *lower[0], *lower[1]]


def test_dots_of_a_table_of_contents_are_one_word():
    dots = [Word(".", Box(200 + 5 * index, 47, 201 + 5 * index, 49)) for index in range(30)]
    lines = reading_order(written("8.33 tube", 40, 40) + dots + written("154", 380, 40))
    assert [line.text for line in lines] == ["8.33 tube ... 154"]
    assert lines[0].words[2].box == Box(200, 47, 346, 49)


def test_raised_numbers_and_initials_find_their_lines():
    initial = [Word("O", Box(40, 40, 70, 78))]
    lines = [written("nce upon", 75, 40), written("a time", 75, 54), written("there", 75, 68)]
    raised = [Word("2", Box(180, 37, 184, 43))]
    assert texts(initial + lines[0] + raised + lines[1] + lines[2]) == ["O nce upon 2", "a time", "there"]


BOXES = st.tuples(*[st.floats(0, 600, allow_nan=False)] * 2, *[st.floats(0, 80, allow_nan=False)] * 2)


@settings(max_examples=80, deadline=None)
@given(st.lists(BOXES, max_size=60))
def test_no_word_is_lost_or_doubled(boxes):
    words = [Word(f"w{index}", Box(x, y, x + w, y + h)) for index, (x, y, w, h) in enumerate(boxes)]
    found = [word for line in reading_order(words) for word in line.words]
    assert sorted(found) == sorted(words)


@pytest.mark.parametrize("words", [[], [Word("-", Box(0, 5, 9, 5))] * 3])
def test_pages_of_nothing(words):
    assert len(reading_order(words)) == bool(words)
