"""Reads records from files of data sets, Parquet, JSON lines and WebDataset archives, and makes documents of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document as EngineDocument

from mm1_hf.corpus.bridge import to_engine
from mm1_hf.corpus.input_files import FileReader, InputFile, require_inside
from mm1_hf.corpus.steps import Found
from mm1_hf.data.archives import read_archives
from mm1_hf.data.documents import Document, Unusable
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.raw_records import CORRUPT_FILE, FOLDER, READER_KEYS, WRONG_LAYOUT, Record, unwrapped
from mm1_hf.data.record_documents import columns_of
from mm1_hf.data.tables import with_folder
from mm1_hf.data.text_files import read_text_files
from mm1_hf.data.wall import around_record


PARQUET = (".parquet",)
LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.bz2", ".jsonl.xz")
ARCHIVES = (".tar", ".tar.gz", ".tgz")
RECORD_FILES = (*PARQUET, *LINES, *ARCHIVES)

_ROWS_AT_ONCE = 16


class ReadPairs(FileReader):
    """
    Reads images with captions: Parquet, JSON lines or WebDataset, in the columns of the layout `caption`. A document has the
    kind `"caption"`, and is named by its file and its number in it. Images stay as they are given: bytes, a path inside of
    the input, or an address.

    A task reads whole files, so there should be as many as tasks.

    Args:
        inputs: files and folders.
        image_column: column of the image or of its address, if it is another than the layout looks for.
        text_column: column of the caption, if it is another.

    Raises:
        ValueError: an input does not exist or holds no such file.
    """

    def __init__(self, inputs: Sequence[str], image_column: str | None = None, text_column: str | None = None) -> None:
        super().__init__("read pairs", inputs, RECORD_FILES)
        self.read_record = partial(_pair, image_column=image_column, text_column=text_column)

    def read(self, rank: int, world_size: int) -> Iterator[Found]:
        """The documents of one task."""
        for file in self.files(rank, world_size):
            yield from documents_of(file, self.read_record)


def documents_of(file: InputFile, read_record: Callable[[Record, str], Document]) -> Iterator[Found]:
    """
    The documents of a file of records. What cannot become one is a pair of an empty document and the reason.

    Args:
        file: a Parquet, JSON-lines, WebDataset or text file.
        read_record: makes a document of a record; the second argument is the record's name.
    """
    try:
        require_inside(file)
        for number, record in enumerate(_records(file)):
            name = f"{file.name}/{number}"
            try:
                with around_record(name):
                    found = read_record(record, name)
                    # Names of records need not differ; those of documents must.
                    document = to_engine(Document(found.kind, found.parts, name))
            except Unusable as why:
                yield EngineDocument("", name), why
            else:
                yield document
    except Unusable as why:
        yield EngineDocument("", file.name), why


def _records(file: InputFile) -> Iterator[Record]:
    name = file.name.lower()
    if name.endswith(PARQUET):
        yield from _rows(file)
        return
    if name.endswith(ARCHIVES):
        found = read_archives([(file.path, 0)])
    else:
        found = read_text_files([(file.path, 0)], "txt" if name.endswith(".txt") else "jsonl")
    yield from ({**record, FOLDER: file.folder} for record in found)


def _rows(file: InputFile) -> Iterator[Record]:
    try:
        with pq.ParquetFile(file.path) as opened:
            names = [name for name in opened.schema_arrow.names if name not in READER_KEYS]
            for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=names):
                yield from with_folder(pa.Table.from_batches([batch]), file.folder).to_pylist()
    except pa.ArrowException as error:
        raise Unusable(CORRUPT_FILE, f"{file.name}: {error}"[:300]) from error


def _pair(record: Record, name: str, image_column: str | None, text_column: str | None) -> Document:
    if image_column is None and text_column is None:
        return LAYOUTS["caption"](record, name)
    record = unwrapped(record, name)
    inner = record.get("json")
    found = {**(inner if isinstance(inner, Mapping) else {}), **record}
    renamed = {FOLDER: record[FOLDER]}
    for column, meant in ((image_column, "image"), (text_column, "caption")):
        if column is not None and column not in found:
            raise Unusable(WRONG_LAYOUT, f"{name}: the record has the columns {columns_of(record)}, but not {column}")
        if column is not None:
            renamed[meant] = found[column]
    # The column that is not named is found by the layout among the others.
    rest = found if image_column is None or text_column is None else {}
    taken = {image_column, text_column, FOLDER, *(("json",) if text_column is not None else ())}
    return LAYOUTS["caption"]({**{key: value for key, value in rest.items() if key not in taken}, **renamed}, name)
