"""Whatever one record does, of any type, is its own reason to be left out; what is not a record's fault is raised."""

import re

import datasets
import pytest

from mm1_hf.data.documents import Drops, Unusable, merged_drops
from mm1_hf.data.drop_table import drop_table
from mm1_hf.data.tables import row_of
from mm1_hf.data.wall import around_record, require_unicode, results_or_reasons


class PanicException(BaseException):
    """As pyo3 raises it."""


@pytest.mark.parametrize(
    "error", [ValueError, RecursionError, MemoryError, OSError, UnicodeError, PanicException, Exception]
)
def test_every_error_is_the_record_s_reason(error):
    with pytest.raises(Unusable) as caught, around_record("record 5"):
        raise error
    name = error.__name__
    assert (caught.value.reason, caught.value.detail) == (f"unreadable record ({name})", f"record 5: {name}")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_stops_a_run_stops_it(error):
    with pytest.raises(error), around_record("record 5"):
        raise error


def test_a_reason_stays_as_it_is_and_a_long_message_is_cut():
    with pytest.raises(Unusable, match=r"^no text: here$"), around_record("record 5"):
        raise Unusable("no text", "here")
    with pytest.raises(Unusable) as caught, around_record("record 5"):
        raise ValueError("x" * 10**6)
    assert len(str(caught.value)) < 400


def test_an_item_that_fails_does_not_take_the_others_with_it():
    calls = []

    def square(numbers):
        calls.append(len(numbers))
        if any(number in (3, 8) for number in numbers):
            raise TypeError("no")
        return [number * number for number in numbers]

    found = results_or_reasons(square, range(16), [f"record {number}" for number in range(16)])
    assert [isinstance(each, Unusable) for each in found] == [number in (3, 8) for number in range(16)]
    assert [each for each in found if not isinstance(each, Unusable)] == [n * n for n in range(16) if n not in (3, 8)]
    assert str(found[3]) == "unreadable record (TypeError): record 3: no" and len(calls) < 20
    assert results_or_reasons(square, [], []) == []


@pytest.mark.parametrize("text", ["", "plain", "é \U0001f600", "\u2028"])
def test_unicode_is_accepted(text):
    require_unicode(text, "r")


def test_a_failing_disk_is_not_a_record_s_fault():
    dataset = datasets.Dataset.from_dict({"a": [1, 2]})

    def broken(batch, error):
        raise error

    for error, raised in ((OSError(5, "input/output"), OSError), (TypeError("no"), Unusable)):
        with pytest.raises(raised):
            row_of(dataset.with_transform(lambda batch, error=error: broken(batch, error)), 0, "r")


def test_the_table_tells_what_was_left_out():
    drops, other = Drops(), Drops()
    for number in range(60):
        drops.seen("web", Unusable("corrupt image", "x") if number < 2 else None)
    other.seen("web", Unusable("no text", "y"))
    drops.left_out("web", 12)
    drops.seen("books")
    report = merged_drops([drops.state_dict(), other.state_dict()]).report()
    assert report["web"]["images_left_out"] == 12 and "images_left_out" not in report["books"]
    lines = [re.split(r"\s{2,}", line) for line in drop_table(report).splitlines()]
    assert lines == [
        ["source", "left out", "number", "of records read"],
        ["web", "corrupt image", "2", "61 (3.28%)"],
        ["web", "no text", "1", "61 (1.64%)"],
        ["web", "images without text in their row", "12", "61"],
    ]
    assert (
        drop_table({"a": {"seen": 1200, "dropped": {}}}) == "Nothing was left out of the 1,200 records that were read."
    )
