"""Pages of archives as PDFA and IDL have them, and questions about places on pages."""

import io
import json
import tarfile

import pytest
from pdf_files import Text, content, pdf
from PIL import Image, ImageDraw

from mm1_hf.corpus.pages.page import Line, Page, Word
from mm1_hf.corpus.pages.read_pages import ReadDocumentPages
from mm1_hf.corpus.pages.records import QUESTIONS
from mm1_hf.corpus.pages.region_questions import QUESTIONS_PER_PAGE, region_questions
from mm1_hf.corpus.pages.scanned import scanned_pages
from mm1_hf.data.documents import Unusable
from mm1_hf.grounding.regions import Box, iou
from mm1_hf.grounding.text import RegionFormat


def scan(pages: int) -> bytes:
    """A TIFF file of pages of 1000 x 1400 pixels, with a black bar for a line."""
    pictures = []
    for _ in range(pages):
        picture = Image.new("L", (1000, 1400), 255)
        ImageDraw.Draw(picture).rectangle((100, 140, 500, 168), 0)
        pictures.append(picture)
    file = io.BytesIO()
    pictures[0].save(file, "TIFF", save_all=True, append_images=pictures[1:])
    return file.getvalue()


KNOWN = {
    "text": ["a line of text", "below it"],
    "bbox": [[0.1, 0.1, 0.4, 0.02], [0.1, 0.2, 0.3, 0.02]],
    "score": [1, 1],
}


def archive(path, samples: list[dict[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for number, files in enumerate(samples):
            for extension, data in files.items():
                member = tarfile.TarInfo(f"{number:07d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


def read(*inputs: str) -> dict[str, str]:
    """The text of every page by its name, or `!` and the reason why there is none."""
    found = {}
    for item in ReadDocumentPages(inputs, 700).read(0, 1):
        document, result = item if isinstance(item, tuple) else (item, item)
        found[document.id] = f"!{result.reason}" if isinstance(result, Unusable) else result.text
    return found


def test_archives_of_documents(tmp_path):
    page = pdf([content([Text("Hello world", 72, 700, 20)])] * 2)
    known = json.dumps({"pages": [KNOWN, {"text": []}]}).encode()
    samples = [
        {"pdf": page, "json": b'{"pages": []}'},
        {"pdf": b"no pdf", "tif": scan(3), "json": known},
        {"tif": scan(1), "json": b"[]"},
        {"tif": b"no tiff", "json": known},
        {"json": known},
        {"pdf": page, "json": b"{"},
    ]
    assert read(archive(tmp_path / "a.tar", samples)) == {
        "a.tar/0#1": "Hello world",
        "a.tar/0#2": "Hello world",
        "a.tar/1#1": "a line of text\nbelow it",
        "a.tar/1#2": "!no text layer",
        "a.tar/1#3": "!no text layer",
        "a.tar/2": "!not a record of this layout",
        "a.tar/3": "!corrupt image",
        "a.tar/4": "!no image",
        "a.tar/5": "!corrupt record",
    }


def test_tasks_share_the_files_and_links_out_of_the_input_are_not_followed(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/a.pdf", "in/b.pdf", "secret.pdf"):
        (tmp_path / name).write_bytes(pdf([content([Text(f"file {name[-5]}", 72, 700, 20)])]))
    (tmp_path / "in" / "c.pdf").symlink_to(tmp_path / "secret.pdf")
    step = ReadDocumentPages([str(tmp_path / "in")], 700)
    found = [list(step.read(rank, 2)) for rank in range(2)]
    assert [document.text for task in found for document in task if not isinstance(document, tuple)] == [
        "file a",
        "file b",
    ]
    ((_, why),) = [item for task in found for item in task if isinstance(item, tuple)]
    assert why.reason == "outside of the data's folder"


def test_scanned_pages_become_smaller_with_their_boxes():
    ((name, page),) = scanned_pages(scan(1), [KNOWN], "a", 700)
    assert (name, page.height, page.width) == ("a#1", 700, 500)
    box = page.lines[0].box
    dark = Image.open(io.BytesIO(page.picture)).convert("L").point(lambda level: 255 if level < 128 else 0).getbbox()
    assert tuple(box) == pytest.approx(dark, abs=1.5)


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"text": ["a"], "bbox": []}, "not a record of this layout"),
        ({"text": ["a"], "bbox": [[100, 100, 20, 20]]}, "not a record of this layout"),
        ({"text": ["a"], "bbox": [[0.5, 0.5, -0.1, 0.1]]}, "not a record of this layout"),
        ({"text": ["a"], "bbox": [["x", 0, 0, 0]]}, "unreadable record (TypeError)"),
        ({"text": ["  "], "bbox": [[0, 0, 1, 1]]}, "no text layer"),
        ({}, "no text layer"),
    ],
)
def test_texts_of_scans_that_do_not_fit(known, reason):
    ((_, why),) = scanned_pages(scan(1), [known], "a", 700)
    assert isinstance(why, Unusable) and why.reason == reason


def page(lines: list[str]) -> Page:
    placed = [
        Line((Word(text, Box(40, 40 + 30 * index, 40 + 8 * len(text), 60 + 30 * index)),))
        for index, text in enumerate(lines)
    ]
    return Page("a", b"", 1000, 800, tuple(placed))


def test_questions_about_places_have_the_answers_of_the_page():
    lines = [f"this is line number {index}" for index in range(12)]
    form, asked = RegionFormat(), page(lines)
    questions = region_questions(asked, form)
    assert len(questions) == QUESTIONS_PER_PAGE == len(set(questions)) and questions == region_questions(asked, form)
    for question, answer in questions:
        text = answer if answer in lines else next(line for line in lines if f"“{line}”" in question)
        (box,) = form.boxes(question if answer in lines else answer, height=1000, width=800)
        assert iou(box, asked.lines[lines.index(text)].box) > 0.85
    assert sum(answer in lines for _, answer in questions) == 2


def test_short_and_repeated_lines_are_not_asked_about():
    assert region_questions(page(["7", "the same line", "the same line"]), RegionFormat()) == []


def test_a_page_brings_its_questions(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf([content([Text("Hello world", 72, 700, 20)])]))
    (document,) = ReadDocumentPages([str(tmp_path / "a.pdf")], 700).read(0, 1)
    ((question, answer),) = document.metadata[QUESTIONS]
    assert answer == "Hello world" and "[" in question
    assert document.metadata["lines"][0]["words"][1]["text"] == "world"
