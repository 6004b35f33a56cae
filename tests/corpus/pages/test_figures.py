"""Charts and tables: answers follow from the table that is given as text, and pictures show its numbers."""

import io
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mm1_hf.corpus.pages.figures import draw_figure
from mm1_hf.corpus.pages.fonts import find_fonts
from mm1_hf.corpus.pages.number_tables import SHORT_ANSWER, draw_shares, draw_table


FONTS = find_fonts(None)


def parsed(text: str) -> tuple[list[str], dict[str, list[int]]]:
    """The names of the columns and the numbers of each row of a table in Markdown."""
    _, header, rule, *rows = text.splitlines()
    assert set(rule) <= set("|- ")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)]
    return cells[0][1:], {row[0]: [int(cell) for cell in row[1:]] for row in cells[1:]}


def answered(question: str, text: str) -> str:
    """The answer to a question, from the table's text alone."""
    columns, rows = parsed(text)
    # The name of a year stands in the question, that of a single column too.
    index = next(i for i, column in enumerate(columns) if re.search(rf"\b{column.lower()}\b", question.lower()))
    numbers = {name: values[index] for name, values in rows.items()}
    named = [name for name in rows if re.search(rf"\bfor {re.escape(name)}\b", question)]
    named.sort(key=lambda name: question.index(f"for {name}"))
    if limit := re.search(r"above (\d+)\?", question):
        return str(sum(number > int(limit[1]) for number in numbers.values()))
    if extreme := re.search("highest|lowest", question):
        best = (max if extreme[0] == "highest" else min)(numbers.values())
        (name,) = (name for name, number in numbers.items() if number == best)
        return name
    if question.startswith("How much higher"):
        return str(numbers[named[0]] - numbers[named[1]])
    if question.startswith("Is the"):
        return "Yes" if numbers[named[0]] > numbers[named[1]] else "No"
    return str(numbers[named[0]])


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 5), st.integers(3, 10), st.booleans())
def test_answers_follow_from_the_table(draw, columns, rows, shares):
    table = draw_shares(draw) if shares else draw_table(draw, rows=(rows, rows), columns=(columns, columns), parts=10)
    questions = table.questions(draw)
    assert questions[0].question.endswith(SHORT_ANSWER) and len({question for question, _ in questions}) == len(
        questions
    )
    for question, answer in questions:
        assert answered(question.removesuffix(f"\n{SHORT_ANSWER}"), table.text()) == answer


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_shares_are_those_of_a_whole(draw):
    numbers = [row[0] for row in draw_shares(draw).values]
    assert sum(numbers) == 100 and min(numbers) >= 5


def figures(number: int) -> list:
    return [draw_figure(index, FONTS, 0, 448) for index in range(number)]


def test_figures_depend_on_number_and_seed_alone():
    first = figures(6)
    random.seed(1)
    assert [draw_figure(index, FONTS, 0, 448) for index in reversed(range(6))] == first[::-1]
    assert draw_figure(0, FONTS, 1, 448) != first[0]


def test_points_have_questions_too():
    found = [figure for figure in figures(30) if figure.text.startswith("Points")]
    assert found
    for figure in found:
        for question, answer in figure.questions:
            assert answered(question.removesuffix(f"\n{SHORT_ANSWER}"), figure.text) == answer


def test_the_slices_of_a_pie_are_as_large_as_their_shares():
    found = [figure for figure in figures(40) if figure.text.startswith("Share of")]
    assert len(found) > 3
    for figure in found:
        _, rows = parsed(figure.text)
        picture = Image.open(io.BytesIO(figure.page.picture)).convert("RGB")
        colours = Counter(picture.get_flattened_data())
        del colours[(255, 255, 255)]
        slices = sorted(number for _, number in colours.most_common(len(rows)))
        # Numbers are written on the slices, and edges are blended.
        for area, share in zip(slices, sorted(values[0] for values in rows.values()), strict=True):
            assert area / sum(slices) == pytest.approx(share / 100, abs=0.03)


def test_a_drawn_table_has_its_cells_in_place():
    found = [figure for figure in figures(30) if figure.page.lines]
    assert found
    for figure in found:
        columns, rows = parsed(figure.text)
        title, header, *lines = figure.page.lines
        assert title.text == figure.text.splitlines()[0] and [word.text for word in header.words[1:]] == columns
        assert [[word.text for word in line.words] for line in lines] == [
            [name, *map(str, values)] for name, values in rows.items()
        ]
        for line in figure.page.lines:
            for word in line.words:
                assert 0 <= word.box.x1 < word.box.x2 <= figure.page.width
                assert 0 <= word.box.y1 < word.box.y2 <= figure.page.height


def test_the_users_settings_of_matplotlib_do_not_matter():
    import matplotlib

    first = figures(3)
    with matplotlib.rc_context({"axes.facecolor": "black", "lines.linewidth": 9}):
        assert figures(3) == first
        assert matplotlib.rcParams["lines.linewidth"] == 9
