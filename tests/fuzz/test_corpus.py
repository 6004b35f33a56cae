"""What broke a reader once, one small file each in `corpus/KIND/`: it is refused, soon and in little memory."""

import json
from pathlib import Path

import pytest
from fuzzing import CORPUS, limits
from tiny import tiny_mm1

from mm1_hf import MM1ImageProcessor
from mm1_hf.convert import convert_axlearn, convert_gguf
from mm1_hf.corpus.html import html_document
from mm1_hf.data.archives import read_archives
from mm1_hf.data.documents import Unusable
from mm1_hf.data.examples import ChatEncoder
from mm1_hf.data.layouts import LAYOUTS


def read_image(path: Path, folder: Path) -> None:
    MM1ImageProcessor(size={"height": 28, "width": 28})([[path.read_bytes()]], return_tensors="pt")


def read_page(path: Path, folder: Path) -> None:
    html_document(path.read_bytes(), str(path))


def read_record(path: Path, folder: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    document = LAYOUTS[case["layout"]]({"__folder__": str(folder), **case["record"]}, "a record")
    (examples,) = ChatEncoder(tiny_mm1()[1], sequence_length=256).encode([document])
    if isinstance(examples, Unusable):
        raise examples


def read_archive(path: Path, folder: Path) -> None:
    for sample in read_archives([(str(path), 0)]):
        LAYOUTS["caption"](sample, "a sample")


def read_checkpoint(path: Path, folder: Path) -> None:
    (convert_gguf if path.suffix == ".gguf" else convert_axlearn)(path, folder / "converted")


READ = {
    "images": read_image,
    "pages": read_page,
    "records": read_record,
    "archives": read_archive,
    "checkpoints": read_checkpoint,
}
FILES = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_broke_a_reader_is_refused(path, tmp_path):
    with limits(seconds=10, growth_mb=512), pytest.raises(ValueError):
        READ[path.parent.name](path, tmp_path)


def test_every_kind_of_reader_has_a_file():
    assert {path.parent.name for path in FILES} == set(READ)
