import io

import pytest
from PIL import Image

from mm1_hf.corpus.filters import PageRules, address_fault, image_fault, page_fault
from mm1_hf.data.documents import ImagePart


RULES = PageRules()


def png(width: int = 200, height: int = 200, grey: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), grey).save(file, "PNG")
    return file.getvalue()


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
    assert image_fault(ImagePart(png(width, height)), RULES) == why


def test_broken_and_missing_images(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png())
    assert image_fault(ImagePart(str(path)), RULES) is None
    assert image_fault(ImagePart(str(tmp_path / "no.png")), RULES) == "missing file"
    header_only = png()[:-40]
    assert {image_fault(ImagePart(content), RULES) for content in (b"none", b"", header_only)} == {"corrupt image"}


@pytest.mark.parametrize(
    ("address", "is_kept"),
    [
        ("", True),
        ("/a/whale.png", True),
        ("/a/site-LOGO.png", False),
        ("/a/buttons.png", False),
        ("/a/favicon.png", False),
        ("/a/plugin.png", False),
        ("/a/widget.png", False),
        # A folder of the machine says nothing about a picture, a folder of a site does.
        ("/plugins/whale.png", True),
        ("https://a.example/plugins/whale.png", False),
        ("https://a.example/whale.png", True),
    ],
)
def test_words_in_addresses(address, is_kept):
    assert address_fault(address, RULES) == (None if is_kept else "excluded word in address")


@pytest.mark.parametrize(
    ("images", "why"),
    [(0, "no image"), (1, None), (30, None), (31, "more than 30 images"), (10**6, "more than 30 images")],
)
def test_pages_have_one_image_at_least_and_thirty_at_most(images, why):
    assert page_fault(images, RULES) == why
