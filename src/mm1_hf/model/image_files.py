"""
Opens image files of unknown origin: only formats that are asked for, and only files that are decoded in bounded time and
memory.
"""

import io
import os
import stat
import struct
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, NoReturn

from PIL import Image


class Limits(NamedTuple):
    """
    How large an image file of a format may be.

    Args:
        pixels: most pixels of an image.
        file_bytes: largest size of a file, in bytes.
    """

    pixels: int
    file_bytes: int = 2**28


# The formats of Pillow that are read, and their limits. The numbers are such that no file takes more than 1 GB of memory
# and 3 seconds of one core, whatever its mode and content; some decoders are much slower than others, for each pixel or for
# each byte. One exception is known: of an AVIF file whose head tells a wrong size, libavif decodes up to 2**28 pixels before
# it notices. Formats that run a program (EPS) or only stand for a decoder that is not there are left out on purpose. Another
# format is allowed by adding it: `IMAGE_FORMATS["TGA"] = Limits(2**24)`. MPO, the JPEG of many phones, is a JPEG here.
IMAGE_FORMATS = {
    "PNG": Limits(3 * 2**24),
    "JPEG": Limits(2**26, 2**26),
    "WEBP": Limits(2**25, 2**26),
    "GIF": Limits(2**26, 2**26),
    "TIFF": Limits(2**25),
    "BMP": Limits(2**26),
    "AVIF": Limits(2**25, 2**24),
    "JPEG2000": Limits(2**24, 3 * 2**22),
    "PPM": Limits(2**26),
    "ICO": Limits(2**20),
}

# Pillow decodes some rare files in Python, which takes microseconds for each pixel.
_SAMPLES_IN_PYTHON = 2**21
# Times that Pillow may read from a file to find its pixels, and in all. Files of many tiny pieces take it there, because
# each piece costs it several reads.
_READS_OF_HEADER = 10_000
_READS = 250_000
# Every scan of a progressive JPEG goes over all pixels. Encoders write about ten scans.
_PIXELS_OF_SCANS = 2**31
# Longest side, in pixels: resizing keeps a weight for each pixel of a row or column and each pixel that it becomes.
_SIDE = 2**20
# A strip of a TIFF file takes Pillow about as much memory as a thousand pixels.
_STRIPS = 2**17
# Tags of TIFF.
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_PIECES = (273, 324)


@contextmanager
def broken_files_named(index: int) -> Generator[None, None, None]:
    """
    Turns any exception into a `ValueError` that names the image: Pillow's decoders raise exceptions of nearly any type
    for broken files.

    Args:
        index: index of the image in the batch.

    Raises:
        ValueError: whatever was raised inside.
    """
    try:
        yield
    except Exception as error:
        said = str(error) or type(error).__name__
        raise ValueError(f"Image {index} of the batch cannot be read: {said}.") from error


class _Reads:
    """Counts how often Pillow reads from a file. Mixed into a file object."""

    reads = _READS_OF_HEADER

    def read(self, *size: Any) -> bytes:
        self.reads -= 1
        if self.reads < 0:
            raise ValueError("the file consists of too many small pieces")
        return super().read(*size)  # ty: ignore[missing-attribute] -- of the file object


class _Content(_Reads, io.BytesIO):
    """The content of a file in memory."""


class _File(_Reads, io.BufferedReader):
    """A file on disk, which is closed with the image that reads it."""

    def __del__(self) -> None:
        self.close()


def open_file(source: bytes | str) -> Image.Image:
    """
    Opens an image file. Its pixels are not decoded yet, except those of icons.

    Args:
        source: the content of a file, or its path.

    Raises:
        ValueError: the file or its image is too large, or it is not an image of one of `IMAGE_FORMATS`.
    """
    file = _opened(source)
    try:
        return _identified(file)
    except BaseException:
        file.close()
        raise


def read_file(source: bytes | str) -> bytes:
    """
    The content of a file.

    Args:
        source: the content of a file, or its path.

    Raises:
        ValueError: the file is too large.
    """
    with _opened(source) as file:
        file.reads = _READS
        return file.read()


def _opened(source: bytes | str) -> _Content | _File:
    if isinstance(source, bytes):
        size = len(source)
    else:
        found = os.stat(source)
        # Pipes and devices may be read without an end.
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise ValueError("it is not a regular file")
        size = found.st_size
    largest = max(limits.file_bytes for limits in IMAGE_FORMATS.values())
    if size > largest:
        raise ValueError(f"the file has {size:,} bytes; at most {largest:,} are read")
    return _Content(source) if isinstance(source, bytes) else _File(io.FileIO(source))


def _identified(file: _Content | _File) -> Image.Image:
    head = file.read(30)
    if head.startswith(b"\0\0\1\0") and "ICO" in IMAGE_FORMATS:
        return _icon(file)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and "WEBP" in IMAGE_FORMATS:
        # Pillow allocates the canvas of a WebP file when it opens it.
        _check_size(_webp_size(head), "WEBP", file)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _check_strips(head, file)
    # Pillow before 11.3 has no AVIF.
    Image.init()
    try:
        image = Image.open(file, formats=[name for name in IMAGE_FORMATS if name in Image.OPEN and name != "ICO"])
    except Image.UnidentifiedImageError:
        _refuse_format(head)
    place = file.tell()
    if image.format in ("JPEG", "MPO"):
        _check_scans(image, file)
    _check_size(image.size, image.format, file)
    _check_decoding(image)
    file.seek(place)
    file.reads = _READS
    return image


def _check_scans(image: Any, file: _Content | _File) -> None:
    """
    Lets a JPEG that is too large be decoded at half its size, if its first scan holds the whole image. Others need memory
    for all of it, and time for each of their scans.
    """
    # Pillow has read up to the end of the head of the first scan.
    length = 6 + 2 * image.layers
    file.seek(max(file.tell() - length, 0))
    if "progression" not in image.info and file.read(3) == struct.pack(">HB", length, image.layers):
        if image.width * image.height > IMAGE_FORMATS["JPEG"].pixels:
            image.draft(image.mode, (image.width // 2, image.height // 2))
        return
    scans = _count(file, b"\xff\xda")
    if scans * image.width * image.height > _PIXELS_OF_SCANS:
        raise ValueError(
            f"it is a JPEG of {image.width} x {image.height} pixels in {scans} scans, which takes too long"
        )


def _check_size(size: tuple[int, int], format_: str | None, file: _Content | _File) -> None:
    # A phone's MPO is opened as a JPEG.
    limits = IMAGE_FORMATS["JPEG" if format_ == "MPO" else str(format_)]
    file_bytes = file.seek(0, io.SEEK_END)
    for found, limit, unit in (
        (size[0] * size[1], limits.pixels, "pixels"),
        (max(size), _SIDE, "pixels on a side"),
        (file_bytes, limits.file_bytes, "bytes"),
    ):
        if found > limit:
            raise ValueError(
                f"a {format_} file of {size[0]} x {size[1]} pixels has {found:,} {unit}; at most {limit:,} are read. Make "
                f"the image smaller, or raise mm1_hf.model.image_files.IMAGE_FORMATS[{format_!r}]"
            )


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height of a WebP file's canvas."""
    kind, bits = head[12:16], int.from_bytes(head[21:25], "little")
    if kind == b"VP8L":
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _icon(file: _Content | _File) -> Image.Image:
    """
    Opens the largest image of an icon. Pillow decodes an icon when it opens it, whatever the size of the image inside,
    and does not know that size before. So the image inside is checked, or is opened instead of the icon if it is a PNG.
    """
    file.seek(4)
    number = int.from_bytes(file.read(2), "little")
    entries = []
    for width, height, colours, _, _, bits, _, offset in struct.iter_unpack("<BBBBHHII", file.read(16 * number)):
        depth = bits or (colours - 1).bit_length() * (colours > 0) or 256
        entries.append(((width or 256) * (height or 256), depth, offset))
    if len(entries) != max(number, 1):
        raise ValueError("the icon ends too early")
    # As Pillow chooses.
    entries.sort(key=lambda entry: entry[1])
    offset = max(entries, key=lambda entry: entry[0])[2]
    file.seek(offset)
    head = file.read(24)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        file.seek(offset)
        return _identified(_Content(file.read()))
    width, height = (int.from_bytes(head[place : place + 4], "little", signed=True) for place in (4, 8))
    _check_size((abs(width), abs(height) // 2), "ICO", file)
    file.seek(0)
    return Image.open(file, formats=["ICO"])


def _refuse_format(head: bytes) -> NoReturn:
    """Raises an error for a file of none of the formats, which names its format if Pillow knows it."""
    for format_, (_, accepts) in Image.OPEN.items():
        if format_ not in IMAGE_FORMATS and accepts is not None and accepts(head[:16].ljust(16, b"\0")) is True:
            raise ValueError(
                f"its format is {format_}, which is not read. Convert it to one of {', '.join(IMAGE_FORMATS)}, or add the "
                "format to mm1_hf.model.image_files.IMAGE_FORMATS if you trust its files"
            )
    raise ValueError(f"cannot identify it as an image of one of the formats {', '.join(IMAGE_FORMATS)}")


def _check_decoding(image: Image.Image) -> None:
    """Checks that an image of an allowed number of pixels does not take an unusual effort for each of them."""
    codecs = {str(tile[0]) for tile in getattr(image, "tile", ())}
    samples = image.width * image.height * len(image.getbands())
    if not codecs.isdisjoint(Image.DECODERS) and samples > _SAMPLES_IN_PYTHON:
        raise ValueError(
            f"Pillow decodes this kind of {image.format} file in Python, which is slow: it has {samples:,} samples, at "
            f"most {_SAMPLES_IN_PYTHON:,} are read. Convert it to PNG"
        )
    # Every tile of a TIFF file is decoded as a whole, however small the image is.
    tags = getattr(image, "tag_v2", {})
    if (tile := tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0)) > IMAGE_FORMATS["TIFF"].pixels:
        raise ValueError(f"it is a TIFF file of tiles of {tile:,} pixels")


def _check_strips(head: bytes, file: _Content | _File) -> None:
    """Checks the number of pieces of a TIFF file, for each of which Pillow makes an entry when it opens the file."""
    order: Literal["little", "big"] = "little" if head[:1] == b"I" else "big"

    def number(length: int) -> int:
        return int.from_bytes(file.read(length), order)

    # BigTIFF has wider numbers.
    wide = 43 in head[2:4]
    file.seek(8 if wide else 4)
    file.seek(number(8 if wide else 4))
    for _ in range(number(8 if wide else 2)):
        tag, _, count, _ = number(2), number(2), number(8 if wide else 4), number(8 if wide else 4)
        if tag in _PIECES and count > _STRIPS:
            raise ValueError(f"it is a TIFF file of {count:,} strips or tiles; at most {_STRIPS:,} are read")
    file.seek(0)


def _count(file: _Content | _File, mark: bytes) -> int:
    """How often a file contains a mark of two bytes."""
    found, last = 0, b""
    file.seek(0)
    while block := file.read(2**20):
        found += (last + block).count(mark)
        last = block[-1:]
    return found
