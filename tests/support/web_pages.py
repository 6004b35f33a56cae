"""Small sites for the tests of the data engine: pages with pictures, in folders, WARC files and Parquet files."""

import io
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter


_TEXT = (
    "the of and to in that with have be a sea ship whale harbour captain morning weather island rope sail wind north crew "
    "letter water night stars map anchor storm deck coast bread salt rain song light boat story village"
)
_WORDS = _TEXT.split()


def picture(seed: int, width: int = 120, height: int = 100) -> bytes:
    """A picture of a kind that no other seed has."""
    draw = random.Random(seed)
    image = Image.new("RGB", (width, height), tuple(draw.randrange(256) for _ in range(3)))
    image.putpixel((seed % width, 1), (seed % 256, 0, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def prose(seed: int, words: int = 70) -> str:
    """Text that the filters of quality keep, and that is no near-duplicate of another seed's."""
    draw = random.Random(seed)
    sentences = []
    while words > 0:
        length = draw.randint(8, 16)
        sentence = " ".join(draw.choice(_WORDS) for _ in range(length))
        sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
        words -= length
    return " ".join(sentences)


def page(seed: int, *images: str) -> str:
    """A page with text before, between and after its images."""
    places = "".join(
        f"<p><img src='{image}'></p><p>{prose(seed * 100 + i, 20)}</p>" for i, image in enumerate(images, 1)
    )
    return f"<html><head><title>x</title></head><body><nav>Menu</nav><p>{prose(seed)}</p>{places}</body></html>"


def write_site(folder: Path, pages: int = 12) -> Path:
    """
    Pages with an own picture each. Beside it, all show the same picture, the even ones a logo, and the odd ones a picture on
    the web. The last page but one has no picture, and the last is a copy of the first.
    """
    (folder / "img").mkdir(parents=True)
    (folder / "img" / "same.png").write_bytes(picture(9999))
    (folder / "img" / "logo.png").write_bytes(picture(9998))
    for number in range(pages):
        (folder / "img" / f"{number}.png").write_bytes(picture(number))
        other = "img/logo.png" if number % 2 == 0 else "https://a.example/x.png"
        images = () if number == pages - 2 else (f"img/{number}.png", "img/same.png", other)
        seed = 0 if number == pages - 1 else number
        (folder / f"page-{number:03d}.html").write_text(page(seed, *images), encoding="utf-8")
    return folder


def write_warc(path: Path, responses: list[tuple[str, str, bytes]], status: str = "200 OK") -> Path:
    """A WARC file of responses, each a URL, a content type and a body."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        for url, kind, body in responses:
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            writer.write_record(
                writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=headers)
            )
    return path


def write_pages_table(path: Path, rows: list[dict]) -> Path:
    """A Parquet file of pages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
