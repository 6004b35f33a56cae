import hashlib
import io
from collections import Counter

import pytest
from PIL import Image

from mm1_hf.corpus.filters import ImageRepeats, PageRules, filter_page
from mm1_hf.data.documents import Document, ImagePart


def png(width: int = 200, height: int = 200, grey: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), grey).save(file, "PNG")
    return file.getvalue()


def page(*parts: str | bytes) -> Document:
    """Bytes, absolute paths and URLs are images."""
    is_image = [isinstance(part, bytes) or part.startswith(("/", "https://")) for part in parts]
    found = (ImagePart(part) if image else part for part, image in zip(parts, is_image, strict=True))
    return Document("interleaved", tuple(found), "here")


def kept(document: Document, repeats: ImageRepeats | None = None, **rules) -> tuple[Document | None, Counter]:
    counts = Counter()
    return filter_page(document, repeats or ImageRepeats(), counts, PageRules(**rules)), counts


@pytest.mark.parametrize(
    ("width", "height", "why"),
    [
        # A side of 100 and an aspect ratio of 2 may still be.
        (100, 100, None),
        (200, 100, None),
        (100, 200, None),
        (99, 100, "size"),
        (100, 99, "size"),
        (201, 100, "aspect ratio"),
        (100, 201, "aspect ratio"),
        (10_000, 5000, None),
        (10_001, 5001, "size"),
    ],
)
def test_sizes(width, height, why):
    found, counts = kept(page("a", png(width, height)))
    assert counts == ({"page": 1, "image": 1} if why is None else {f"image: {why}": 1, "page: no image kept": 1})
    assert (found is None) == (why is not None)


def test_broken_and_missing_images_are_left_out_by_what_is_wrong(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png())
    header_only = png()[:-40]
    found, counts = kept(page("a", b"none", "b", str(path), "c", header_only, "d", str(tmp_path / "no.png")))
    assert found == page("ab", str(path), "cd")
    assert counts == {"image: corrupt image": 2, "image: missing file": 1, "image": 1, "page": 1}


@pytest.mark.parametrize(
    ("source", "is_kept"),
    [
        ("whale.png", True),
        ("site-LOGO.png", False),
        ("buttons.png", False),
        ("favicon.png", False),
        ("plugin.png", False),
        ("widget.png", False),
        # A folder of the machine says nothing about a picture.
        ("plugins/whale.png", True),
    ],
)
def test_words_in_addresses(source, is_kept, tmp_path):
    path = tmp_path / source
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(png())
    found, counts = kept(page("a", str(path)))
    assert (found is not None) == is_kept
    assert is_kept or counts["image: excluded word in address"] == 1


def test_words_anywhere_in_a_url(monkeypatch):
    monkeypatch.setattr("mm1_hf.data.documents.fetch_url", lambda url: png(grey=len(url)))
    found, counts = kept(page("a", "https://a.example/widgets/b.png", "b", "https://a.example/b.png"))
    assert found == page("ab", "https://a.example/b.png")
    assert counts["image: excluded word in address"] == 1


@pytest.mark.parametrize(("number", "is_kept"), [(0, False), (1, True), (30, True), (31, False)])
def test_pages_have_one_image_at_least_and_thirty_at_most(number, is_kept):
    found, counts = kept(page("a", *(png(grey=index) for index in range(number))))
    if is_kept:
        assert len(found.images) == number
        assert counts == {"page": 1, "image": number}
    else:
        assert found is None
        assert counts == {"page: no image" if number == 0 else "page: more than 30 images": 1}


def test_of_an_image_that_repeats_on_its_page_the_first_stays(tmp_path):
    for name, grey in (("a", 0), ("same", 0), ("b", 9)):
        (tmp_path / f"{name}.png").write_bytes(png(grey=grey))
    a, same, b = (str(tmp_path / f"{name}.png") for name in ("a", "same", "b"))
    found, counts = kept(page("1", a, "2", b, "3", a, "4", same, "5"))
    assert found == page("1", a, "2", b, "345")
    assert counts == {"page": 1, "image": 2, "image: repeated on its page": 2}


@pytest.mark.parametrize(("pages", "is_kept"), [(10, True), (11, False)])
@pytest.mark.parametrize("same", ["file", "address"])
def test_an_image_of_more_than_ten_pages_is_left_out(pages, is_kept, same, tmp_path, monkeypatch):
    fetched = iter(range(10**6))
    # A counter's page: one address, every time another picture.
    monkeypatch.setattr("mm1_hf.data.documents.fetch_url", lambda _: png(grey=next(fetched) % 200))
    documents = []
    for index in range(pages):
        path = tmp_path / f"{index}.png"
        path.write_bytes(png(grey=250))
        documents.append(page("a", str(path) if same == "file" else "https://a.example/x.png", f"page {index}"))
    repeats = ImageRepeats()
    for document in documents:
        # Twice on a page is one page.
        repeats.add(Document("interleaved", document.parts * 2, "here"))
    found = [kept(document, repeats) for document in documents]
    assert [document is not None for document, _ in found] == [is_kept] * pages
    assert is_kept or all(counts["image: repeated in the data set"] == 1 for _, counts in found)


def test_repeats_are_told_by_md5():
    repeats = ImageRepeats()
    repeats.add(page("a", png()))
    assert repeats._pages == {hashlib.md5(png()).digest(): 1}
