import json
import random
import time

import pytest
from killed_data_runs import digests, finish, kill_somewhere
from web_pages import page, picture, write_pages_table, write_site, write_warc

from mm1_hf.corpus.stages import run_stages
from mm1_hf.corpus.ways import documents as way
from mm1_hf.data.documents import ImagePart
from mm1_hf.data.layouts import documents
from mm1_hf.data.readers import read


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def build(output, *inputs, tasks: int = 2, **settings) -> list:
    """Runs the way; the documents of the data set, each by its name, texts and images."""
    chosen = way.Settings(tuple(map(str, inputs)), str(output), **settings)
    run_stages(way.stages(chosen), output, tasks=tasks)
    found = [documents(record) for record in read(output / "data", "documents")]
    return sorted(
        (each.name, [part.read() if isinstance(part, ImagePart) else part.strip() for part in each.parts])
        for each in found
    )


def counts(output, step: str) -> dict[str, int]:
    steps = json.loads((output / "counts.json").read_text())
    (found,) = (each for each in steps if each["step"] == step)
    return {label: number for label, number in found.items() if label not in ("stage", "step")}


def test_a_folder_of_pages_becomes_documents(tmp_path):
    site = write_site(tmp_path / "site", pages=14)
    found = build(tmp_path / "out", site)
    # The last page but one has no image, and of the first and the last, which have one text, either stays.
    names = [name for name, _ in found]
    assert len(names) == 12 and not {"page-012.html", "site/page-012.html"} & set(names)
    for name, (before, image, *_) in found:
        number = int(name.removeprefix("site/page-").removesuffix(".html"))
        assert before and image == picture(number)
    # What all pages show is left out, with what its name says to be a logo and what is on the web.
    assert counts(tmp_path / "out", "read pages")["kept"] == 14
    assert counts(tmp_path / "out", "number of images")["dropped: no image"] == 1
    assert counts(tmp_path / "out", "repeated addresses of images")["image dropped: repeated in the data set"] == 13
    assert counts(tmp_path / "out", "words in addresses")["image dropped: excluded word in address"] == 6
    assert counts(tmp_path / "out", "images fetched")["image dropped: on the web"] == 7
    assert counts(tmp_path / "out", "near-duplicates")["dropped: near-duplicate"] == 1
    assert counts(tmp_path / "out", "write parquet") == {"kept": 12, "image kept": 12}
    report = (tmp_path / "out" / "report.html").read_text()
    assert "dropped: near-duplicate" in report and report.count("<img ") > 20


def test_warc_files_bring_their_own_images(tmp_path):
    pages = [
        (f"https://a.example/{number}.html", "text/html", page(number, f"{number}.png").encode())
        for number in range(3)
    ]
    images = [(f"https://a.example/{number}.png", "image/png", picture(number)) for number in range(2)]
    write_warc(tmp_path / "crawl" / "a.warc.gz", pages + images)
    rows = [{"html": page(7, "https://a.example/1.png"), "url": "https://b.example/7"}]
    write_pages_table(tmp_path / "crawl" / "pages.parquet", rows)
    found = build(tmp_path / "out", tmp_path / "crawl", format="webdataset")
    assert [(name, parts[1]) for name, parts in found] == [
        ("crawl/a.warc.gz/0 https://a.example/0.html", picture(0)),
        ("crawl/a.warc.gz/1 https://a.example/1.html", picture(1)),
        ("crawl/pages.parquet/0 https://b.example/7", picture(1)),
    ]
    assert counts(tmp_path / "out", "images fetched")["image dropped: on the web"] == 1


def test_any_number_of_tasks_gives_the_same_documents(tmp_path):
    site = write_site(tmp_path / "site")
    assert build(tmp_path / "one", site, tasks=1) == build(tmp_path / "five", site, tasks=5)
    first, second = ((tmp_path / name / "counts.json").read_text() for name in ("one", "five"))
    assert first == second


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_bytes(kills, tmp_path):
    site = write_site(tmp_path / "site")
    began = time.monotonic()
    straight = way.Settings((str(site),), str(tmp_path / "straight"))
    finish(way, straight, tasks=4, workers=1)
    seconds = time.monotonic() - began
    draw, hit, number = random.Random(0), 0, 0
    while hit < kills:
        killed = way.Settings((str(site),), str(tmp_path / f"killed-{number}"))
        hit += sum(kill_somewhere(way, killed, 4, 1, seconds, draw) for _ in range(2))
        finish(way, killed, tasks=4, workers=1)
        for folder in ("data", "work"):
            assert digests(tmp_path / f"killed-{number}" / folder) == digests(tmp_path / "straight" / folder)
        number += 1
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_worker_processes_write_the_same_bytes(tmp_path):
    site = write_site(tmp_path / "site")
    for workers in (1, 2):
        run_stages(
            way.stages(way.Settings((str(site),), str(tmp_path / str(workers)))),
            tmp_path / str(workers),
            tasks=4,
            workers=workers,
        )
    assert digests(tmp_path / "1" / "data") == digests(tmp_path / "2" / "data")
