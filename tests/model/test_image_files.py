"""Files of unknown origin: which formats are read, and that no file takes more than its share of time and memory."""

import io
import os
import stat
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mm1_hf import MM1ImageProcessor
from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.model import image_files
from mm1_hf.model.image_files import IMAGE_FORMATS, Limits
from mm1_hf.model.image_inputs import image_bytes, image_size, open_image
from mm1_hf.model.image_pixels import to_uint8_pixels


PROCESSOR = MM1ImageProcessor(size={"height": 28, "width": 28}, do_rescale=False, do_normalize=False)
ORIENTATION = 0x0112


def noise(mode: str, width: int, height: int) -> Image.Image:
    bands = [Image.effect_noise((width, height), 90 + 30 * band) for band in range(4)]
    return Image.merge("RGBA", bands).convert(mode)


def file_of(image: Image.Image, format_: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def plain_pixels(data: bytes) -> np.ndarray:
    """What Pillow alone makes of a file: upright, over white, in RGB."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def pixels(source) -> np.ndarray:
    return to_uint8_pixels(open_image(source), 0, True, True, None).permute(1, 2, 0).numpy()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, kind: int = 2, bits: int = 8) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def png_pixels(width: int, height: int, channels: int = 3) -> bytes:
    return chunk(b"IDAT", zlib.compress(bytes(height * (width * channels + 1)), 9))


def icon(image: bytes, number: int = 1) -> bytes:
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(image), 6 + 16 * number)
    return struct.pack("<HHH", 0, 1, number) + number * entry + image


def tiff(*tags: tuple[int, int, int, int | bytes]) -> bytes:
    """A TIFF file of little-endian tags `(tag, type, count, value)`."""
    start = 8 + 2 + 12 * len(tags) + 4
    entries = extra = b""
    for tag, kind, count, value in sorted(tags):
        if isinstance(value, int):
            entries += struct.pack("<HHII", tag, kind, count, value)
        else:
            entries += struct.pack("<HHII", tag, kind, count, start + len(extra))
            extra += value
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + extra


def gif(width: int, height: int, blocks: bytes = b"") -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0, 0, 0) + bytes(6)
    return head + blocks + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00;"


Image.init()
OTHER = noise("RGB", 37, 23)
# Every way that one of the formats stores an image, small.
FILES = {
    f"{format_} {mode} {list(options)}": file_of(noise(mode, 37, 23), format_, **options)
    for format_, modes, options in [
        ("PNG", "1 L LA P RGB RGBA", {}),
        ("PNG", "P L", {"transparency": 5}),
        ("PNG", "RGB", {"transparency": (1, 2, 3)}),
        ("JPEG", "L RGB CMYK", {}),
        ("JPEG", "L RGB", {"progressive": True}),
        ("WEBP", "RGB RGBA", {}),
        ("WEBP", "RGB RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"save_all": True, "append_images": [OTHER]}),
        ("GIF", "1 L P RGB RGBA", {}),
        ("GIF", "P", {"save_all": True, "append_images": [OTHER]}),
        ("TIFF", "1 L LA P RGB RGBA CMYK LAB", {}),
        ("TIFF", "1 L P RGB RGBA CMYK", {"compression": "tiff_lzw"}),
        ("TIFF", "RGB", {"save_all": True, "append_images": [OTHER]}),
        ("BMP", "1 L P RGB RGBA", {}),
        ("AVIF", "L RGB RGBA", {}),
        ("JPEG2000", "L LA RGB RGBA", {}),
        ("PPM", "1 L RGB", {}),
        ("ICO", "RGB RGBA", {}),
        ("ICO", "RGB RGBA", {"bitmap_format": "bmp"}),
        ("MPO", "RGB", {"save_all": True, "append_images": [OTHER]}),
    ]
    for mode in modes.split()
    # Pillow before 11.3 has no AVIF.
    if format_ in Image.SAVE
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_and_mode_gives_the_pixels_of_pillow(name, tmp_path, monkeypatch):
    data = FILES[name]
    path = tmp_path / "image"
    path.write_bytes(data)
    expected = plain_pixels(data)
    for source in (data, str(path)):
        np.testing.assert_array_equal(pixels(source), expected)
        assert image_size(source) == expected.shape[:2]
        assert image_bytes(source) == data
    # In bands, as large images are converted.
    monkeypatch.setattr("mm1_hf.model.image_pixels._PIXELS_PER_BAND", 20)
    np.testing.assert_array_equal(pixels(data), expected)


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


@given(
    format_=st.sampled_from([name for name in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "MPO") if name in Image.SAVE]),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    orientation=st.sampled_from([*range(10), 42]),
    by=st.sampled_from(["exif", "xmp"]),
    compression=st.sampled_from([None, "tiff_lzw"]),
)
@example("TIFF", "RGB", (30, 20), 6, "exif", None)
@example("TIFF", "RGB", (30, 20), 6, "xmp", None)
@example("JPEG", "RGB", (30, 20), 9, "exif", None)
@settings(max_examples=150, deadline=None)
def test_the_size_is_that_of_the_pixels(format_, mode, size, orientation, by, compression):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"exif": exif} if by == "exif" else {"xmp": xmp(orientation)}
    try:
        data = file_of(noise(mode, *size), format_, **options, **({"compression": compression} if compression else {}))
    except (OSError, RuntimeError):
        return  # This format does not hold this mode.
    expected = plain_pixels(data)
    part = ImagePart(data)
    loaded = part.load()
    assert part.size() == (loaded.height, loaded.width) == expected.shape[:2]
    assert PROCESSOR.image_sizes([data]) == [[part.size()]]
    np.testing.assert_array_equal(pixels(data), expected)
    # The same file, opened by somebody else and decoded or not.
    for opened in (Image.open(io.BytesIO(data)), loaded):
        assert image_size(opened) == expected.shape[:2]
        np.testing.assert_array_equal(pixels(opened), expected)


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_orientation_after_the_pixels_of_a_png_counts(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = png(9, 5, png_pixels(9, 5), chunk(b"eXIf", exif.tobytes()[6:]))
    assert image_size(data) == plain_pixels(data).shape[:2] == ((5, 9) if orientation == 1 else (9, 5))


def test_images_of_16_and_32_bits_become_8(tmp_path):
    levels = np.linspace(0, 65535, 40 * 60).astype(np.uint16).reshape(40, 60)
    expected = np.rint(levels / 257).astype(np.uint8)[..., None].repeat(3, axis=2)
    image = Image.fromarray(levels)
    for data in (file_of(image, "PNG"), file_of(image, "TIFF"), file_of(image, "PPM"), file_of(image, "JPEG2000")):
        np.testing.assert_array_equal(pixels(data), expected)
        assert image_size(data) == (40, 60)
        np.testing.assert_array_equal(pixels(ImagePart(data).load()), expected)
    big_endian = tiff(
        *((256, 4, 1, 60), (257, 4, 1, 40), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)),
        *((273, 4, 1, levels.tobytes()), (278, 4, 1, 40), (279, 4, 1, 4800)),
    )
    np.testing.assert_array_equal(pixels(big_endian), expected)
    small = levels // 257
    whole = small.astype(np.uint8)[..., None].repeat(3, axis=2)
    for values in (small.astype(np.int32), small.astype(np.float32) / 255):
        data = file_of(Image.fromarray(values), "TIFF")
        np.testing.assert_array_equal(pixels(data), whole)
        assert image_size(data) == (40, 60)


@pytest.mark.parametrize("values", [np.float32(3), np.float32("nan"), np.float32(-0.1), np.int32(256), np.int32(-1)])
def test_values_that_are_none_of_an_image_are_refused_as_soon_as_the_size_is_asked(values):
    part = ImagePart(file_of(Image.fromarray(np.full((4, 4), values)), "TIFF"))
    for ask in (part.size, part.load):
        with pytest.raises(Unusable, match=r"corrupt image: .*pass integers in 0\.\.255 or floats in 0\.\.1"):
            ask()


def test_a_program_is_never_run(tmp_path, monkeypatch):
    """Pillow gives PostScript to Ghostscript, if it is there."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"
    for ask in (lambda: PROCESSOR([eps]), ImagePart(eps).load, ImagePart(eps).size):
        with pytest.raises(ValueError, match=r"its format is EPS, which is not read. Convert it to one of PNG, JPEG"):
            ask()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("format_", ["TGA", "PCX", "SGI", "IM", "DDS", "PDF"])
def test_other_formats_are_refused_until_they_are_allowed(format_, monkeypatch):
    data = file_of(noise("RGB", 8, 6), format_)
    with pytest.raises(ValueError, match=r"PNG, JPEG, WEBP, GIF, TIFF, BMP, AVIF, JPEG2000, PPM, ICO"):
        open_image(data)
    if format_ != "PDF":
        monkeypatch.setitem(IMAGE_FORMATS, format_, Limits(100))
        assert open_image(data).size == (8, 6)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(7095, 7095, b""), r"PNG file of 7095 x 7095 pixels has 50,339,025 pixels; at most 50,331,648"),
        (png(2**20 + 1, 1, b""), "1,048,577 pixels on a side"),
        (gif(60000, 2900), "GIF file of 60000 x 2900 pixels"),
        (
            b"RIFF\x1a\0\0\0WEBPVP8L\r\0\0\0/\xfe\xff\xa4\x1a\x07\x10\x11\x11\x88\x88\xfe\x07\0",
            "WEBP file of 16383 x 10900",
        ),
        (b"RIFF\x16\0\0\0WEBPVP8X\n\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0", "WEBP file of 16384 x 16384 pixels"),
        (b"P5 9000 9000 255\n", "PPM file of 9000 x 9000 pixels"),
        (b"P5 3000 3000 100\n" + bytes(9), "decodes this kind of PPM file in Python.* 9,000,000 samples"),
        (icon(png(8000, 8000, b"")), "PNG file of 8000 x 8000 pixels"),
        (
            icon(struct.pack("<IiiHHIIiiII", 40, 7000, 14000, 1, 24, 0, 0, 0, 0, 0, 0)),
            "ICO file of 7000 x 7000 pixels",
        ),
        (
            tiff((256, 4, 1, 1), (257, 4, 1, 200_000), (273, 3, 200_000, b"\x08\0" * 200_000)),
            "200,000 strips or tiles",
        ),
        (png(8, 8, b"".join([chunk(b"tIME", bytes(7))] * 20_000), png_pixels(8, 8)), "too many small pieces"),
        (gif(8, 8, b"!\xfe" + (b"\xff" + bytes([97]) * 255) * 20_000 + b"\0"), "too many small pieces"),
        (b"\xff\xd8\xff\xe0\0\2" + bytes(50_000), "too many small pieces"),
        (b"P6\n#" + b"a" * 50_000 + b"\n8 8\n255\n" + bytes(192), "too many small pieces"),
        (png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**22), 9)), png_pixels(8, 8)), "too large"),
        (png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**22), 9)), png_pixels(8, 8)), "too large"),
    ],
)
def test_files_that_would_take_too_much_are_refused(data, said):
    for ask in (image_size, lambda data: open_image(data).load()):
        with pytest.raises(ValueError, match=said):
            ask(data)
    with pytest.raises(ValueError, match=f"^Image 0 of the batch cannot be read: .*{said}"):
        PROCESSOR([[data]])


def test_pixels_in_many_small_pieces_are_refused_when_they_are_decoded():
    data = png(8, 8, chunk(b"IDAT", b"") * 200_000, png_pixels(8, 8))
    with pytest.raises(ValueError, match=r"^Image 0 of the batch cannot be read: .*too many small pieces"):
        PROCESSOR([data])


def test_a_tiff_of_large_tiles_is_refused():
    tags = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    data = tiff(*tags, (322, 4, 1, 60000), (323, 4, 1, 60000), (324, 4, 1, 300), (325, 4, 1, 20))
    with pytest.raises(ValueError, match=r"tiles of 3,600,000,000 pixels"):
        open_image(data)


def test_a_jpeg_of_many_scans_is_refused(monkeypatch):
    data = file_of(noise("RGB", 64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scans = data.count(b"\xff\xda")
    many = data[:-2] + data[last:-2] * 90 + data[-2:]
    monkeypatch.setattr(image_files, "_PIXELS_OF_SCANS", 64 * 64 * (scans + 89))
    with pytest.raises(ValueError, match=f"64 x 64 pixels in {scans + 90} scans"):
        open_image(many)
    monkeypatch.setattr(image_files, "_PIXELS_OF_SCANS", 64 * 64 * (scans + 90))
    assert open_image(many).size == (64, 64)


def test_a_large_photograph_is_decoded_at_half_its_size(monkeypatch):
    image = noise("RGB", 65, 47)
    data = file_of(image, "JPEG")
    whole = pixels(data)
    monkeypatch.setitem(IMAGE_FORMATS, "JPEG", Limits(65 * 47 - 1))
    assert image_size(data) == open_image(data).size[::-1] == (24, 33)
    expected = Image.open(io.BytesIO(data))
    expected.draft("RGB", (32, 23))
    np.testing.assert_array_equal(pixels(data), np.asarray(expected))
    # A progressive one would take its memory all the same.
    with pytest.raises(ValueError, match=r"JPEG file of 65 x 47 pixels has 3,055 pixels; at most 3,054"):
        image_size(file_of(image, "JPEG", progressive=True))
    monkeypatch.setitem(IMAGE_FORMATS, "JPEG", Limits(33 * 24 - 1))
    with pytest.raises(ValueError, match=r"JPEG file of 33 x 24 pixels"):
        image_size(data)
    monkeypatch.setitem(IMAGE_FORMATS, "JPEG", Limits(65 * 47))
    np.testing.assert_array_equal(pixels(data), whole)


def test_the_size_of_an_icon_is_known_without_its_pixels(monkeypatch):
    data = file_of(noise("RGBA", 64, 48), "ICO", sizes=[(64, 48), (16, 12)])
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    assert image_size(data) == (48, 64)


def test_files_that_have_no_end_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe")):
        for ask in (image_size, open_image, image_bytes):
            with pytest.raises(ValueError, match="not a regular file"):
                ask(path)
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(2**28 + 1)
    for ask in (image_size, open_image, image_bytes):
        with pytest.raises(ValueError, match=r"the file has 268,435,457 bytes; at most 268,435,456"):
            ask(large)


def test_files_are_closed(tmp_path):
    """A run opens millions of them."""
    path = tmp_path / "image.png"
    noise("RGB", 9, 9).save(path)
    script = f"""
        import os, warnings
        warnings.simplefilter("error")
        from mm1_hf.model.image_inputs import image_bytes, image_size, open_image
        image_size({str(path)!r}), open_image({str(path)!r}).load(), image_bytes({str(path)!r})
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            image_size({str(path)!r}), open_image({str(path)!r}).load(), image_bytes({str(path)!r})
        print(len(os.listdir("/proc/self/fd")) - before)
    """
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not list open files")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert (result.stdout.strip(), "ResourceWarning" in result.stderr) == ("0", False)


LARGEST = {
    "PNG, RGBA": lambda: png(7000, 7000, png_pixels(7000, 7000, 4), kind=6),
    "PNG, one row": lambda: png(2**20, 1, png_pixels(2**20, 1, 4), kind=6),
    "GIF": lambda: gif(8191, 8191),
    "JPEG": lambda: file_of(Image.new("CMYK", (8190, 8190)), "JPEG", progressive=True),
    "WebP": lambda: file_of(Image.new("RGBA", (5700, 5700)), "WEBP", lossless=True, method=0, quality=0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_files_take_less_than_a_gigabyte(name):
    script = """
        import resource, sys, warnings
        warnings.simplefilter("ignore")
        from mm1_hf import MM1ImageProcessor
        processor = MM1ImageProcessor(size={"height": 56, "width": 56})
        data = sys.stdin.buffer.read()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        processor([data])
        print("taken", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], input=LARGEST[name](), capture_output=True, check=True
    )
    assert int(result.stdout.split()[-1]) < 1000
