"""`mm1 data pages` as a whole: what it writes is read for training, and stops and workers change nothing."""

import random

import pytest
from killed_data_runs import digests, finish, kill_somewhere
from pdf_files import Text, content, pdf

from mm1_hf.corpus.report import read_counts
from mm1_hf.corpus.stages import run_stages
from mm1_hf.corpus.ways import pages
from mm1_hf.corpus.ways.pages import Settings, stages
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.readers import read


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Two PDF files and one that is broken, two texts, and six figures."""
    folder = tmp_path_factory.mktemp("input")
    for name in ("a", "b"):
        lines = [Text(f"line {index} of file {name}", 72, 700 - 20 * index, 12) for index in range(6)]
        (folder / f"{name}.pdf").write_bytes(pdf([content(lines), content(lines[:2]), b"q"]))
        (folder / f"{name}.txt").write_text(f"A text to draw, {name}.\n" * 12)
    (folder / "c.pdf").write_bytes(b"%PDF-1.7")

    def made(output, **options) -> Settings:
        chosen = {"texts": [str(folder)], "figures": 6, "longest_side": 448} | options
        return Settings((str(folder),), str(output), **chosen)

    return made


@pytest.fixture(scope="module")
def data(settings, tmp_path_factory):
    run = settings(tmp_path_factory.mktemp("run") / "run")
    run_stages(stages(run), run.output)
    return run


def documents(settings: Settings, source: str, layout: str) -> list:
    records = read(f"{settings.output}/data/{source}", layout)
    return [LAYOUTS[layout](records[index]) for index in range(len(records))]


def file_of(document) -> str:
    return document.name.rpartition("/")[2]


def test_pages_are_read_as_captions(data):
    found = documents(data, "documents/pages", "caption")
    (text,) = (document.parts[1] for document in found if file_of(document) == "a.pdf#2")
    assert text == "line 0 of file a\nline 1 of file a"
    assert {file_of(document) for document in found} == {"a.pdf#1", "a.pdf#2", "b.pdf#1", "b.pdf#2"}
    assert all(document.kind == "caption" and max(document.images[0].size()) == 448 for document in found)
    assert len(documents(data, "texts/pages", "caption")) >= 2
    assert len(documents(data, "figures/pages", "caption")) == 6


def test_questions_are_read_as_conversations(data):
    found = documents(data, "documents/questions", "chat") + documents(data, "figures/questions", "chat")
    assert len(found) == 10
    for chat in found:
        roles = [message["role"] for message in chat.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and len(chat.images) == 1
        assert chat.messages[0]["content"][0] == {"type": "image"}


def test_what_is_dropped_is_counted(data):
    counts = {step.name: step.counts for step in read_counts(data.output)}
    assert counts["read pages of documents"]["dropped: no text layer"] == 2
    assert counts["read pages of documents"]["dropped: broken PDF"] == 1


def test_archives_are_read_too(settings, tmp_path):
    run = settings(tmp_path / "run", format="webdataset", texts=(), figures=0)
    run_stages(stages(run), run.output)
    found = documents(run, "documents/pages", "caption")
    assert len(found) == 4 and all(document.parts[1].startswith("line 0") for document in found)
    assert len(documents(run, "documents/questions", "chat")) == 4


def test_tasks_give_the_same_set(data, settings, tmp_path):
    run = settings(tmp_path / "run")
    run_stages(stages(run), run.output, tasks=3)
    for source, layout in (("documents/pages", "caption"), ("texts/pages", "caption"), ("figures/questions", "chat")):
        one, three = (
            {d.name: (d.parts[1:], d.images[0].read()) for d in documents(each, source, layout)}
            for each in (data, run)
        )
        assert one == three


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"longest_side": 100}, "give 224 to 4096"),
        ({"figures": -1}, "figures is -1"),
        ({"texts": ["nowhere"]}, "no file or folder"),
        ({"fonts": "nowhere"}, "holds no font file"),
    ],
)
def test_wrong_options_are_refused(settings, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        stages(settings(tmp_path / "run", **options))


def test_nothing_to_make_pages_of_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to make pages of"):
        stages(Settings((), str(tmp_path)))


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bytes(settings, tmp_path):
    expected = settings(tmp_path / "whole")
    finish(pages, expected, tasks=3, workers=1)
    draw, run = random.Random(0), settings(tmp_path / "killed")
    killed = sum(kill_somewhere(pages, run, tasks=3, workers=2, seconds=8, draw=draw) for _ in range(6))
    finish(pages, run, tasks=3, workers=2)
    assert killed
    assert digests(tmp_path / "killed" / "data") == digests(tmp_path / "whole" / "data")
