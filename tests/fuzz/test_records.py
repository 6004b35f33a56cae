"""Broken records of every layout: a document whose examples can be used, or `Unusable` with the reason."""

import io
import json
import random
import re
from pathlib import Path

import pytest
from fuzzing import PARTS, Tally, mutate, mutate_json, number_of_cases
from PIL import Image
from stand_ins import encoded, picture
from tiny import tiny_mm1

from mm1_hf.data.documents import Unusable
from mm1_hf.data.examples import ChatEncoder
from mm1_hf.data.layouts import LAYOUTS


KIND = "records"
PAGE = (Path(__file__).parents[2] / "docs" / "data-formats.md").read_text(encoding="utf-8")
# Every record that the page shows, by its layouts.
WHOLE = [
    (layout, record)
    for layouts, record in re.findall(r"^\| (`[^|]+`) \| `(\{.+\})` \|", PAGE, flags=re.MULTILINE)
    for layout in re.findall(r"`(\w+)`", layouts)
]


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(tiny_mm1()[1], sequence_length=256, max_images=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    for name in ("0.jpg", "1.jpg"):
        Image.effect_noise((33, 21), 50).save(folder / name)
    return folder


def broken(draw: random.Random, folder: Path) -> tuple[str, dict]:
    layout, text = draw.choice(WHOLE)
    # Nothing is fetched here.
    record = json.loads(text.replace("https://a.example/", ""))
    for _ in range(draw.choice((0, 1, 1, 2, 4))):
        record = mutate_json(record, draw)
    if not isinstance(record, dict):
        record = {"text": record}
    if draw.random() < 0.3:
        file = io.BytesIO()
        Image.new(draw.choice(("L", "RGB", "RGBA", "P")), (9, 7)).save(file, "PNG")
        data = file.getvalue()[: draw.choice((10, 60, None))]
        record[draw.choice(("image", "images"))] = draw.choice(
            (data, {"bytes": data, "path": None}, [{"bytes": data}])
        )
    record.setdefault("__folder__", str(folder))
    return layout, record


def read(layout: str, record: dict, encoder: ChatEncoder) -> None:
    document = LAYOUTS[layout](record, "a record")
    (examples,) = encoder.encode([document])
    if isinstance(examples, Unusable):
        raise examples
    for example in examples:
        assert example.learned.any(), "nothing is learned from it"
        pixels = encoder.pixel_values(example)
        assert pixels.isfinite().all()


def broken_file(draw: random.Random) -> tuple[str, dict]:
    """A record whose images lie in one broken file, of the layouts that read such files."""
    layout = draw.choice(("idl", "mint1t", "pdfa", "rendered_text"))
    images = [picture(index, 12 + index, 9).convert(draw.choice(("RGB", "L", "1"))) for index in range(3)]
    kind, extension = {"pdfa": ("PDF", "pdf"), "rendered_text": ("PNG", "png")}.get(layout, ("TIFF", "tif"))
    content = encoded(*images, kind=kind) if kind != "PNG" else encoded(images[0])
    lines = [{"text": ["A bus."], "lines": {"text": ["A bus."]}} for _ in images]
    inner = {"texts": [None, "a", None, None], "images": ["x", None, "y", "z"], "pages": lines}
    inner["ocr_annotation"] = {"text": ["A bus."]}
    for _ in range(draw.choice((0, 0, 1))):
        inner = mutate_json(inner, draw)
    content = mutate(content, draw) if draw.random() < 0.8 else content
    held = content if draw.random() < 0.5 else {"bytes": content, "path": f"0.{extension}"}
    return layout, {extension: held, "json": inner, "__key__": str(draw.random())}


@pytest.mark.parametrize("part", range(PARTS))
def test_records_of_broken_files(part, encoder, tally: Tally):
    for case in range(part, max(number_of_cases(KIND, 2), 80), PARTS):
        draw = random.Random(f"file {case}")
        layout, record = broken_file(draw)
        tally.run(f"file {case}, {layout}", lambda lay=layout, rec=record: read(lay, rec, encoder), (Unusable,))
    assert tally.outcomes["read"]


@pytest.mark.parametrize("part", range(PARTS))
def test_broken_records(part, encoder, folder, tally: Tally):
    assert {layout for layout, _ in WHOLE} == set(LAYOUTS)
    for case in range(part, number_of_cases(KIND, 2), PARTS):
        draw = random.Random(case)
        layout, record = broken(draw, folder)
        tally.run(f"case {case}, {layout}", lambda lay=layout, rec=record: read(lay, rec, encoder), (Unusable,))
    assert len(tally.outcomes) == 2
