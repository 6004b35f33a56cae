"""Pages of PDF files: words with their places, and files that are hostile, broken or of no use."""

import io

import pytest
from pdf_files import Text, bomb, content, locked, pdf, stream_object
from PIL import Image, ImageChops

from mm1_hf.corpus.pages.page import Page
from mm1_hf.corpus.pages.pdf import PdfReader
from mm1_hf.data.documents import Unusable


HELLO = content([Text("Hello world", 72, 700, 20), Text("again", 72, 660, 20)])


@pytest.fixture(scope="module")
def reader():
    with PdfReader(842, cpu_seconds=2) as opened:
        yield opened


def read(reader: PdfReader, file: bytes | str) -> list[str]:
    """What became of each page: its text, or `!` and the reason."""
    found = [page for _, page in reader.pages(file, "a.pdf")]
    return [page.text if isinstance(page, Page) else f"!{page.reason}" for page in found]


def page_of(reader: PdfReader, file: bytes) -> Page:
    ((_, page),) = reader.pages(file, "a.pdf")
    assert isinstance(page, Page)
    return page


def ink(page: Page) -> Image.Image:
    return ImageChops.invert(Image.open(io.BytesIO(page.picture)).convert("L"))


def test_a_page_has_its_words_where_its_ink_is(reader, tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf([HELLO]))
    ((name, page),) = reader.pages(str(tmp_path / "a.pdf"), "a.pdf")
    assert (name, page.text, page.height, page.width) == ("a.pdf#1", "Hello world\nagain", 842, 595)
    # One point is one pixel. The baseline is 700 points from the lower edge.
    (hello, world), (again,) = (line.words for line in page.lines)
    assert hello.box.x1 == pytest.approx(72, abs=3) and hello.box.y2 == pytest.approx(142, abs=1)
    assert world.box.x1 > hello.box.x2 and again.box.y1 > hello.box.y2
    left, top, right, bottom = ink(page).getbbox()
    assert (left, top) == pytest.approx((hello.box.x1, hello.box.y1), abs=2.5)
    assert (right, bottom) == pytest.approx((world.box.x2, again.box.y2), abs=2.5)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_page_has_its_words_where_its_ink_is(reader, turn):
    page = page_of(reader, pdf([HELLO], page_entries=f"/Rotate {turn}"))
    assert page.text == "Hello world\nagain"
    assert (page.height, page.width) == ((842, 595) if turn == 180 else (595, 842))
    boxes = [word.box for line in page.lines for word in line.words]
    around = (min(b.x1 for b in boxes), min(b.y1 for b in boxes), max(b.x2 for b in boxes), max(b.y2 for b in boxes))
    assert ink(page).getbbox() == pytest.approx(around, abs=2.5)


def test_a_cropped_page_has_the_words_that_are_left(reader):
    page = page_of(reader, pdf([HELLO], page_entries="/CropBox [60 690 300 780]"))
    assert page.text == "Hello world" and page.width == 842


def test_words_across_the_page_follow_those_along_it(reader):
    upright = content([Text(f"line {index}", 72, 700 - 20 * index) for index in range(4)])
    page = page_of(reader, pdf([upright + b"\nBT /F1 10 Tf 0 1 -1 0 40 300 Tm (label of an axis) Tj ET"]))
    assert page.text == "line 0\nline 1\nline 2\nline 3\nlabel of an axis"
    box = page.lines[-1].box
    assert box.y2 - box.y1 > box.x2 - box.x1


def test_two_columns_of_a_real_file(reader):
    left = [f"left column line {index} with enough words" for index in range(12)]
    right = [line.replace("left", "right") for line in left]
    texts = [Text("A title over both of the columns", 150, 780, 18)]
    texts += [Text(line, 60, 730 - 14 * index) for index, line in enumerate(left)]
    texts += [Text(line, 320, 737 - 14 * index) for index, line in enumerate(right)]
    assert page_of(reader, pdf([content(texts)])).text.splitlines() == [
        "A title over both of the columns",
        *left,
        *right,
    ]


@pytest.mark.parametrize(
    ("file", "found"),
    [
        (b"", ["!broken PDF"]),
        (b"%PDF-1.7 nonsense", ["!broken PDF"]),
        (pdf([HELLO])[:300], ["!broken PDF"]),
        (locked(), ["!encrypted"]),
        (pdf([]), ["!broken PDF"]),
        (pdf([b"10 10 100 100 re f"]), ["!no text layer"]),
        (pdf([b"q", HELLO]), ["!no text layer", "Hello world\nagain"]),
        (pdf([content([Text("unseen", 72, 700)], "3 Tr")]), ["!text layer is not visible"]),
        (pdf([content([Text("white", 72, 700)], "1 1 1 rg")]), ["!text layer is not visible"]),
        (pdf([content([Text("far away", 2000, 700)])]), ["!text layer is not visible"]),
        (pdf([HELLO], size=(2000, 100)), ["!shape of the page"]),
        (pdf([HELLO], size=(8000, 8000)), ["!text too small"]),
        (pdf([HELLO], size=(1e6, 1e6)), ["!text layer is not visible"]),
        (pdf([HELLO], size=(0, 0)), ["Hello world\nagain"]),
        (pdf([content([Text("x " * 40_000, 10, 700, 1)])]), ["!too much text"]),
    ],
    ids=lambda value: None if isinstance(value, bytes) else " ".join(value)[:30],
)
def test_pages_without_use_are_told_by_their_reason(reader, file, found):
    assert read(reader, file) == found


def test_letters_without_a_meaning_are_told():
    """A font whose letters stand for characters of the private area, as those of symbols."""
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 1000 0 R >>"
    meanings = (
        b"/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <ff> endcodespacerange "
        b"1 beginbfrange <00> <ff> <e000> endbfrange endcmap end"
    )
    with PdfReader(842) as reader:
        assert read(reader, pdf([HELLO], objects={3: font, 1000: stream_object(meanings)})) == ["!unknown characters"]


def test_a_page_that_takes_too_long_ends_its_document_alone(reader):
    assert read(reader, bomb()) == ["!page too costly"]
    assert read(reader, pdf([HELLO])) == ["Hello world\nagain"]


def test_a_picture_that_needs_too_much_memory_does_no_harm():
    huge = stream_object(
        bytes(1 << 20),
        "/Type /XObject /Subtype /Image /Width 60000 /Height 60000 /ColorSpace /DeviceRGB /BitsPerComponent 8",
    )
    file = pdf([HELLO + b"\n595 0 0 842 0 0 cm /X0 Do"], objects={1000: huge})
    with PdfReader(842, memory_bytes=1 << 29) as reader:
        (found,) = read(reader, file)
        assert found == "Hello world\nagain" or found.startswith("!")
        assert read(reader, pdf([HELLO])) == ["Hello world\nagain"]


def test_the_next_document_does_not_get_the_pages_of_one_that_was_left(reader):
    pages = reader.pages(pdf([HELLO] * 5), "first.pdf")
    assert next(pages)[0] == "first.pdf#1"
    pages.close()
    assert read(reader, pdf([content([Text("other", 72, 700)])])) == ["other"]


def test_a_process_that_cannot_start_is_no_fault_of_a_document():
    with PdfReader(842, memory_bytes=1 << 70) as reader, pytest.raises(RuntimeError, match="does not start"):
        next(reader.pages(pdf([HELLO]), "a.pdf"))


def test_reasons_name_no_page_twice(reader):
    ((name, why),) = reader.pages(b"", "a.pdf")
    assert name == "a.pdf" and isinstance(why, Unusable)
