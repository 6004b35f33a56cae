"""
Writes the finished data set of a run: shards in Parquet or WebDataset that `mm1_hf.data.readers.read` reads.

Every task writes shards of its own, `00000-000.parquet`, `00000-001.parquet` and so on. The same documents give the same
bytes.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value
from datatrove.data import Document as EngineDocument

from mm1_hf.corpus.atomic import whole_file
from mm1_hf.corpus.bridge import Documents, from_engine, image_of
from mm1_hf.corpus.steps import CountedStep
from mm1_hf.data.documents import Unusable
from mm1_hf.data.layouts import to_record
from mm1_hf.data.wall import result_or_reason


FileFormat = Literal["parquet", "webdataset"]

DOCUMENT_FEATURES = Features(
    {
        "kind": Value("string"),
        "name": Value("string"),
        "parts": List(Features({"text": Value("string"), "image": Image()})),
    }
)
TEXT_FEATURES = Features({"text": Value("string"), "name": Value("string")})
CAPTION_FEATURES = Features({"image": Image(), "text": Value("string"), "name": Value("string")})

_EXTENSIONS = {"parquet": "parquet", "webdataset": "tar"}
# A run is shuffled and resumed by shards. A reader holds a whole row group in memory.
_SHARD_BYTES, _GROUP_BYTES, _GROUP_RECORDS = 512 << 20, 16 << 20, 100
_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


def document_record(document: EngineDocument) -> dict[str, Any]:
    """
    A document in the layout `documents`.

    Args:
        document: the document, whose images are bytes or addresses.
    """
    return to_record(from_engine(document))


def text_record(document: EngineDocument) -> dict[str, Any]:
    """
    A document in the layout `text`.

    Args:
        document: a document without images.
    """
    return {"text": document.text, "name": document.id}


def caption_record(document: EngineDocument) -> dict[str, Any]:
    """
    A document in the layout `caption`.

    Args:
        document: a document of one image and its caption.
    """
    (medium,) = document.media
    image = {"bytes": image_of(medium).read(), "path": None}
    return {"image": image, "text": document.text, "name": document.id}


class WriteDataset(CountedStep):
    """
    Writes documents as records of a layout, and passes them on. A document that does not become a record, for example
    because an image cannot be read, is dropped and counted.

    In WebDataset, a sample has the record as `json`, except for its images, which are files of their own, and its column
    `text`. An image of a document in the layout `documents` is a file `N.EXTENSION`, and its part names it.

    Args:
        folder: where the shards are written.
        format: their format.
        record: makes a record of a document.
        features: the columns of the records.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        format: FileFormat = "parquet",
        record: Callable[[EngineDocument], dict[str, Any]] = document_record,
        features: Features = DOCUMENT_FEATURES,
    ) -> None:
        super().__init__(f"write {format}")
        self.folder = os.fspath(folder)
        self.format: FileFormat = format
        self.record = record
        self.features = features
        self._shards: _Shards | None = None

    def process_batch(self, documents: list[EngineDocument]) -> list[EngineDocument | Unusable]:
        """Writes the record of every document. A failure of the disk ends the task."""
        results: list[EngineDocument | Unusable] = []
        for document in documents:
            record = result_or_reason(self.record, document, document.id)
            if not isinstance(record, Unusable) and self._shards is not None:
                self._shards.write(record)
            results.append(record if isinstance(record, Unusable) else document)
        return results

    def process(self, document: EngineDocument) -> EngineDocument:
        """Not used: documents are written in batches."""
        return document

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Writes the shards of one task."""
        with _Shards(Path(self.folder), rank, self.format, self.features) as self._shards:
            yield from super().run(data, rank, world_size)
        self._shards = None


class _Shard(Protocol):
    size: int

    def write(self, record: dict[str, Any], key: str) -> None: ...

    def close(self) -> None: ...


class _Shards:
    """The shards of one task, of which one is open at a time."""

    def __init__(self, folder: Path, rank: int, format: FileFormat, features: Features) -> None:
        self._folder, self._rank, self._format, self._features = folder, rank, format, features
        self._records = self._number = 0
        self._shard: _Shard | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *error: Any) -> None:
        # Within the block of `whole_file`, which removes the file if there is an error.
        if self._shard is not None:
            self._stack.callback(self._shard.close)
        self._stack.__exit__(*error)

    def write(self, record: dict[str, Any]) -> None:
        if self._shard is None:
            name = f"{self._rank:05d}-{self._number:03d}.{_EXTENSIONS[self._format]}"
            path = self._stack.enter_context(whole_file(self._folder / name))
            self._shard = _Parquet(path, self._features) if self._format == "parquet" else _Archive(path)
            self._number += 1
        self._shard.write(record, f"{self._rank:05d}-{self._records:08d}")
        self._records += 1
        if self._shard.size >= _SHARD_BYTES:
            self._shard.close()
            self._shard = None
            self._stack.close()


class _Parquet:
    def __init__(self, path: Path, features: Features) -> None:
        self._schema = features.arrow_schema
        self._writer = pq.ParquetWriter(path, self._schema)
        self._group: list[dict[str, Any]] = []
        self._group_size = self.size = 0

    def write(self, record: dict[str, Any], key: str) -> None:
        self._group.append(record)
        size = _size(record)
        self.size += size
        self._group_size += size
        if self._group_size >= _GROUP_BYTES or len(self._group) == _GROUP_RECORDS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._group:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._group, self._schema))
            self._group, self._group_size = [], 0


class _Archive:
    def __init__(self, path: Path) -> None:
        self._file = tarfile.TarFile(path, "w", format=tarfile.USTAR_FORMAT)
        self.size = 0

    def write(self, record: dict[str, Any], key: str) -> None:
        for extension, content in sample_files(record).items():
            # Times and owners of a new member are 0.
            member = tarfile.TarInfo(f"{key}.{extension}")
            member.size = len(content)
            self._file.addfile(member, io.BytesIO(content))
            self.size += len(content)

    def close(self) -> None:
        self._file.close()


def sample_files(record: Mapping[str, Any]) -> dict[str, bytes]:
    """
    The files of a record in a WebDataset archive, by their extensions.

    Args:
        record: a record, whose images are `{"bytes": content, "path": None}`, or `{"bytes": None, "path": address}`, which
            stays an address.
    """
    files: dict[str, bytes] = {}
    rest = {}
    for column, value in record.items():
        if column == "parts":
            rest[column] = [_part(part, files) for part in value]
        elif _is_image(value):
            files[_extension(value["bytes"])] = value["bytes"]
        elif column != "text":
            rest[column] = value
    if "text" in record:
        # The usual extension of captions; the layout of texts reads a column `text`.
        files["txt" if files else "text"] = record["text"].encode()
    return {"json": json.dumps(rest, ensure_ascii=False, sort_keys=True).encode(), **files}


def _part(part: Mapping[str, Any], files: dict[str, bytes]) -> dict[str, str]:
    image = part["image"]
    if image is None:
        return {"text": part["text"]}
    if not _is_image(image):
        return {"image": image["path"]}
    name = f"{len(files)}.{_extension(image['bytes'])}"
    files[name] = image["bytes"]
    return {"image": name}


def _is_image(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes)


def _extension(content: bytes) -> str:
    return next((extension for magic, extension in _MAGIC.items() if content.startswith(magic)), "img")


def _size(value: Any) -> int:
    """Roughly the number of bytes of a record."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 8
