"""
Made-up tables of numbers, and questions about them whose answers follow from the numbers. Charts and tables are drawn from
them; no number is from the real world.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


QUESTIONS_PER_TABLE = 4
# How LLaVA-1.5, and MM1 after it, ask for short answers.
SHORT_ANSWER = "Answer the question using a single word or phrase."
_SUBJECTS = (
    ("Rainfall", "mm", "month", "months"),
    ("Number of visitors", "thousands", "city", "cities"),
    ("Harvest", "tonnes", "crop", "crops"),
    ("Energy use", "MWh", "building", "buildings"),
    ("Number of loans", "books", "library", "libraries"),
    ("Travel time", "minutes", "route", "routes"),
    ("Number of members", "people", "club", "clubs"),
    ("Number of sales", "units", "product", "products"),
)
_LABELS = {
    "month": ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
    "city": (
        "Arlen",
        "Brakel",
        "Corvo",
        "Dunmore",
        "Elsted",
        "Farrow",
        "Gorse",
        "Hexley",
        "Ilmen",
        "Jarrow",
        "Keld",
        "Lorne",
    ),
    "crop": ("Wheat", "Barley", "Oats", "Rye", "Maize", "Beans", "Peas", "Beets", "Flax", "Hops", "Rice", "Lentils"),
    "building": (
        "Town hall",
        "School",
        "Station",
        "Museum",
        "Theatre",
        "Market",
        "Harbour",
        "Clinic",
        "Court",
        "Mill",
    ),
    "library": ("North", "South", "East", "West", "Central", "Riverside", "Hillside", "Old Town", "Campus", "Garden"),
    "route": ("A1", "A2", "B3", "B4", "C5", "C6", "D7", "D8", "E9", "F10", "G11", "H12"),
    "club": (
        "Chess",
        "Rowing",
        "Choir",
        "Running",
        "Cooking",
        "Judo",
        "Sailing",
        "Drama",
        "Tennis",
        "Photo",
        "Skating",
    ),
    "product": (
        "Lamps",
        "Chairs",
        "Tables",
        "Clocks",
        "Mirrors",
        "Shelves",
        "Rugs",
        "Vases",
        "Frames",
        "Desks",
        "Stools",
    ),
}
_SERIES = ("2019", "2020", "2021", "2022", "2023", "2024", "2025")


class Question(NamedTuple):
    """
    A question about a table.

    Args:
        question: the question.
        answer: the answer, a name, a number, `"Yes"` or `"No"`.
    """

    question: str
    answer: str


@dataclass(frozen=True)
class NumberTable:
    """
    A table of whole numbers.

    Args:
        subject: what the numbers count, such as `"Rainfall"`.
        unit: their unit.
        row_name, rows_name: what a row is, and several of them, such as `"month"` and `"months"`.
        rows: names of the rows.
        columns: names of the columns.
        values: the numbers, for each row one of each column.
        tick: distance of the marks on an axis; all numbers are multiples of a part of it.
    """

    subject: str
    unit: str
    row_name: str
    rows_name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    tick: int

    @property
    def title(self) -> str:
        """The subject with its unit."""
        return f"{self.subject} ({self.unit})"

    def text(self) -> str:
        """The title, and the table in Markdown."""
        cells = [(self.row_name.capitalize(), *self.columns)]
        cells += [(row, *map(str, numbers)) for row, numbers in zip(self.rows, self.values, strict=True)]
        lines = [f"| {' | '.join(row)} |" for row in cells]
        return "\n".join([self.title, lines[0], f"|{' --- |' * len(cells[0])}", *lines[1:]])

    def questions(self, draw: random.Random) -> list[Question]:
        """
        Different questions, each with one possible answer.

        Args:
            draw: the random number generator.
        """
        kinds: list[Callable[[random.Random], Question | None]] = [
            self._value,
            self._extreme,
            self._difference,
            self._number_above,
            self._comparison,
        ]
        draw.shuffle(kinds)
        found = [question for kind in kinds if (question := kind(draw)) is not None][:QUESTIONS_PER_TABLE]
        first, *others = found
        return [first._replace(question=f"{first.question}\n{SHORT_ANSWER}"), *others]

    def _column(self, draw: random.Random) -> tuple[str, list[int]]:
        """What a column is called in a question, and its numbers."""
        index = draw.randrange(len(self.columns))
        column = self.columns[index]
        called = f"{self.subject.lower()} in {column}" if column in _SERIES else column.lower()
        return called, [numbers[index] for numbers in self.values]

    def _value(self, draw: random.Random) -> Question:
        called, numbers = self._column(draw)
        row = draw.randrange(len(self.rows))
        return Question(f"What is the {called} for {self.rows[row]}?", str(numbers[row]))

    def _extreme(self, draw: random.Random) -> Question | None:
        called, numbers = self._column(draw)
        word, extreme = draw.choice((("highest", max(numbers)), ("lowest", min(numbers))))
        if numbers.count(extreme) > 1:
            return None
        return Question(f"Which {self.row_name} has the {word} {called}?", self.rows[numbers.index(extreme)])

    def _difference(self, draw: random.Random) -> Question | None:
        called, numbers = self._column(draw)
        one, other = sorted(draw.sample(range(len(self.rows)), 2), key=lambda row: -numbers[row])
        difference = numbers[one] - numbers[other]
        if not difference:
            return None
        return Question(
            f"How much higher is the {called} for {self.rows[one]} than for {self.rows[other]}?", str(difference)
        )

    def _number_above(self, draw: random.Random) -> Question | None:
        called, numbers = self._column(draw)
        limit = self.tick * draw.randint(1, max(1, max(numbers) // self.tick))
        if limit in numbers:
            return None
        above = sum(number > limit for number in numbers)
        return Question(f"For how many {self.rows_name} is the {called} above {limit}?", str(above))

    def _comparison(self, draw: random.Random) -> Question | None:
        called, numbers = self._column(draw)
        one, other = draw.sample(range(len(self.rows)), 2)
        if numbers[one] == numbers[other]:
            return None
        answer = "Yes" if numbers[one] > numbers[other] else "No"
        return Question(f"Is the {called} for {self.rows[one]} higher than for {self.rows[other]}?", answer)


def draw_table(draw: random.Random, *, rows: tuple[int, int], columns: tuple[int, int], parts: int) -> NumberTable:
    """
    A table of made-up numbers.

    Args:
        draw: the random number generator.
        rows, columns: smallest and largest number of rows and of columns.
        parts: the numbers are multiples of a tick divided by this number.
    """
    subject, unit, row_name, rows_name = draw.choice(_SUBJECTS)
    labels = _LABELS[row_name]
    number = min(draw.randint(*rows), len(labels))
    # Months stay in their order.
    start = draw.randint(0, len(labels) - number)
    names = labels[start : start + number] if row_name == "month" else tuple(draw.sample(labels, number))
    first = draw.randint(0, len(_SERIES) - 1)
    count = min(draw.randint(*columns), len(_SERIES) - first)
    tick = draw.choice((10, 20, 50, 100, 200, 500))
    values = tuple(
        tuple(draw.randint(parts // 2, 8 * parts) * tick // parts for _ in range(count)) for _ in range(number)
    )
    # A single column has no name in a chart.
    series = _SERIES[first : first + count] if count > 1 else (subject,)
    return NumberTable(subject, unit, row_name, rows_name, names, series, values, tick)


def draw_shares(draw: random.Random) -> NumberTable:
    """
    A table of one column of percentages, whose sum is 100.

    Args:
        draw: the random number generator.
    """
    table = draw_table(draw, rows=(3, 6), columns=(1, 1), parts=2)
    cuts = sorted(draw.sample(range(1, 20), len(table.rows) - 1))
    shares = [5 * (end - start) for start, end in zip([0, *cuts], [*cuts, 20], strict=True)]
    subject = f"Share of the {table.subject.lower()}"
    values = tuple((share,) for share in shares)
    return NumberTable(subject, "%", table.row_name, table.rows_name, table.rows, (subject,), values, 10)
