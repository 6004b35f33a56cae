import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm1_hf.evaluation.journal import Entry, Journal
from mm1_hf.evaluation.requests import Answer


TEXT = st.text(st.characters(codec=None), max_size=20)
VALUES = st.lists(st.floats(allow_nan=False), max_size=3).map(tuple)
ANSWERS = st.builds(Answer, TEXT, VALUES, st.lists(st.booleans(), max_size=3).map(tuple), st.none() | TEXT)
ENTRIES = st.builds(
    Entry,
    TEXT,
    st.integers(0, 9),
    TEXT,
    st.lists(TEXT, max_size=2).map(tuple),
    TEXT,
    st.lists(ANSWERS, min_size=1, max_size=2).map(tuple),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(ENTRIES, max_size=5), cut=st.integers(0, 400))
def test_what_was_written_is_read_but_for_a_cut_line(entries, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("journal")
    with Journal(folder, 0) as journal:
        for entry in entries:
            journal.append(entry)
        journal.sync()
    path = folder / "answers-0.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - cut)])
    whole = path.read_bytes().count(b"\n")
    kept = {(entry.cell, entry.index): entry for entry in entries[:whole]}
    new = Entry("new", 0, "id", (), "", (Answer("after the cut", (-math.inf,)),))
    with Journal(folder, 0) as journal:
        journal.append(new)
    cells = {"new", *(entry.cell for entry in entries)}
    found = {(cell, index): entry for cell, each in journal.read(cells).items() for index, entry in each.items()}
    assert {(cell, index) for cell, places in journal.places().items() for index in places} == set(found)
    assert found == kept | {("new", 0): new}


def test_the_files_of_all_processes_are_read(tmp_path):
    entry = Entry("cell", 0, "id", (), "", (Answer("yes"),))
    for process in range(3):
        with Journal(tmp_path, process) as journal:
            journal.append(replace(entry, index=process))
    assert set(Journal(tmp_path, 7).read(["cell"])["cell"]) == {0, 1, 2}
    assert Journal(tmp_path / "nowhere", 0).read(["cell"]) == {"cell": {}}


@pytest.mark.parametrize(
    "line",
    [b"{}", b"5", b"not JSON", b'{"cell": "c", "index": 0, "id": "", "shots": [], "prompt": "", "answers": {}}'],
)
def test_a_line_of_something_else_is_named(line, tmp_path):
    (tmp_path / "answers-0.jsonl").write_bytes(line + b"\n")
    with pytest.raises(ValueError, match=r"Line 1 of .* cannot be read"):
        Journal(tmp_path, 0).places()
