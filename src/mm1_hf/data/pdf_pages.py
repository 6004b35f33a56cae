"""The pages of a PDF file as images. pypdfium2 draws them, and is imported only when a PDF is read."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mm1_hf.data.documents import ImagePart, Unusable


# Resolution at which pages are drawn, in dots per inch. A page of A4 has 1240 x 1754 pixels.
DPI = 150
# Largest number of pixels of a page: some PDF files claim pages of kilometres.
MAX_PIXELS = 2**24

# Pixels for each point, of which 72 make an inch.
_SCALE = DPI / 72


@dataclass(frozen=True)
class PdfPage(ImagePart):
    """
    A page of a PDF file, drawn in grey when it is loaded. Its `source` is the content of the whole file.

    Args:
        page: index of the page, counted from 0.
        height, width: size of the drawn page in pixels.
    """

    page: int = 0
    height: int = 0
    width: int = 0

    def size(self) -> tuple[int, int]:
        """`(height, width)` in pixels. The page is not drawn."""
        return self.height, self.width

    @property
    def _content(self) -> Image.Image:
        with _opened(self.source) as document:
            drawn = document[self.page].render(scale=_SCALE, grayscale=True).to_pil()
            # A copy, because the pixels belong to the document, which is closed.
            return drawn.copy()


def pdf_page(content: bytes, page: int, name: str) -> PdfPage:
    """
    A page of a PDF file.

    Args:
        content: content of the file.
        page: index of the page, counted from 0.
        name: where the file comes from, for error messages.

    Raises:
        Unusable: the file cannot be read, or the page is too large.
    """
    with _readable(name), _opened(content) as document:
        points = document[page].get_size()
    width, height = (math.ceil(side * _SCALE) for side in points)
    if not 0 < width * height <= MAX_PIXELS:
        raise Unusable(
            "page too large",
            f"{name}: page {page} has {width} x {height} pixels at {DPI} dots per inch; at most {MAX_PIXELS:,} are drawn",
        )
    return PdfPage(content, page, height, width)


def pdf_page_count(content: bytes, name: str) -> int:
    """
    The number of pages of a PDF file.

    Args:
        content: content of the file.
        name: where the file comes from, for error messages.

    Raises:
        Unusable: the file cannot be read.
    """
    with _readable(name), _opened(content) as document:
        return len(document)


@contextmanager
def _readable(name: str) -> Generator[None, None, None]:
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        raise Unusable("corrupt PDF", f"{name}: {str(error) or type(error).__name__}") from error


@contextmanager
def _opened(content: Any) -> Generator[Any, None, None]:
    import pypdfium2

    document = pypdfium2.PdfDocument(content)
    try:
        yield document
    finally:
        document.close()
