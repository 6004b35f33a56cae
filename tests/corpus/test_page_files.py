import os
import re
import sys

import pytest
from datatrove.data import Document as EngineDocument
from web_pages import page, picture, prose, write_pages_table, write_warc

from mm1_hf.corpus.page_files import ReadPages


def read(*inputs, rank: int = 0, tasks: int = 1) -> tuple[list[EngineDocument], dict[str, int]]:
    """The documents, and how many were dropped by reason."""
    step = ReadPages([str(each) for each in inputs])
    found = list(step.run(rank=rank, world_size=tasks))
    counts = {label: int(value.total) for label, value in step.stats.stats.items()}
    return found, {label: number for label, number in counts.items() if label.startswith("dropped")}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "site" / "img").mkdir(parents=True)
    (tmp_path / "site" / "img" / "a.png").write_bytes(picture(1))
    return tmp_path / "site"


def test_pages_of_a_folder_name_their_files(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "b.HTM").write_text(page(2, "../img/a.png"))
    (folder / "a.html").write_text(page(1, "img/a.png", "https://a.example/x.png", "data:image/png;base64,AA"))
    (folder / "notes.txt").write_text("no page")
    found, dropped = read(folder)
    assert [each.id for each in found] == ["site/a.html", "site/deep/b.HTM"]
    assert not dropped
    assert [(image.path, image.url) for image in found[0].media] == [
        (str(folder / "img" / "a.png"), ""),
        (None, "https://a.example/x.png"),
        (None, "data:image/png;base64,AA"),
    ]
    assert found[0].text.startswith(prose(1)) and "Menu" not in found[0].text
    assert found[1].media[0].path == str(folder / "img" / "a.png")


def test_names_start_below_what_all_inputs_have_in_common(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "html").mkdir(parents=True)
        (tmp_path / name / "html" / "a.html").write_text(page(1))
    found, _ = read(tmp_path / "two" / "html", tmp_path / "one" / "html")
    assert [each.id for each in found] == ["one/html/a.html", "two/html/a.html"]
    found, _ = read(tmp_path / "one" / "html" / "a.html")
    assert [each.id for each in found] == ["a.html"]


def test_tasks_share_the_files(folder):
    for number in range(5):
        (folder / f"{number}.html").write_text(page(number))
    shares = [[each.id for each in read(folder, rank=rank, tasks=2)[0]] for rank in range(2)]
    assert shares == [["site/0.html", "site/2.html", "site/4.html"], ["site/1.html", "site/3.html"]]


def test_pages_and_their_images_stay_in_the_folder(folder, tmp_path):
    (tmp_path / "secret.html").write_text("<p>secret</p>")
    os.symlink(tmp_path / "secret.html", folder / "link.html")
    (folder / "up.html").write_text(page(1, "../secret.png"))
    (folder / "file.html").write_text(page(1, "file:///etc/passwd"))
    (folder / "root.html").write_text(page(1, "/etc/passwd"))
    found, dropped = read(folder)
    assert dropped == {"dropped: outside of the data's folder": 3}
    # An address of another kind than the web's is no image for anybody else.
    assert [(each.id, each.media) for each in found] == [("site/file.html", [])]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_names_that_are_no_text_are_counted(folder):
    (folder / os.fsdecode(b"a\xff.html")).write_text(page(1))
    (folder / "b.html").write_text(page(2))
    found, dropped = read(folder)
    assert [each.id for each in found] == ["site/b.html"]
    assert dropped == {"dropped: text is not valid Unicode": 1}


def test_broken_and_hostile_pages_are_counted(folder):
    (folder / "empty.html").write_bytes(b"")
    (folder / "words.html").write_bytes(b"<p>Unclosed <b>tags <i>and \xff\xfe bytes<table><img src=img/a.png>")
    (folder / "deep.html").write_bytes(b"<div>" * 200_000 + b"x")
    (folder / "long.html").write_bytes(b"<p>" + b"a" * (1 << 25))
    found, dropped = read(folder)
    assert [each.id for each in found] == ["site/words.html"]
    assert len(found[0].media) == 1
    assert sum(dropped.values()) == 3 and dropped["dropped: no text"] == 1


@pytest.mark.parametrize("end", ["warc", "warc.gz"])
def test_pages_of_a_warc_file_have_urls(end, tmp_path):
    write_warc(
        tmp_path / "crawl" / f"a.{end}",
        [
            ("https://a.example/b/c.html", "text/html; charset=ISO-8859-1", b"<p>caf\xe9</p><img src=../d.png>"),
            ("https://a.example/d.png", "image/png", picture(1)),
            ("https://a.example/e", "application/xhtml+xml", b"<p>also</p>"),
        ],
    )
    found, dropped = read(tmp_path / "crawl")
    assert not dropped
    assert [(each.id, each.text.strip(), each.metadata["url"]) for each in found] == [
        (f"crawl/a.{end}/0 https://a.example/b/c.html", "café", "https://a.example/b/c.html"),
        (f"crawl/a.{end}/2 https://a.example/e", "also", "https://a.example/e"),
    ]
    assert [image.url for image in found[0].media] == ["https://a.example/d.png"]


def test_records_of_a_warc_file_name_no_local_files(tmp_path):
    write_warc(
        tmp_path / "a.warc",
        [
            ("../../etc/passwd", "text/html", b"<p>up</p><img src=shadow>"),
            ("file:///etc/passwd", "text/html", b"<p>file</p><img src=shadow>"),
            (
                "https://a.example/../../x.html",
                "text/html",
                b"<p>web</p><img src=../../../etc/passwd><img src=file:///x>",
            ),
        ],
    )
    found, dropped = read(tmp_path)
    assert dropped == {"dropped: no web address": 2}
    ((image,),) = (each.media for each in found)
    assert image.path is None and image.url.startswith("https://a.example/")


@pytest.mark.parametrize(
    ("status", "reason"),
    [("404 Not Found", "HTTP status 404"), ("2000 Many", "no HTTP status"), ("", "no HTTP status")],
)
def test_only_pages_that_were_found_are_read(status, reason, tmp_path):
    write_warc(tmp_path / "a.warc", [("https://a.example/", "text/html", b"<p>not here</p>")], status)
    assert read(tmp_path) == ([], {f"dropped: {reason}": 1})


@pytest.mark.parametrize("end", ["warc", "warc.gz"])
def test_a_cut_off_warc_file_gives_what_is_before(end, tmp_path):
    pages = [(f"https://a.example/{number}", "text/html", page(number).encode()) for number in range(4)]
    path = write_warc(tmp_path / f"a.{end}", pages)
    path.write_bytes(path.read_bytes()[: -1500 if end == "warc" else -300])
    found, dropped = read(path)
    assert 1 <= len(found) <= 4
    assert sum(dropped.values()) <= 1


@pytest.mark.parametrize(
    "content", [b"", b"no archive", b"\x1f\x8b\x08broken", b"WARC/1.0\r\nContent-Length: 99999999\r\n\r\n"]
)
@pytest.mark.parametrize("end", ["warc", "warc.gz", "parquet"])
def test_files_that_are_no_archives_are_counted(content, end, tmp_path):
    (tmp_path / f"a.{end}").write_bytes(content)
    (tmp_path / "b.html").write_text(page(1))
    found, dropped = read(tmp_path)
    assert len(found) == 1
    assert set(dropped) <= {"dropped: corrupt file"}
    assert end != "parquet" or dropped == {"dropped: corrupt file": 1}


def test_pages_of_a_table(tmp_path):
    rows = [
        {"content": page(1, "x.png"), "url": "https://a.example/1", "other": 1},
        {"content": page(2), "url": "/etc/passwd", "other": 2},
        {"content": None, "url": "https://a.example/3", "other": 3},
    ]
    write_pages_table(tmp_path / "a.parquet", rows)
    write_pages_table(tmp_path / "b.parquet", [{"text": "no page"}])
    found, dropped = read(tmp_path)
    assert [each.metadata["url"] for each in found] == ["https://a.example/1"]
    assert found[0].media[0].url == "https://a.example/x.png"
    assert dropped == {"dropped: no web address": 1, "dropped: not a record of this layout": 2}


def test_missing_inputs_are_said_before_the_run(tmp_path):
    with pytest.raises(ValueError, match="There is no file or folder"):
        ReadPages([str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds no file that can be read. Give files of these")):
        ReadPages([str(tmp_path)])


def test_a_reader_is_not_ended_by_a_page(folder, monkeypatch):
    def broken(*_):
        raise RecursionError("too deep")

    monkeypatch.setattr("mm1_hf.corpus.page_files.html_document", broken)
    (folder / "a.html").write_text(page(1))
    assert read(folder) == ([], {"dropped: unreadable record (RecursionError)": 1})
