"""Pages of text and documents whose images lie in one TIFF or PDF file."""

import struct

import pytest
from PIL import Image
from stand_ins import encoded, picture

from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.pdf_pages import MAX_PIXELS, pdf_page
from mm1_hf.data.tiff_frames import MAX_FRAMES, tiff_frames


def pixels(image: Image.Image) -> bytes:
    return image.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_the_frames_of_a_file_are_its_images(mode):
    images = [picture(index, 10 + index, 20).convert(mode) for index in range(5)]
    frames = tiff_frames(encoded(*images, kind="TIFF"), "here")
    assert [frame.size() for frame in frames] == [(20, 10 + index) for index in range(5)]
    assert [pixels(frame.load()) for frame in frames] == [pixels(image) for image in images]
    # A file of its own, whose first image is the frame.
    again = [ImagePart(frame.read()).load() for frame in frames]
    assert [pixels(image) for image in again] == [pixels(image) for image in images]


def test_frames_of_any_byte_order():
    """Written by hand, because Pillow writes the order of the machine alone: one grey pixel each."""
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
        # Width, height, bits, compression, kind, and the strip of pixels, which lie behind the head.
        content = mark + struct.pack(f"{order}I", 10) + bytes([40, 200])
        for index in range(2):
            short, long = 3, 4
            entries = [(256, short, 1), (257, short, 1), (258, short, 8), (259, short, 1), (262, short, 1)]
            entries += [(273, long, 8 + index), (278, short, 1), (279, long, 1)]
            content += struct.pack(f"{order}H", len(entries))
            for tag, kind, value in entries:
                field = struct.pack(f"{order}HH", value, 0) if kind == short else struct.pack(f"{order}I", value)
                content += struct.pack(f"{order}HHI", tag, kind, 1) + field
            content += struct.pack(f"{order}I", 0 if index else len(content) + 4)
        assert [frame.load().getpixel((0, 0)) for frame in tiff_frames(content, "here")] == [40, 200]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a TIFF file"),
        (b"II*\0", "not a TIFF file"),
        (b"II+\0\x08\0\0\0", "not a TIFF file"),
        (encoded(picture(0)), "not a TIFF file"),
        (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "of a circle"),
        (b"II*\0\xff\0\0\0", "ends in its list of images"),
        (b"II*\0\x08\0\0\0\xff\xff", "ends in its list of images"),
    ],
)
def test_broken_files_are_refused(content, message):
    with pytest.raises(Unusable, match=message):
        tiff_frames(content, "here")


def test_a_file_of_endless_images_is_refused():
    directories = b"".join(struct.pack("<HI", 0, 8 + 6 * (index + 1)) for index in range(MAX_FRAMES + 1))
    with pytest.raises(Unusable, match=f"more than {MAX_FRAMES} images"):
        tiff_frames(b"II*\0\x08\0\0\0" + directories, "here")


def test_mint1t_places_the_images_of_one_file():
    images = [picture(index, 10 + index, 9) for index in range(3)]
    record = {
        "json": {"texts": [None, "a", None, None, "b"], "images": ["x", None, "y", "z", None]},
        "tiff": {"bytes": encoded(*images, kind="TIFF"), "path": "0.tiff"},
    }
    document = LAYOUTS["mint1t"](record)
    assert [part if isinstance(part, str) else part.size()[1] for part in document.parts] == [10, "a", 11, 12, "b"]
    record["tiff"] = encoded(*images[:2], kind="TIFF")
    with pytest.raises(Unusable, match="3 images in the text, but 2 in the file"):
        LAYOUTS["mint1t"](record)
    assert LAYOUTS["mint1t"]({"json": {"texts": ["a"], "images": [None]}}).images == ()


def idl_record(texts: list) -> dict:
    images = [picture(index, 10 + index, 9) for index in range(len(texts))]
    return {
        "tif": encoded(*images, kind="TIFF"),
        "pdf": b"%PDF-",
        "ocr": b"",
        "json": {"pages": [{"text": lines} for lines in texts]},
    }


def test_idl_draws_one_page_with_text():
    texts = [["no"], [], None, ["A", "bus."], ["a page", "without an image"]]
    record = idl_record(texts)
    record["json"]["pages"].append({"text": ["more pages than images"]})
    drawn = {LAYOUTS["idl"](record | {"__key__": str(key)}).parts[1] for key in range(40)}
    assert drawn == {"no", "A\nbus.", "a page\nwithout an image"}
    for key in range(5):
        first, second = (LAYOUTS["idl"](record | {"__key__": str(key)}) for _ in range(2))
        assert first.parts[1] == second.parts[1] and first.kind == "caption"
        # The image is that of the same page.
        assert first.images[0].size()[1] == 10 + texts.index(first.parts[1].split("\n"))
    with pytest.raises(Unusable, match="no text"):
        LAYOUTS["idl"](idl_record([[], None]))


def test_pdfa_draws_a_page_when_it_is_loaded():
    content = encoded(picture(3, 50, 70), picture(4, 61, 33), kind="PDF")
    pages = [{"lines": {"text": []}, "images_bbox": [[0, 0, 1, 1]]}, {"lines": {"text": ["A", "bus."]}}]
    document = LAYOUTS["pdfa"]({"pdf": content, "json": {"pages": pages}})
    (image,) = document.images
    assert document.parts[1] == "A\nbus."
    loaded = image.load()
    assert (loaded.height, loaded.width) == image.size()
    assert loaded.width / loaded.height == pytest.approx(61 / 33, rel=0.05)
    assert ImagePart(image.read()).load().size == loaded.size


def test_pages_of_many_sizes_are_as_large_as_their_size_says():
    for width in range(40, 80):
        page = pdf_page(encoded(picture(0, width, 50), kind="PDF"), 0, "here")
        assert (page.load().height, page.load().width) == page.size()


def test_pdf_files_that_cannot_be_drawn_are_refused():
    pages = {"pages": [{"lines": {"text": ["A bus."]}}]}
    with pytest.raises(Unusable, match="corrupt PDF"):
        LAYOUTS["pdfa"]({"pdf": b"%PDF-1.4 nothing", "json": pages})
    side = int(MAX_PIXELS**0.5)
    huge = encoded(picture(0), kind="PDF").replace(b"/MediaBox", b"/MediaBox [ 0 0 %d %d ] /Old" % (side, side))
    with pytest.raises(Unusable, match="page too large"):
        LAYOUTS["pdfa"]({"pdf": huge, "json": pages})
