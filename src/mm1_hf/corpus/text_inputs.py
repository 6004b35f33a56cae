"""Reads texts: web pages without their images, and files of records that have texts."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from mm1_hf.corpus.bridge import KIND
from mm1_hf.corpus.input_files import FileReader, InputFile
from mm1_hf.corpus.page_files import PAGE_FILES, pages_of
from mm1_hf.corpus.record_files import LINES, PARQUET, documents_of
from mm1_hf.corpus.steps import Found
from mm1_hf.data.documents import Document
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.raw_records import Record, unwrapped


PLAIN = (".txt",)
TEXT_FILES = (*PAGE_FILES, *LINES, *PLAIN)


class ReadTexts(FileReader):
    """
    Reads texts: HTML and WARC files and Parquet files of pages as [`mm1_hf.corpus.page_files.ReadPages`] does, without the
    images; Parquet files and JSON lines with a column `text`; and text files, each of which is one text.

    A task reads whole files, so there should be as many as tasks.

    Args:
        inputs: files and folders.

    Raises:
        ValueError: an input does not exist or holds no such file.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        super().__init__("read texts", inputs, TEXT_FILES)

    def read(self, rank: int, world_size: int) -> Iterator[Found]:
        """The documents of one task."""
        for file in self.files(rank, world_size):
            if _holds_records(file):
                yield from documents_of(file, _text)
            else:
                for found in pages_of(file):
                    document = found[0] if isinstance(found, tuple) else found
                    document.media = []
                    document.metadata[KIND] = "text"
                    yield found


def _holds_records(file: InputFile) -> bool:
    name = file.name.lower()
    if not name.endswith(PARQUET):
        return name.endswith((*LINES, *PLAIN))
    try:
        with pq.ParquetFile(file.path) as opened:
            return "text" in opened.schema_arrow.names
    except pa.ArrowException:
        return False


def _text(record: Record, name: str) -> Document:
    record = unwrapped(record, name)
    # Sets of texts hold much beside the text.
    return LAYOUTS["text"]({key: value for key, value in record.items() if key == "text"}, name)
