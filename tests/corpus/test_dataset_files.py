import json
import tarfile

import pytest
from datasets import Features, Value
from datatrove.data import Document as EngineDocument
from web_pages import picture

from mm1_hf.corpus import dataset_files
from mm1_hf.corpus.bridge import to_engine
from mm1_hf.corpus.dataset_files import (
    CAPTION_FEATURES,
    TEXT_FEATURES,
    WriteDataset,
    caption_record,
    sample_files,
    text_record,
)
from mm1_hf.data.documents import Document, ImagePart, Unusable
from mm1_hf.data.layouts import LAYOUTS, documents
from mm1_hf.data.readers import read


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def page(number: int) -> Document:
    parts = (f"before {number}", ImagePart(picture(number)), "between", ImagePart(picture(number + 1)), "after")
    return Document("interleaved", parts, f"page {number}")


def contents(folder, layout: str) -> list:
    found = [LAYOUTS[layout](record) for record in read(folder, layout)]
    return [
        (each.kind, [part.read() if isinstance(part, ImagePart) else part for part in each.parts]) for each in found
    ]


def expected(*pages: Document) -> list:
    return [
        (each.kind, [part.read() if isinstance(part, ImagePart) else part for part in each.parts]) for each in pages
    ]


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_documents_are_read_as_they_were_written(format, tmp_path, monkeypatch):
    # A shard after every second document.
    monkeypatch.setattr(dataset_files, "_SHARD_BYTES", 700)
    pages = [page(number) for number in range(5)]
    assert len(list(WriteDataset(tmp_path, format).run(map(to_engine, pages), rank=7))) == 5
    extension = {"parquet": "parquet", "webdataset": "tar"}[format]
    assert len(list(tmp_path.glob(f"00007-00?.{extension}"))) == len(list(tmp_path.iterdir())) > 1
    assert contents(tmp_path, "documents") == expected(*pages)


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_texts_and_captions_too(format, tmp_path):
    texts = [EngineDocument("first", "a"), EngineDocument("second\n\nline", "b")]
    list(WriteDataset(tmp_path / "text", format, text_record, TEXT_FEATURES).run(texts))
    assert contents(tmp_path / "text", "text") == [("text", ["first"]), ("text", ["second\n\nline"])]
    caption = Document("caption", (ImagePart(picture(3)), "a whale"), "c")
    list(WriteDataset(tmp_path / "captions", format, caption_record, CAPTION_FEATURES).run([to_engine(caption)]))
    assert contents(tmp_path / "captions", "caption") == expected(caption)


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_the_same_documents_give_the_same_bytes(format, tmp_path):
    for folder in ("a", "b"):
        list(WriteDataset(tmp_path / folder, format).run([to_engine(page(1)), to_engine(page(2))]))
    (first,), (second,) = ((tmp_path / folder).iterdir() for folder in ("a", "b"))
    assert first.name == second.name and first.read_bytes() == second.read_bytes()


def test_no_documents_leave_no_shard(tmp_path):
    assert not list(WriteDataset(tmp_path).run([]))
    assert not list(tmp_path.iterdir())


def test_a_document_that_is_no_record_is_counted(tmp_path):
    step = WriteDataset(tmp_path, record=caption_record, features=CAPTION_FEATURES)
    missing = Document("caption", (ImagePart("/no/such/file.png"), "x"), "missing")
    two = Document("caption", (ImagePart(picture(1)), ImagePart(picture(2)), "x"), "two")
    assert not list(step.run([to_engine(missing), to_engine(two)]))
    assert {label: value.total for label, value in step.stats.stats.items()} == {
        "dropped: missing file": 1,
        "dropped: unreadable record (ValueError)": 1,
    }


def test_a_failure_of_the_disk_ends_the_task(tmp_path):
    (tmp_path / "data").write_text("a file in the place of the folder")
    with pytest.raises(OSError):
        list(WriteDataset(tmp_path / "data").run([to_engine(page(1))]))


def test_a_sample_has_a_file_for_each_image():
    record = {"image": {"bytes": picture(1), "path": None}, "text": "a whale", "boxes": [[1, 2]], "name": "n"}
    files = sample_files(record)
    assert set(files) == {"json", "png", "txt"}
    assert json.loads(files["json"]) == {"boxes": [[1, 2]], "name": "n"}


def test_addresses_stay_addresses():
    record = dataset_files.document_record(
        to_engine(Document("interleaved", ("a", ImagePart("https://a.example/x.png")), "n"))
    )
    assert json.loads(sample_files(record)["json"])["parts"] == [{"text": "a"}, {"image": "https://a.example/x.png"}]


def sample(content: dict, **files: bytes) -> dict:
    return {"__folder__": "/data", "__key__": "k", "json": content, **files}


def test_a_sample_may_not_lose_an_image_or_choose_its_folder():
    parts = [{"text": "a"}, {"image": "0.png"}]
    with pytest.raises(Unusable, match=r"no part of the document names 1\.png"):
        documents(sample({"parts": parts}, **{"0.png": picture(1), "1.png": picture(2)}))
    with pytest.raises(Unusable, match="outside of the data's folder"):
        documents(sample({"parts": [{"text": "a"}, {"image": "../etc/x.png"}], "__folder__": "/"}))
    # What names no file of the sample is a path below the folder of the data.
    found = documents(sample({"parts": [{"text": "a"}, {"image": "x.png"}]}))
    assert found.images[0].source == "/data/x.png"


def test_archives_hold_no_times_and_no_owners(tmp_path):
    list(WriteDataset(tmp_path, "webdataset").run([to_engine(page(1))]))
    with tarfile.open(tmp_path / "00000-000.tar") as archive:
        members = archive.getmembers()
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}
        assert [member.name for member in members] == [f"00000-00000000.{end}" for end in ("json", "0.png", "1.png")]


def test_other_layouts_give_their_own_columns(tmp_path):
    features = Features({"text": Value("string"), "words": Value("int64")})

    def record(document: EngineDocument) -> dict:
        return {"text": document.text, "words": len(document.text.split())}

    list(WriteDataset(tmp_path, record=record, features=features).run([EngineDocument("a b c", "x")]))
    (found,) = read(tmp_path, "text")
    assert (found["text"], found["words"]) == ("a b c", 3)
