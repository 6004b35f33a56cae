"""Reads web pages from folders of HTML files, WARC files and Parquet files, and makes documents of them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document as EngineDocument
from warcio.archiveiterator import ArchiveIterator

from mm1_hf.corpus.bridge import to_engine
from mm1_hf.corpus.encodings import decode_page
from mm1_hf.corpus.html import html_document
from mm1_hf.corpus.input_files import FileReader, InputFile, require_inside
from mm1_hf.corpus.page_cost import MAX_PAGE_BYTES
from mm1_hf.corpus.steps import Found
from mm1_hf.data.compression import is_broken
from mm1_hf.data.documents import Unusable
from mm1_hf.data.raw_records import CORRUPT_FILE, WRONG_LAYOUT
from mm1_hf.data.wall import around_record, result_or_reason


HTML = (".html", ".htm", ".xhtml")
WARC = (".warc", ".warc.gz")
PARQUET = (".parquet",)
PAGE_FILES = (*HTML, *WARC, *PARQUET)

# Columns of Parquet files; the first of each that a file has is read.
_PAGE_COLUMNS, _URL_COLUMNS = ("html", "raw_html", "content", "page"), ("url", "uri", "target_uri", "warc_target_uri")
_PAGES_AT_ONCE = 16
_PAGE_TYPES = ("text/html", "application/xhtml+xml")


class ReadPages(FileReader):
    """
    Reads web pages: HTML files, the responses of WARC files, and Parquet files with a column of HTML (`html`, `raw_html`,
    `content` or `page`) and one of the URL (`url`, `uri`, `target_uri` or `warc_target_uri`). A document is the text of the
    page's body with the images in place, without what surrounds the body. It is named after its file, and after its URL if
    it has one, which is also in its metadata.

    A task reads whole files, so there should be as many as tasks.

    Args:
        inputs: files and folders.

    Raises:
        ValueError: an input does not exist or holds no such file.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        super().__init__("read pages", inputs, PAGE_FILES)

    def read(self, rank: int, world_size: int) -> Iterator[Found]:
        """The documents of one task."""
        for file in self.files(rank, world_size):
            yield from pages_of(file)


def pages_of(file: InputFile) -> Iterator[Found]:
    """
    The documents of a file of pages. What cannot become one is a pair of an empty document and the reason.

    Args:
        file: an HTML, WARC or Parquet file.
    """
    try:
        require_inside(file)
        yield from _read_file(file)
    except Unusable as why:
        # Raised for what is wrong with the file as a whole, maybe after some of its pages.
        yield EngineDocument("", file.name), why


def _read_file(file: InputFile) -> Iterator[Found]:
    name = file.name.lower()
    if name.endswith(HTML):
        with open(file.path, "rb") as opened:
            content = opened.read(MAX_PAGE_BYTES + 1)
        yield _page(content, None, file.path, file.folder, file.name)
    elif name.endswith(WARC):
        yield from _read_warc(file)
    else:
        yield from _read_parquet(file)


def _page(page: bytes | str, declared: str | None, base: str, folder: str, name: str) -> Found:
    """The document of a page, or the reason why there is none."""
    is_url = re.match("https?://", base) is not None
    try:
        with around_record(name):
            text = page if isinstance(page, str) else decode_page(page, declared)
            document = to_engine(replace(html_document(text, base, folder), name=name))
    except Unusable as why:
        return EngineDocument("", name), why
    if is_url:
        document.metadata["url"] = base
    return document


def _web_page(page: bytes | str, declared: str | None, url: str, name: str) -> Found:
    """The same for a page of the web, which has no local files."""
    if not re.match("https?://", url):
        return EngineDocument("", name), _no_web_address(url, name)
    return _page(page, declared, url, "", f"{name} {url}")


def _no_web_address(url: str, name: str) -> Unusable:
    return Unusable("no web address", f"{name}: {url!r:.200}")


def _read_warc(file: InputFile) -> Iterator[Found]:
    with open(file.path, "rb") as opened:
        try:
            for number, record in enumerate(ArchiveIterator(opened)):
                # Others are requests, or answers of other protocols, such as `dns`.
                if record.rec_type != "response" or not (record.content_type or "").startswith("application/http"):
                    continue
                name = f"{file.name}/{number}"
                url = (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<>")
                headers = record.http_headers
                # warcio reads those of http and https alone.
                if headers is None:
                    yield EngineDocument("", name), _no_web_address(url, name)
                    continue
                kind, declared = _content_type(headers.get_header("Content-Type") or "")
                if kind not in _PAGE_TYPES:
                    continue
                status = headers.get_statuscode()
                if status != "200":
                    # The archive is not trusted, and reasons must stay few.
                    reason = f"HTTP status {status}" if re.fullmatch("[1-5][0-9]{2}", status) else "no HTTP status"
                    yield EngineDocument("", name), Unusable(reason, name)
                    continue
                content = result_or_reason(record.content_stream().read, MAX_PAGE_BYTES + 1, name)
                if isinstance(content, Unusable):
                    yield EngineDocument("", name), content
                else:
                    yield _web_page(content, declared, url, name)
        # warcio raises errors of many types for archives that are cut off or broken.
        except Exception as error:
            if isinstance(error, OSError) and not is_broken(error):
                raise
            raise Unusable(CORRUPT_FILE, f"{file.name}: {str(error) or type(error).__name__}"[:300]) from error


def _content_type(header: str) -> tuple[str, str | None]:
    charset = re.search(r"""charset\s*=\s*["']?([\w.:-]+)""", header, re.IGNORECASE)
    return header.partition(";")[0].strip().lower(), charset and charset[1]


def _read_parquet(file: InputFile) -> Iterator[Found]:
    try:
        with pq.ParquetFile(file.path) as opened:
            page, url = (
                next((column for column in columns if column in opened.schema_arrow.names), None)
                for columns in (_PAGE_COLUMNS, _URL_COLUMNS)
            )
            if page is None or url is None:
                raise Unusable(
                    WRONG_LAYOUT,
                    f"{file.name} has the columns {opened.schema_arrow.names}, but not one of {_PAGE_COLUMNS} and one of "
                    f"{_URL_COLUMNS}",
                )
            number = 0
            for batch in opened.iter_batches(_PAGES_AT_ONCE, columns=[page, url]):
                for row in batch.to_pylist():
                    yield _row(row, page, url, f"{file.name}/{number}")
                    number += 1
    except pa.ArrowException as error:
        raise Unusable(CORRUPT_FILE, f"{file.name}: {error}"[:300]) from error


def _row(row: Mapping[str, Any], page: str, url: str, name: str) -> Found:
    if not isinstance(row[page], str | bytes) or not isinstance(row[url], str):
        return EngineDocument("", name), Unusable(WRONG_LAYOUT, f"{name}: {page} and {url} must be texts")
    return _web_page(row[page], None, row[url], name)
