"""Broken files of every format that Pillow writes: tiles or a `ValueError`, soon and in little memory."""

import os
import random
import resource
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import pytest
import torch
from PIL import Image

from mm1_hf import MM1ImageProcessor


PROCESSOR = MM1ImageProcessor(size={"height": 28, "width": 28})
SECONDS_PER_FILE = 20
CASES = int(os.environ.get("MM1_FUZZ_CASES", "500"))
GROWTH_MB = 600


class Hangs(BaseException):
    """Not an `Exception`, so that nothing between here and the decoder takes it for a broken file."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_):
        raise Hangs

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def whole_files() -> dict[str, bytes]:
    """A small file of every format and mode that this Pillow can write and read again."""
    Image.init()
    noise = Image.merge("RGBA", [Image.effect_noise((37, 23), 20 + 40 * band) for band in range(4)])
    files = {}
    for kind in sorted(set(Image.SAVE) & set(Image.OPEN)):
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"):
            image = noise.convert("L").convert("F") if mode in ("I;16", "F") else noise.convert("RGB").convert(mode)
            file = BytesIO()
            try:
                image.convert(mode).save(file, kind)
                with Image.open(BytesIO(file.getvalue())) as again:
                    again.load()
            except Exception:
                # This format does not hold this mode.
                continue
            files[f"{kind} {mode}"] = file.getvalue()
    return files


def broken(data: bytes, draw: random.Random) -> bytes:
    """The file after a few accidents, most of them in its head, where the sizes stand."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        place = int(len(data) * draw.random() ** draw.choice((1, 4)))
        accident = draw.randrange(5)
        if accident == 0:
            data[place : place + 1] = bytes([draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))])
        elif accident == 1:
            del data[place : place + draw.randint(1, 64)]
        elif accident == 2:
            data[place:place] = draw.randbytes(draw.randint(1, 64))
        elif accident == 3:
            data[place : place + 4] = draw.choice((b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"))
        else:
            del data[place:]
    return bytes(data)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return whole_files()


def test_the_whole_files_are_read(files):
    assert {"PNG RGBA", "JPEG RGB", "GIF P", "TIFF CMYK", "WEBP RGB", "BMP L", "PPM RGB"} <= set(files)
    for name, data in files.items():
        # Formats of floating-point numbers hold the levels 0 to 255 here, which are no image's.
        if Image.open(BytesIO(data)).mode == "F":
            continue
        assert PROCESSOR(data, return_tensors="pt")["pixel_values"].isfinite().all(), name


@pytest.mark.parametrize("part", range(10))
def test_broken_files_give_tiles_or_a_value_error(files, part, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names, outcomes = sorted(files), {"tiles": 0, "refused": 0}
    for case in range(part, CASES, 10):
        draw = random.Random(case)
        name = draw.choice(names)
        data = broken(files[name], draw)
        with warnings.catch_warnings(), time_limit(SECONDS_PER_FILE):
            warnings.simplefilter("ignore")
            try:
                pixels = PROCESSOR([[data]], return_tensors="pt")["pixel_values"]
            except ValueError as error:
                assert str(error).startswith("Image 0 of the batch"), f"case {case}, {name}"
                outcomes["refused"] += 1
            except (Exception, Hangs) as error:
                pytest.fail(f"case {case}, {name}: {type(error).__name__}: {error}")
            else:
                assert pixels.shape[1:] == (3, 28, 28) and pixels.isfinite().all(), f"case {case}, {name}"
                assert pixels.dtype == torch.float32
                outcomes["tiles"] += 1
    assert min(outcomes.values()) > 0, "the accidents are too mild or too grave to tell anything"
    # In kilobytes, the highest so far.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_MB * 1024
