"""Small PDF files, written by hand, for the tests of pages of text."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple


class Text(NamedTuple):
    """A text of a page: the left end of its baseline in points from the lower left corner, and its size in points."""

    text: str
    x: float
    y: float
    size: float = 10.0


def content(texts: Sequence[Text], before: str = "") -> bytes:
    """A content stream; `before` is set once before every text, such as a colour."""
    lines = [f"BT /F1 {text.size} Tf {before} {text.x} {text.y} Td ({text.text}) Tj ET" for text in texts]
    return "\n".join(lines).encode("latin-1")


def pdf(
    pages: Sequence[bytes],
    size: tuple[float, float] = (595, 842),
    page_entries: str = "",
    objects: dict[int, bytes] | None = None,
    trailer: str = "",
) -> bytes:
    """
    A file with these content streams, of which each is a page. `objects` are further objects, numbered from 1000, which
    `page_entries` and `trailer` may name.
    """
    found = {1: b"<< /Type /Catalog /Pages 2 0 R >>", 3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"}
    kids = []
    for index, stream in enumerate(pages):
        page, drawing = 10 + 2 * index, 11 + 2 * index
        kids.append(f"{page} 0 R")
        found[page] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size[0]} {size[1]}] /Contents {drawing} 0 R {page_entries} "
            f"/Resources << /Font << /F1 3 0 R >> /XObject << /X0 1000 0 R >> >> >>"
        ).encode()
        found[drawing] = stream_object(stream)
    found[2] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    found |= objects or {}
    file, places = b"%PDF-1.7\n", {}
    for number, each in sorted(found.items()):
        places[number] = len(file)
        file += f"{number} 0 obj\n".encode() + each + b"\nendobj\n"
    table = "".join(f"{number} 1\n{place:010d} 00000 n \n" for number, place in places.items())
    end = f"xref\n0 1\n0000000000 65535 f \n{table}trailer << /Root 1 0 R /Size {max(found) + 1} {trailer} >>\n"
    return file + f"{end}startxref\n{len(file)}\n%%EOF\n".encode()


def stream_object(content: bytes, entries: str = "") -> bytes:
    packed = zlib.compress(content)
    return f"<< /Length {len(packed)} /Filter /FlateDecode {entries} >> stream\n".encode() + packed + b"\nendstream"


def bomb(levels: int = 12, width: int = 10) -> bytes:
    """A page of one form that draws ten, of which each draws ten, and so on."""
    objects = {}
    for level in range(levels):
        inner = f"/Resources << /XObject << /X0 {1001 + level} 0 R >> >>"
        entries = f"/Type /XObject /Subtype /Form /BBox [0 0 595 842] {inner if level + 1 < levels else ''}"
        drawing = b"/X0 Do\n" * width if level + 1 < levels else b"0 0 1 1 re f\n" * width
        objects[1000 + level] = stream_object(drawing, entries)
    return pdf([content([Text("Boom", 72, 700)]) + b"\n/X0 Do"], objects=objects)


def locked() -> bytes:
    """A file that no empty password opens."""
    secret = "ab" * 32
    entry = f"<< /Filter /Standard /V 1 /R 2 /O <{secret}> /U <{secret}> /P -4 >>".encode()
    return pdf(
        [content([Text("Secret", 72, 700)])],
        objects={1000: entry},
        trailer=f"/Encrypt 1000 0 R /ID [<{secret}> <{secret}>]",
    )
