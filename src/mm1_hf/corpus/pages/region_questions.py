"""Questions about where a text stands on a page, and what stands at a place, as in DocStruct4M (MM1.5)."""

import random
from collections import Counter

from mm1_hf.corpus.pages.page import Line, Page
from mm1_hf.grounding.text import RegionFormat


QUESTIONS_PER_PAGE = 4
# Shorter lines, such as page numbers, occur everywhere.
_SHORTEST = 8
_READ = ("What is written at {region}?", "Read the text in {region}.", "Which words are in {region}?")
_FIND = ("Where is the text “{text}”?", "Give the box of “{text}”.", "Where on the page does it say “{text}”?")


def region_questions(page: Page, form: RegionFormat) -> list[tuple[str, str]]:
    """
    Questions and answers about lines of a page, drawn by its name: the text at a place, and in turn the place of a text.

    Args:
        page: the page.
        form: the format of places.
    """
    draw = random.Random(f"regions {page.name}")
    number = Counter(line.text for line in page.lines)
    lines = [line for line in page.lines if len(line.text) >= _SHORTEST and number[line.text] == 1]
    chosen = draw.sample(lines, min(QUESTIONS_PER_PAGE, len(lines)))
    return [_question(page, line, index % 2 == 1, form, draw) for index, line in enumerate(chosen)]


def _question(page: Page, line: Line, find: bool, form: RegionFormat, draw: random.Random) -> tuple[str, str]:
    region = form.write(line.box, height=page.height, width=page.width)
    if find:
        return draw.choice(_FIND).format(text=line.text), region
    return draw.choice(_READ).format(region=region), line.text
