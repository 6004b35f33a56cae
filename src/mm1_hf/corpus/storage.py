"""
Documents on their way between two stages of a run: Parquet files, one for each task, with the images' bytes.

The same documents give the same bytes, so that a task that was killed and repeated leaves what it would have left at first.
"""

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document as EngineDocument
from datatrove.data import Media
from datatrove.pipeline.base import PipelineStep

from mm1_hf.corpus.atomic import whole_file
from mm1_hf.corpus.bridge import Documents


_MEDIUM = pa.struct(
    [
        ("id", pa.string()),
        ("type", pa.int32()),
        ("url", pa.string()),
        ("alt", pa.string()),
        ("path", pa.string()),
        ("media_bytes", pa.large_binary()),
        ("metadata", pa.string()),
    ]
)
_SCHEMA = pa.schema(
    [("text", pa.string()), ("id", pa.string()), ("media", pa.list_(_MEDIUM)), ("metadata", pa.string())]
)
# A row group is held in memory by whoever writes or reads it.
_GROUP_BYTES, _GROUP_DOCUMENTS = 32 << 20, 256


class WriteDocuments(PipelineStep):
    """
    Writes documents with everything they hold, and passes them on.

    Args:
        folder: where the files are written, one for each task.
    """

    type = "MM1 storage"
    name = "write documents"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.folder = os.fspath(folder)

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Writes the file of one task."""
        with whole_file(Path(self.folder) / f"{rank:05d}.parquet") as path, pq.ParquetWriter(path, _SCHEMA) as writer:
            group: list[dict] = []
            size = 0
            for document in data or ():
                group.append(_row(document))
                size += len(document.text) + sum(len(medium.media_bytes or b"") for medium in document.media)
                if size >= _GROUP_BYTES or len(group) == _GROUP_DOCUMENTS:
                    writer.write_batch(pa.RecordBatch.from_pylist(group, _SCHEMA))
                    group, size = [], 0
                yield document
            if group:
                writer.write_batch(pa.RecordBatch.from_pylist(group, _SCHEMA))


class ReadDocuments(PipelineStep):
    """
    Reads the documents that [`WriteDocuments`] wrote in an earlier stage. With as many tasks as that stage had, every task
    reads its own file.

    Args:
        folder: the folder of the files.
        images: whether the bytes of the images are read. A stage that needs none of them is much faster without.
    """

    type = "MM1 storage"
    name = "read documents"

    def __init__(self, folder: str | os.PathLike[str], images: bool = True) -> None:
        super().__init__()
        self.folder = os.fspath(folder)
        self.images = images

    def run(self, data: Documents = None, rank: int = 0, world_size: int = 1) -> Documents:
        """Yields the documents of one task."""
        files = sorted(Path(self.folder).glob("[0-9]*.parquet"))
        for file in islice(files, rank, None, world_size):
            yield from read_documents(file, self.images)


def read_documents(file: str | os.PathLike[str], images: bool = True) -> Iterator[EngineDocument]:
    """
    The documents of one file.

    Args:
        file: a file that [`WriteDocuments`] wrote.
        images: whether the bytes of the images are read.
    """
    columns = ["text", "id", "metadata", "media"]
    if not images:
        leaves = [field.name for field in _MEDIUM if field.name != "media_bytes"]
        columns = [*columns[:3], *(f"media.list.element.{leaf}" for leaf in leaves)]
    with pq.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            for row in opened.read_row_group(group, columns).to_pylist():
                yield _document(row)


def _row(document: EngineDocument) -> dict:
    media = [
        {
            **{name: getattr(medium, name) for name in ("id", "type", "url", "alt", "path", "media_bytes")},
            "metadata": json.dumps(medium.metadata, sort_keys=True),
        }
        for medium in document.media
    ]
    metadata = json.dumps(document.metadata, sort_keys=True)
    return {"text": document.text, "id": document.id, "media": media, "metadata": metadata}


def _document(row: dict) -> EngineDocument:
    media = [Media(**{**medium, "metadata": json.loads(medium["metadata"])}) for medium in row["media"]]
    return EngineDocument(row["text"], row["id"], media, json.loads(row["metadata"]))
