"""Tiny data sets with the schemas of the public ones in the open recipes, after the data cards and readers of each."""

import base64
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from datasets import Features, Image, List, Value
from PIL import Image as Pictures

from mm1_hf.training.open_recipes import OpenRecipe


NUMBER = 12
_TURNS = List({"from": Value("string"), "value": Value("string")})
_TEXTS = List({"user": Value("string"), "assistant": Value("string"), "source": Value("string")})


def picture(index: int, width: int = 40, height: int = 24) -> Pictures.Image:
    """A picture with colours of its own, to be told apart from others."""
    return Pictures.new("RGB", (width, height), (20 * index % 256, 90, 200 - 15 * index % 200))


def encoded(*pictures: Pictures.Image, kind: str = "PNG") -> bytes:
    """A file of one picture, or of several if `kind` is TIFF or PDF."""
    file = io.BytesIO()
    several = {"save_all": True, "append_images": pictures[1:]} if len(pictures) > 1 else {}
    pictures[0].save(file, kind, **several)
    return file.getvalue()


def address(index: int) -> str:
    """In place of a URL, which tests do not fetch."""
    return f"data:image/png;base64,{base64.b64encode(encoded(picture(index))).decode()}"


def _table(features: dict[str, Any], record: Callable[[int], dict]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        records = [record(index) for index in range(NUMBER)]
        columns = {name: [each[name] for each in records] for name in features}
        datasets.Dataset.from_dict(columns, Features(features)).to_parquet(folder / "train-00000-of-00001.parquet")

    return write


def _archive(files: Callable[[int], dict[str, bytes]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with tarfile.open(folder / "00000.tar", "w") as archive:
            for index in range(NUMBER):
                for extension, content in files(index).items():
                    member = tarfile.TarInfo(f"{index:07d}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))

    return write


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _pages(index: int, number: int) -> list[list[str]]:
    return [[f"Line {line} of page {page}", f"of document {index}."] for page in range(number) for line in (0,)]


def _cauldron(images: int) -> Callable[[Path], None]:
    return _table(
        {"images": List(Image()), "texts": _TEXTS},
        lambda index: {
            "images": [picture(index + place) for place in range(images)],
            "texts": [
                {"user": f"Question {number} of {index}?", "assistant": f"{index}.", "source": "docvqa"}
                for number in range(1 + index % 3)
            ],
        },
    )


def _finevision(images: int) -> Callable[[Path], None]:
    ratings = ("relevance_ratings", "visual_dependency_ratings", "image_correspondence_ratings", "formatting_ratings")
    return _table(
        {
            "images": List(Image()),
            "texts": List({"user": Value("string"), "assistant": Value("string")}),
            "source": Value("string"),
        }
        | {name: List(Value("int64")) for name in ratings},
        lambda index: {
            "images": [picture(index + place) for place in range(images)],
            "texts": [{"user": f"Question of {index}?", "assistant": f"Answer {index}."}],
            "source": "synthdog",
            **{name: [None if index % 4 == 0 else 5] for name in ratings},
        },
    )


def _pixmo(more: dict[str, Any], values: Callable[[int], dict]) -> Callable[[Path], None]:
    return _table(
        {
            "image_url": Value("string"),
            "image_sha256": Value("string"),
            "label": Value("string"),
            "count": Value("int64"),
            **more,
        },
        lambda index: {
            "image_url": address(index),
            "image_sha256": "0" * 64,
            "label": f"thing {index}",
            "count": index % 3,
            **values(index),
        },
    )


_POINTS = {"points": List({"x": Value("float64"), "y": Value("float64")}), "collection_method": Value("string")}

# By layout: what writes a data set with twelve records into a folder, for records with so many images.
_WRITERS: dict[str, Callable[[int], Callable[[Path], None]]] = {
    "caption": lambda images: _archive(
        lambda index: {
            "jpg": encoded(picture(index), kind="JPEG"),
            "txt": f"Picture {index}.".encode(),
            "json": _json(
                {"key": f"{index:07d}", "caption": f"Picture {index}.", "width": 40, "height": 24, "status": "success"}
            ),
        }
    ),
    "llava": lambda images: _table(
        {"id": Value("string"), "image": Image(), "conversations": _TURNS},
        lambda index: {
            "id": str(index),
            "image": picture(index),
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe it."},
                {"from": "gpt", "value": f"A picture with the number {index}."},
            ],
        },
    ),
    "mint1t": lambda images: _archive(
        lambda index: {
            "json": _json(
                {
                    "texts": [f"Text {index}", *[None] * images, "end"],
                    "images": [None, *(f"page_{place}" for place in range(images)), None],
                    "url": f"https://a.example/{index}.pdf",
                }
            ),
            "tiff": encoded(*(picture(index + place, 30 + place, 30) for place in range(images)), kind="TIFF"),
        }
    ),
    "text": lambda images: _table(
        {"text": Value("string"), "id": Value("string"), "url": Value("string"), "score": Value("float64")},
        lambda index: {
            "text": f"Text number {index}. " * 5,
            "id": str(index),
            "url": f"https://a.example/{index}",
            "score": 3.5,
        },
    ),
    "pdfa": lambda images: _archive(
        lambda index: {
            "pdf": encoded(picture(index, 60, 80), picture(index + 1, 60, 80), kind="PDF"),
            "json": _json(
                {
                    "pages": [
                        {
                            "lines": {"text": lines, "bbox": [[0.1, 0.1, 0.5, 0.05]] * len(lines)},
                            "words": {"text": []},
                            "images_bbox": [],
                        }
                        for lines in _pages(index, 2)
                    ]
                }
            ),
        }
    ),
    "idl": lambda images: _archive(
        lambda index: {
            "pdf": encoded(picture(index, 60, 80), kind="PDF"),
            "tif": encoded(picture(index, 60, 80), picture(index + 1, 60, 80).convert("1"), kind="TIFF"),
            "json": _json(
                {
                    "pages": [
                        {"text": lines, "bbox": [[0.1, 0.1, 0.5, 0.05]], "score": [0.9]} for lines in _pages(index, 2)
                    ]
                }
            ),
            "ocr": b"old text",
        }
    ),
    "rendered_text": lambda images: _archive(
        lambda index: {
            "png": encoded(picture(index, 64, 64)),
            "json": _json(
                {
                    "ocr_annotation": {"text": [f"Rendered {index}", "lines"], "bb_relative": [[[0, 0]] * 4] * 2},
                    "width": 64,
                }
            ),
        }
    ),
    "docmatix": _cauldron,
    "the_cauldron": _cauldron,
    "finevision": _finevision,
    "llava_onevision": lambda images: _table(
        {"id": Value("string"), "image": Image(), "conversations": _TURNS, "data_source": Value("string")},
        lambda index: {
            "id": str(index),
            "image": picture(index),
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": f"A picture, {index}."},
            ],
            "data_source": "sharegpt4v(coco)",
        },
    ),
    "pixmo_docs": lambda images: _table(
        {
            "image": Image(),
            "image_id": Value("string"),
            "questions": {"question": List(Value("string")), "answer": List(Value("string"))},
        },
        lambda index: {
            "image": picture(index),
            "image_id": str(index),
            "questions": {"question": ["How many?", "Which?"], "answer": [str(index), "This."]},
        },
    ),
    "pixmo_points": lambda images: _pixmo(
        _POINTS,
        lambda index: {"points": [{"x": 10.5, "y": 20.0 + index}] * (index % 3), "collection_method": "pointing"},
    ),
    "pixmo_count": lambda images: _pixmo(_POINTS, lambda index: {"points": [], "collection_method": "counting"}),
    "grit": lambda images: _table(
        {
            "key": Value("string"),
            "url": Value("string"),
            "caption": Value("string"),
            "width": Value("int64"),
            "height": Value("int64"),
            "noun_chunks": List(List(Value("float64"))),
            "ref_exps": List(List(Value("float64"))),
        },
        lambda index: {
            "key": str(index),
            "url": address(index),
            "caption": f"A bus by tree {index}",
            "width": 40,
            "height": 24,
            "noun_chunks": [[0.0, 5.0, 0.1, 0.2, 0.5, 0.9, 0.8]],
            "ref_exps": [],
        },
    ),
}


def write_stand_ins(recipe: OpenRecipe, folder: Path) -> Path:
    """A folder with a tiny data set for each source of a recipe, as `mm1 recipe --data` reads it."""
    for name, source in recipe.file.sources.items():
        (folder / name).mkdir(parents=True)
        _WRITERS[source.layout](round(source.images))(folder / name)
    return folder


def few_entries(entries: dict[str, Any], model: Path, output: Path) -> dict[str, Any]:
    """The entries of a recipe's settings file for a few steps of a tiny model."""
    arguments = {"max_steps": 3, "logging_steps": 1, "bf16": False, "use_cpu": True, "report_to": "none"}
    sizes = {"model": str(model), "output_dir": str(output), "sequence_length": 512, "resolution": 56, "batch_size": 4}
    return entries | sizes | {"lanes": 1, "window": 4, "arguments": entries["arguments"] | arguments}
