"""Broken files of every format that is read: tiles or a `ValueError`, soon and in little memory."""

import random
from io import BytesIO

import pytest
import torch
from fuzzing import PARTS, Tally, mutate, number_of_cases
from PIL import Image

from mm1_hf import MM1ImageProcessor
from mm1_hf.model.image_files import IMAGE_FORMATS


KIND = "images"
PROCESSOR = MM1ImageProcessor(size={"height": 28, "width": 28})


def whole_files() -> dict[str, bytes]:
    """A small file of every format and mode that this Pillow can write and read again."""
    noise = Image.merge("RGBA", [Image.effect_noise((37, 23), 20 + 40 * band) for band in range(4)])
    files = {}
    for kind in IMAGE_FORMATS:
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


@pytest.mark.parametrize("part", range(PARTS))
def test_broken_files_give_tiles_or_a_value_error(files, part, monkeypatch, tally: Tally):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)
    names = sorted(files)
    for case in range(part, number_of_cases(KIND), PARTS):
        draw = random.Random(case)
        name = draw.choice(names)
        data = mutate(files[name], draw)
        pixels = tally.run(
            f"case {case}, {name}",
            lambda own=data: PROCESSOR([[own]], return_tensors="pt")["pixel_values"],
            names="Image 0 of the batch",
        )
        if pixels is not None:
            assert pixels.shape[1:] == (3, 28, 28) and pixels.isfinite().all(), f"case {case}, {name}"
            assert pixels.dtype == torch.float32
    assert len(tally.outcomes) == 2, "the accidents are too mild or too grave to tell anything"
