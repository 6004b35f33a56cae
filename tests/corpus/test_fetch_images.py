import gzip
import io

import pytest
from engine_documents import counts, document, passed
from image_server import image_server, picture
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from mm1_hf.corpus import fetch_images
from mm1_hf.corpus.downloads import DownloadRules
from mm1_hf.corpus.fetch_images import FetchImages
from mm1_hf.corpus.filters import PageRules
from mm1_hf.corpus.image_steps import AtLeastOneImage, FirstOnPage, NumberOfImages, SizeOfImages, WordsInAddresses
from mm1_hf.corpus.warc_images import IndexWarcImages
from mm1_hf.model import fetching


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def allowed(monkeypatch):
    monkeypatch.setattr(fetching, "ALLOWED_HOSTS", {"127.0.0.1"})


def contents(documents) -> list[list[bytes]]:
    return [[image.media_bytes for image in page.media] for page in documents]


def test_images_come_from_where_they_are(tmp_path, allowed):
    path = tmp_path / "a.png"
    path.write_bytes(picture(3))
    with image_server() as (server, _):
        pages = [
            document("a", "a", f"{server}/image/1.png", f"{server}/none", str(path), "data:image/png;base64,aGFsbG8="),
            document("b", "b", f"{server}/image/2.png", b"there", str(tmp_path / "none.png")),
            document("c", "c"),
        ]
        step = FetchImages(tmp_path / "locks", DownloadRules(pause=0))
        found = passed(step, pages)
    assert [page.id for page in found] == ["a", "b", "c"]
    assert contents(found) == [[picture(1), picture(3), b"hallo"], [picture(2), b"there"], []]
    assert counts(step) == {
        "kept": 3,
        "image kept": 5,
        "bytes fetched": sum(len(picture(seed)) for seed in (1, 2, 3)) + 5,
        "image dropped: HTTP status 404": 1,
        "image dropped: missing file": 1,
    }


def test_without_rules_nothing_is_downloaded(tmp_path, allowed):
    with image_server() as (server, seen):
        step = FetchImages(tmp_path)
        assert contents(passed(step, [document("a", "a", f"{server}/image/1.png")])) == [[]]
    assert not seen.asked
    assert counts(step)["image dropped: on the web"] == 1


def test_this_machine_is_not_asked(tmp_path):
    with image_server() as (server, seen):
        step = FetchImages(tmp_path, DownloadRules(pause=0))
        passed(
            step, [document("a", "a", f"{server}/image/1.png", "http://169.254.169.254/x.png", "http://[::1]/x.png")]
        )
    assert not seen.asked
    assert counts(step)["image dropped: address not public"] == 3


def test_images_of_one_document_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_images, "MAX_DOCUMENT_BYTES", 5)
    for name, size in (("a", 4), ("b", 4), ("c", 4), ("empty", 0)):
        (tmp_path / name).write_bytes(bytes(size))
    step = FetchImages(tmp_path / "locks")
    found = passed(step, [document("a", "", *(str(tmp_path / name) for name in ("empty", "a", "b", "c")))])
    assert contents(found) == [[bytes(4)] * 2]
    assert counts(step)["image dropped: too large together"] == counts(step)["image dropped: empty file"] == 1


def write_warc(path, records, compressed: bool = True) -> None:
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=compressed)
        for url, kind, status, content in records:
            headers = StatusAndHeaders(f"{status} X", [("Content-Type", kind)], protocol="HTTP/1.0")
            writer.write_record(
                writer.create_warc_record(url, "response", payload=io.BytesIO(content), http_headers=headers)
            )


def test_images_of_warc_files(tmp_path):
    a, b, broken = (str(tmp_path / name) for name in ("a.warc.gz", "b.warc", "c.warc.gz"))
    write_warc(a, [
        ("https://a.example/page", "text/html", 200, b"<html>"),
        ("https://a.example/1.png", "image/png", 200, picture(1)),
        ("https://a.example/gone.png", "image/png", 404, b""),
        ("https://a.example/large.png", "image/png", 200, bytes(10**6)),
    ])  # fmt: skip
    write_warc(b, [("https://b.example/2.png", "image/jpeg", 200, picture(2))], compressed=False)
    (tmp_path / "c.warc.gz").write_bytes(gzip.compress(b"WARC/1.0\r\nWARC-Type: response\r\n")[:-9])
    steps = [IndexWarcImages([a, b, broken], tmp_path / "index") for _ in range(2)]
    for rank, step in enumerate(steps):
        assert passed(step, [], rank, 2) == []
    assert counts(steps[0]) == {"images": 2, "dropped: HTTP status 404": 1, "broken files": 1}
    step = FetchImages(tmp_path / "locks", DownloadRules(max_bytes=100_000), tmp_path / "index")
    # Offline, so that whatever is not in the files is counted as such.
    urls = [
        "https://a.example/1.png#x",
        "https://b.example/2.png",
        "https://a.example/gone.png",
        "https://a.example/large.png",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        found = passed(step, [document("a", "a", *urls)])
    assert contents(found) == [[picture(1), picture(2)]]
    assert counts(step)["image dropped: offline"] == counts(step)["image dropped: too large"] == 1


def test_hostile_files_are_counted(tmp_path):
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (10**5).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0\0\0\0\0"
    lies = picture(1)[:16] + (60_000).to_bytes(4, "big") + picture(1)[20:]
    step = SizeOfImages(PageRules())
    page = document("a", "a", bomb, lies, picture(1)[:-500], b"<html>", b"", b"%!PS-Adobe", picture(2), picture(3, 99))
    found = passed(step, [page])
    assert contents(found) == [[picture(2)]]
    assert counts(step) == {
        "kept": 1,
        "image kept": 1,
        "image dropped: corrupt image": 6,
        "image dropped: size": 1,
    }


def test_rules_of_pages():
    pages = [document("none", "a"), document("many", "a", *[b"x"] * 31), document("some", "a", *[b"x"] * 30)]
    step = NumberOfImages()
    assert [page.id for page in passed(step, pages)] == ["some"]
    assert counts(step)["dropped: no image"] == counts(step)["dropped: more than 30 images"] == 1
    step = FirstOnPage()
    page = document("a", "a", b"x", b"y", b"x", "https://a.example/1", "https://a.example/1")
    assert len(passed(step, [page])[0].media) == 3
    assert counts(step)["image dropped: repeated on its page"] == 2
    step = WordsInAddresses()
    page = document(
        "a", "a", "https://a.example/logos/1.png", "/widgets/1.png", "/a/Icon.png", "data:image/png;base64,logo"
    )
    assert [image.id for image in passed(step, [page])[0].media] == ["1", "3"]
    step = AtLeastOneImage()
    assert [page.id for page in passed(step, [document("a", "a"), document("b", "b", b"x")])] == ["b"]
    assert counts(step)["dropped: no image left"] == 1
