"""
Draws the pages of PDF files, and finds their words. A program of its own, which `mm1_hf.corpus.pages.pdf` runs: a file that
makes the PDF library crash, or take too long or too much memory, then ends this process and no other.

    python pdf_process.py LONGEST_SIDE CPU_SECONDS MEMORY_BYTES

It imports neither the package nor anything large, so that it starts at once and its memory is the file's. It reads
requests from the standard input: a line of JSON with the `path` of a file, or with the `size` of a file whose bytes follow.
It answers on the standard output with messages: four bytes with the length of a header, the header as JSON, and a picture as
a PNG file if the header says how many bytes it has (`picture`). The first message says that the program is ready. A file is
answered by a message for each page, or for each reason why there is none, and a last one, `end`.
"""

import ctypes
import io
import json
import math
import os
import resource
import statistics
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import pypdfium2
import pypdfium2.raw as pdfium
from PIL import Image


# What a single page of text cannot have. They bound the time that finding the reading order takes.
MOST_PAGES = 5000
MOST_CHARACTERS = 60_000
MOST_WORDS = 8_000
# Narrower pages are strips that no reader would call a page.
LARGEST_ASPECT = 4.0
# Above this share of characters that the document names no letter for, the text of a page is not what it shows.
LARGEST_UNKNOWN_SHARE = 0.1
# The height of a word's letters in pixels, below which nobody can read it.
SMALLEST_HEIGHT = 4.0
# Difference of grey levels between ink and paper, of 255, below which a word cannot be seen.
SMALLEST_CONTRAST = 24

# The turn of words that are written neither along nor across the page.
SKEWED = 4

_PRECISION = 1000
# As a share of a quarter turn.
_LARGEST_SKEW = 0.1
# Gaps between letters, in heights of the taller one, above which they belong to different words.
_LARGEST_GAP = 0.8
# What the library writes for a hyphen at the end of a line.
_HYPHEN = 2
# Characters that choose a form of the one before, and have no ink of their own.
_VARIATIONS = range(0xFE00, 0xFE10)


class Refused(Exception):  # noqa: N818 (the name describes a page, not an error of the program)
    """
    A page or a document that cannot be used.

    Args:
        reason: the kind of problem in a few words.
        detail: what exactly is wrong.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


# Left, upper, right and lower side, in pixels of a picture.
PixelBox = tuple[float, float, float, float]


class _Word(NamedTuple):
    """A letter or a word: its box in pixels of the picture, and the quarter turns to the right that it is written with."""

    text: str
    box: PixelBox
    turn: int


def upright(box: PixelBox, turn: int) -> PixelBox:
    """
    A box as it lies on the page when the page is turned so that its words run from left to right.

    Args:
        box: left, upper, right and lower side.
        turn: quarter turns to the right that the words are written with; `SKEWED` words are left as they are.
    """
    left, top, right, bottom = box
    if turn == 1:
        return top, -right, bottom, -left
    if turn == 2:
        return -right, -bottom, -left, -top
    if turn == 3:
        return -bottom, left, -top, right
    return box


class _Frame(NamedTuple):
    """Converts positions on a page to pixels of its picture, as the PDF library draws it: turned and cropped."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    def box(self, left: float, bottom: float, right: float, top: float) -> PixelBox:
        xs = [self.a * x + self.c * y + self.e for x in (left, right) for y in (bottom, top)]
        ys = [self.b * x + self.d * y + self.f for x in (left, right) for y in (bottom, top)]
        return min(xs), min(ys), max(xs), max(ys)

    def turn(self, x: float, y: float) -> int:
        """The quarter turns to the right of a direction of writing, or `SKEWED`."""
        angle = math.degrees(math.atan2(self.b * x + self.d * y, self.a * x + self.c * y)) / 90
        turn = round(angle)
        return turn % 4 if abs(angle - turn) < _LARGEST_SKEW else SKEWED


def main(arguments: list[str]) -> None:
    """
    Answers requests until there are no more.

    Args:
        arguments: those of the command.
    """
    longest_side, cpu_seconds, memory = map(int, arguments)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What a library prints must not come between the messages.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    _send(answers, {"ready": True})
    while line := requests.readline():
        _grant(cpu_seconds)
        request = json.loads(line)
        source = request["path"] if "path" in request else requests.read(request["size"])
        try:
            document = _Document(source)
            for index in range(document.number):
                if index == MOST_PAGES:
                    raise Refused("too many pages", f"{document.number} pages, of which {MOST_PAGES} are read")
                _grant(cpu_seconds)
                _send(answers, *_answer(document, index, longest_side))
            document.close()
        except Refused as refused:
            _send(answers, {"reason": refused.reason, "detail": refused.detail})
        except Exception as error:
            _send(answers, {"reason": f"broken file ({type(error).__name__})", "detail": str(error)})
        _send(answers, {"end": True})


def _grant(seconds: int) -> None:
    """Lets the process run for this time from now on. The system ends it when the time is over."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, resource.RLIM_INFINITY))


def _answer(document: "_Document", index: int, longest_side: int) -> tuple[dict[str, Any], bytes]:
    """The header and the picture for one page. Broken files raise exceptions of nearly any type."""
    try:
        picture, words = document.page(index, longest_side)
    except Refused as refused:
        return {"page": index, "reason": refused.reason, "detail": refused.detail}, b""
    except MemoryError:
        return {"page": index, "reason": "page too costly", "detail": "it needs too much memory"}, b""
    except Exception as error:
        return {"page": index, "reason": f"broken page ({type(error).__name__})", "detail": str(error)}, b""
    return {"page": index, "width": picture.width, "height": picture.height, "words": words}, png(picture)


def _send(answers: BinaryIO, header: dict[str, Any], picture: bytes = b"") -> None:
    content = json.dumps(header | {"picture": len(picture)}).encode()
    answers.write(len(content).to_bytes(4, "big") + content + picture)
    answers.flush()


class _Document:
    """A PDF file with a text layer."""

    def __init__(self, source: str | bytes) -> None:
        # The library may leave its last error as it was: that of an encrypted document before this one, say. No bytes at all
        # make it say that the format is wrong.
        pdfium.FPDF_LoadMemDocument(b"", 0, None)
        try:
            self._document = pypdfium2.PdfDocument(source)
            self.number = len(self._document)
        except pypdfium2.PdfiumError as error:
            if error.err_code == pdfium.FPDF_ERR_PASSWORD:
                raise Refused("encrypted") from error
            raise Refused("broken PDF", str(error)) from error
        if not self.number:
            raise Refused("no pages")

    def page(self, index: int, longest_side: int) -> tuple[Image.Image, list[_Word]]:
        page = self._document[index]
        try:
            width, height = page.get_size()
            # The sizes of a broken page may be no numbers.
            if not (width > 0 and height > 0 and max(width, height) <= LARGEST_ASPECT * min(width, height)):
                raise Refused("shape of the page", f"{width:g} x {height:g} points")
            text = page.get_textpage()
            number = text.count_chars()
            if number <= 0:
                raise Refused("no text layer")
            if number > MOST_CHARACTERS:
                raise Refused("too much text", f"{number} characters")
            picture = page.render(scale=longest_side / max(width, height), rev_byteorder=True).to_pil().convert("RGB")
            words = list(_words(text, _frame(page, *picture.size)))
        finally:
            # Its text is closed with it.
            page.close()
        if len(words) > MOST_WORDS:
            raise Refused("too much text", f"{len(words)} words")
        words = _visible(words, picture)
        if not words:
            raise Refused("text layer is not visible")
        # A table of contents has more dots than letters.
        lettered = [upright(word.box, word.turn) for word in words if any(map(str.isalnum, word.text))]
        height = statistics.median(bottom - top for _, top, _, bottom in lettered) if lettered else 0.0
        if height < SMALLEST_HEIGHT:
            raise Refused("text too small", f"letters of {height:.1f} pixels")
        return picture, words

    def close(self) -> None:
        self._document.close()


def _frame(page: pypdfium2.PdfPage, width: int, height: int) -> _Frame:
    """Asks the library where it draws three points. It answers in whole pixels, so it is asked about a larger picture."""

    def place(x: float, y: float) -> tuple[float, float]:
        right, down = ctypes.c_int(), ctypes.c_int()
        pdfium.FPDF_PageToDevice(
            page, 0, 0, width * _PRECISION, height * _PRECISION, 0, x, y, ctypes.byref(right), ctypes.byref(down)
        )
        return right.value / _PRECISION, down.value / _PRECISION

    # Points far apart, so that rounding does not matter.
    step = max(page.get_size())
    (e, f), (ax, ay), (cx, cy) = place(0, 0), place(step, 0), place(0, step)
    return _Frame((ax - e) / step, (ay - f) / step, (cx - e) / step, (cy - f) / step, e, f)


def _words(text: pypdfium2.PdfTextPage, frame: _Frame) -> Iterator[_Word]:
    """The words of a page in the order in which it stores them."""
    letters: list[_Word] = []
    for letter in [*_letters(text, frame), None]:
        if letters and (letter is None or not _continues(letters[-1], letter)):
            boxes = [letter.box for letter in letters]
            lefts, tops, rights, bottoms = zip(*boxes, strict=True)
            box = (min(lefts), min(tops), max(rights), max(bottoms))
            yield _Word("".join(letter.text for letter in letters), box, letters[0].turn)
            letters = []
        if letter is not None:
            letters.append(letter)


def _letters(text: pypdfium2.PdfTextPage, frame: _Frame) -> Iterator[_Word | None]:
    """The letters of a page; `None` where a word ends."""
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    matrix = pdfium.FS_MATRIX()
    number, unknown, high = text.count_chars(), 0, 0
    for index in range(number):
        code = pdfium.FPDFText_GetUnicode(text, index)
        if 0xD800 <= code < 0xDC00:
            # The first half of a character above 65535; the second half follows, at the same place.
            high = code
            continue
        if high and 0xDC00 <= code < 0xE000:
            code = 0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00)
        high = 0
        if code in _VARIATIONS:
            continue
        letter = "-" if code == _HYPHEN else chr(code)
        if letter.isspace() or pdfium.FPDFText_IsGenerated(text, index) == 1:
            yield None
            continue
        if pdfium.FPDFText_HasUnicodeMapError(text, index) == 1 or not _is_known(letter):
            unknown += 1
            yield None
            continue
        pdfium.FPDFText_GetCharBox(text, index, left, right, bottom, top)
        pdfium.FPDFText_GetMatrix(text, index, matrix)
        box = frame.box(left.value, bottom.value, right.value, top.value)
        yield _Word(letter, box, frame.turn(matrix.a, matrix.b))
        if code == _HYPHEN:
            yield None
    if unknown > LARGEST_UNKNOWN_SHARE * number:
        raise Refused("unknown characters", f"{unknown} of {number} characters")


def _is_known(letter: str) -> bool:
    # Fonts of symbols use the private area.
    return letter.isprintable() and letter != "\ufffd" and not "\ue000" <= letter <= "\uf8ff"


def _continues(last: _Word, letter: _Word) -> bool:
    """Whether a letter follows the last one in the same word."""
    if last.turn != letter.turn:
        return False
    if last.turn == SKEWED:
        return True
    left, top, right, bottom = upright(last.box, last.turn)
    next_left, next_top, _, next_bottom = upright(letter.box, letter.turn)
    height = max(bottom - top, next_bottom - next_top)
    beside = next_top < bottom + height and next_bottom > top - height
    return beside and left - height < next_left < right + _LARGEST_GAP * height


def _visible(words: list[_Word], picture: Image.Image) -> list[_Word]:
    """The words that can be seen in the picture, with their boxes cut at its edges."""
    grey = picture.convert("L")
    visible = []
    for word in words:
        left, top, right, bottom = word.box
        if not (0 <= left + right < 2 * grey.width and 0 <= top + bottom < 2 * grey.height):
            continue
        box = (max(left, 0.0), max(top, 0.0), min(right, float(grey.width)), min(bottom, float(grey.height)))
        # Around the ink, so that a line or a dot, all of one colour, is seen against the paper.
        around = (int(box[0]) - 1, int(box[1]) - 1, math.ceil(box[2]) + 1, math.ceil(box[3]) + 1)
        around = (max(around[0], 0), max(around[1], 0), min(around[2], grey.width), min(around[3], grey.height))
        darkest, brightest = cast(tuple[int, int], grey.crop(around).getextrema())
        if brightest - darkest >= SMALLEST_CONTRAST:
            visible.append(word._replace(box=box))
    return visible


def png(picture: Image.Image) -> bytes:
    """
    A picture as a PNG file, in grey levels if it has no colours.

    Args:
        picture: an RGB picture.
    """
    red, green, blue = picture.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        picture = red
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main(sys.argv[1:])
