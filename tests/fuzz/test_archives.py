"""Broken WebDataset archives: samples, with the reasons of those that cannot be used, and no exception."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
from pathlib import Path

import pytest
from fuzzing import PARTS, Tally, mutate, number_of_cases
from PIL import Image

from mm1_hf.data.archives import read_archives
from mm1_hf.data.documents import Unusable
from mm1_hf.data.layouts import LAYOUTS


KIND = "archives"
COMPRESSED = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}


def archive(draw: random.Random, form: int) -> bytes:
    """Three samples, and what else an archive may hold."""
    written = io.BytesIO()
    image = io.BytesIO()
    Image.new("RGB", (9, 7)).save(image, "PNG")
    with tarfile.open(fileobj=written, mode="w", format=form) as tar:
        for number in range(3):
            for extension, data in (("png", image.getvalue()), ("txt", b"A caption."), ("json", b'{"a": 1}')):
                name = draw.choice(("", "", "below/", "../", "/")) + f"{number}.{extension}"
                if form == tarfile.PAX_FORMAT:
                    name += draw.choice(("", "", "\u00e9", "x" * 200))
                member = tarfile.TarInfo(name)
                member.size = len(data)
                member.pax_headers = draw.choice(({}, {}, {"comment": "x" * 1000}, {"size": "1000000000000"}))
                tar.addfile(member, io.BytesIO(data))
        other = tarfile.TarInfo("9.png")
        other.type = draw.choice(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
        )
        other.linkname = draw.choice(("0.png", "/etc/hostname", "../../x"))
        tar.addfile(other)
    return written.getvalue()


def read(path: Path) -> int:
    samples = list(read_archives([(str(path), 0)]))
    for sample in samples:
        try:
            LAYOUTS["caption"](sample, "a sample")
        except Unusable:
            continue
    return len(samples)


@pytest.mark.parametrize("part", range(PARTS))
def test_broken_archives(part, tmp_path, tally: Tally):
    for case in range(part, number_of_cases(KIND), PARTS):
        draw = random.Random(case)
        data = archive(draw, draw.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)))
        ending = draw.choice([*COMPRESSED])
        data = COMPRESSED[ending](mutate(data, draw) if draw.random() < 0.6 else data)
        path = tmp_path / f"case.{ending}"
        path.write_bytes(mutate(data, draw) if draw.random() < 0.6 else data)
        tally.run(f"case {case}, {ending}", lambda own=path: read(own), ())
    assert tally.outcomes["read"] > 0
