"""
Reads text files record by record: JSON lines, JSON, CSV, TSV and plain text.

The readers of `datasets` are not used: they guess one type for each column, and so change or refuse values (the text
`"12"` becomes a number, `"NA"` becomes nothing), and one line that cannot be read ends the reading of all files. Here,
records of JSON and tables stay text, and what cannot be read is a record with an error message.
"""

import csv
import json
from collections.abc import Iterator
from io import BufferedReader
from typing import IO, Any

from datasets import Features, Value

from mm1_hf.data.compression import BROKEN, is_broken, open_expanded
from mm1_hf.data.json_files import CorruptFileError, json_records
from mm1_hf.data.raw_records import CORRUPT_FILE, CORRUPT_RECORD, ERROR, LINE, MAX_RECORD_BYTES


LINE_FEATURES = Features({LINE: Value("string"), ERROR: Value("string")})
TEXT_FEATURES = Features({"text": Value("string"), ERROR: Value("string")})
_BLOCK = 1 << 20

_WIDE = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def read_text_files(
    files: list[tuple[str, int]],
    form: str,
    sample_by: str = "document",
    field: str | None = None,
    delimiter: str | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Yields the records of text files. A record of a table or of JSON is JSON text under `__line__`, and a plain text is
    under `text`. What cannot be read has an error message under `__error__` instead: a line, a row or a text, or the
    rest of a file; then reading continues after it. A JSON file that is broken is refused, because what is wrong with it
    is found before any of its records is used.

    Args:
        files: path and modification time of each file. The time is not used here: it makes `datasets` notice that a
            file in its cache has changed.
        form: `"jsonl"`, `"json"`, `"csv"`, `"tsv"` or `"txt"`.
        sample_by: what is one record of plain text: a `"line"`, a `"paragraph"`, which ends at an empty line, or the
            whole `"document"`.
        field: for JSON files that are one object, the key of the list of records in it.
        delimiter: what separates the cells of a table; unset, a comma or, in TSV files, a tab.

    Raises:
        ValueError: `sample_by` is none of the three, or a JSON file is broken.
    """
    if sample_by not in ("line", "paragraph", "document"):
        raise ValueError(f"sample_by is {sample_by!r}; give line, paragraph or document.")
    column = "text" if form == "txt" else LINE
    for path, _ in files:
        try:
            with open_expanded(path) as file:
                if form == "json":
                    records = map(_decoded, json_records(_without_mark(file), field))
                elif form in ("csv", "tsv"):
                    records = _rows(file, delimiter or ("," if form == "csv" else "\t"))
                elif form == "txt":
                    records = _texts(file, sample_by)
                else:
                    records = _lines(_without_mark(file))
                for text, error in records:
                    yield {column: text, ERROR: None if error is None else f"{CORRUPT_RECORD}: {path}: {error}"}
        except (CorruptFileError, *BROKEN) as error:
            if isinstance(error, OSError) and not is_broken(error):
                raise
            if form == "json":
                raise ValueError(f"{path}: {str(error) or type(error).__name__}") from error
            yield {column: None, ERROR: f"{CORRUPT_FILE}: {path}: {str(error) or type(error).__name__}"}


_Found = tuple[str | None, str | None]


def _without_mark(file: BufferedReader) -> BufferedReader:
    """Skips the mark of UTF-8 at the start of a file, and refuses encodings of wide characters by their marks."""
    start = file.peek(4)[:4]
    for mark, name in _WIDE.items():
        if start.startswith(mark):
            raise CorruptFileError(f"the text is {name}; convert it to UTF-8, for example with iconv")
    if start.startswith(b"\xef\xbb\xbf"):
        file.read(3)
    return file


def _decoded(content: bytes) -> _Found:
    try:
        return content.decode(), None
    except UnicodeDecodeError as error:
        return None, f"{error}: {content[max(error.start - 20, 0) : error.start + 20]!r}"


def _raw_lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """The lines, with their ends; `None` for a line that is too long."""
    while line := file.readline(MAX_RECORD_BYTES):
        if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(_BLOCK)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line


def _too_long(what: str) -> _Found:
    return None, f"{what} has more than {MAX_RECORD_BYTES} bytes"


def _lines(file: IO[bytes]) -> Iterator[_Found]:
    for line in _raw_lines(file):
        if line is None:
            yield _too_long("a line")
        # JSON has no bare carriage returns inside of strings, so that they can only end lines.
        elif stripped := line.strip():
            for piece in stripped.split(b"\r"):
                if piece.strip():
                    yield _decoded(piece)


def _texts(file: BufferedReader, sample_by: str) -> Iterator[_Found]:
    file = _without_mark(file)
    if sample_by == "document":
        content = file.read(MAX_RECORD_BYTES + 1)
        yield _too_long("the text") if len(content) > MAX_RECORD_BYTES else _newlines(_decoded(content))
        return
    paragraph, size = [], 0
    for line in _raw_lines(file):
        size += MAX_RECORD_BYTES + 1 if line is None else len(line)
        ends = sample_by == "line" or line is None or not line.strip()
        if line is not None and size <= MAX_RECORD_BYTES:
            paragraph.append(line)
        if ends:
            yield from _text_of(b"".join(paragraph).rstrip(b"\r\n"), size, sample_by)
            paragraph, size = [], 0
    yield from _text_of(b"".join(paragraph), size, sample_by)


def _text_of(content: bytes, size: int, sample_by: str) -> Iterator[_Found]:
    if size > MAX_RECORD_BYTES:
        yield _too_long(f"a {sample_by}")
    elif content.strip():
        yield _newlines(_decoded(content))


def _newlines(found: _Found) -> _Found:
    text, error = found
    return (None if text is None else text.replace("\r\n", "\n").replace("\r", "\n")), error


def _rows(file: BufferedReader, delimiter: str) -> Iterator[_Found]:
    """The rows of a table as JSON objects of texts. An empty cell is `null`."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    # Bytes that are not UTF-8 become lone surrogates, so that only their row is refused.
    lines = (
        "" if line is None else line.decode("utf-8", "surrogateescape") for line in _raw_lines(_without_mark(file))
    )
    rows = csv.reader(lines, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield None, f"line {rows.line_num}: {error}"
            continue
        if header is None:
            header = row or None
            if len(set(row)) < len(row):
                raise CorruptFileError(f"the first line names a column twice: {', '.join(row)!r:.200}")
        elif len(row) > len(header):
            yield None, f"line {rows.line_num}: a row has {len(row)} cells, but the first line names {len(header)}"
        elif row:
            cells = [*(cell or None for cell in row), *[None] * (len(header) - len(row))]
            yield _decoded(
                json.dumps(dict(zip(header, cells, strict=True)), ensure_ascii=False).encode(
                    "utf-8", "surrogateescape"
                )
            )
