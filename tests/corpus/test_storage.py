import pytest
from datatrove.data import Document as EngineDocument
from web_pages import picture

from mm1_hf.corpus import storage
from mm1_hf.corpus.atomic import remove_partial_files, whole_file
from mm1_hf.corpus.bridge import from_engine, to_engine
from mm1_hf.corpus.storage import ReadDocuments, WriteDocuments
from mm1_hf.data.documents import Document, ImagePart


def pages(number: int) -> list[EngineDocument]:
    made = []
    for index in range(number):
        parts = (f"before {index}", ImagePart(picture(index)), "after", ImagePart(f"https://a.example/{index}.png"))
        page = to_engine(Document("interleaved", parts, f"page {index}"))
        page.metadata["own"] = {"list": [1, "two", None]}
        made.append(page)
    return [*made, EngineDocument("only text", "text")]


def test_documents_come_back_with_everything_they_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_GROUP_DOCUMENTS", 2)
    assert list(WriteDocuments(tmp_path).run(pages(4), rank=3)) == pages(4)
    assert [file.name for file in tmp_path.iterdir()] == ["00003.parquet"]
    found = list(ReadDocuments(tmp_path).run())
    assert found == pages(4)
    assert from_engine(found[0]) == from_engine(pages(1)[0])


def test_images_may_stay_unread(tmp_path):
    list(WriteDocuments(tmp_path).run(pages(2)))
    found = list(ReadDocuments(tmp_path, images=False).run())
    assert [[medium.media_bytes for medium in page.media] for page in found] == [[None, None], [None, None], []]
    assert [medium.url for medium in found[1].media] == ["", "https://a.example/1.png"]
    assert [page.text for page in found] == [page.text for page in pages(2)]


def test_tasks_share_the_files(tmp_path):
    for rank in range(5):
        list(WriteDocuments(tmp_path).run([EngineDocument(str(rank), str(rank))], rank))
    read = [[page.id for page in ReadDocuments(tmp_path).run(rank=rank, world_size=2)] for rank in range(2)]
    assert read == [["0", "2", "4"], ["1", "3"]]


def test_the_same_documents_give_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        list(WriteDocuments(tmp_path / folder).run(pages(3)))
    first, second = ((tmp_path / folder / "00000.parquet").read_bytes() for folder in ("a", "b"))
    assert first == second


def test_a_broken_step_leaves_no_file(tmp_path):
    def broken():
        yield from pages(1)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        list(WriteDocuments(tmp_path).run(broken()))
    assert not list(tmp_path.iterdir())


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with whole_file(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_what_killed_processes_left_is_removed(tmp_path):
    (tmp_path / "a").mkdir()
    with whole_file(tmp_path / "a" / "x") as partial:
        partial.write_text("x")
        left = partial.with_name(partial.name.replace("x", "y", 1))
        left.write_text("killed")
    assert remove_partial_files(tmp_path) == 1
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["x"]
    assert remove_partial_files(tmp_path / "nowhere") == 0
