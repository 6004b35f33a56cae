"""The first step of pages from documents: PDF files, and archives of documents as in PDFA and IDL."""

from collections.abc import Iterator, Mapping, Sequence

from datatrove.data import Document as EngineDocument

from mm1_hf.corpus.input_files import FileReader, InputFile, require_inside
from mm1_hf.corpus.pages.page import Page
from mm1_hf.corpus.pages.pdf import PdfReader
from mm1_hf.corpus.pages.records import page_document
from mm1_hf.corpus.pages.region_questions import region_questions
from mm1_hf.corpus.pages.scanned import scanned_pages
from mm1_hf.corpus.record_files import ARCHIVES
from mm1_hf.corpus.steps import Found
from mm1_hf.data.archives import read_archives
from mm1_hf.data.documents import Unusable
from mm1_hf.data.media import NO_IMAGE
from mm1_hf.data.raw_records import FOLDER, WRONG_LAYOUT, Record, unwrapped
from mm1_hf.grounding.text import RegionFormat


PDF = (".pdf",)
DOCUMENT_FILES = (*PDF, *ARCHIVES)

_Named = Iterator[tuple[str, Page | Unusable]]


class ReadDocumentPages(FileReader):
    """
    Reads the pages of PDF files with a text layer, and of WebDataset archives of documents: of a sample with `tif` and
    `json` the scanned pages (IDL), and of any other its `pdf` (PDFA). A document is the picture of a page, and its text.

    A task reads whole files, so there should be as many as tasks.

    Args:
        inputs: files and folders.
        longest_side: the longer side of the page pictures, in pixels.

    Raises:
        ValueError: an input does not exist or holds no such file.
    """

    def __init__(self, inputs: Sequence[str], longest_side: int) -> None:
        super().__init__("read pages of documents", inputs, DOCUMENT_FILES)
        self.longest_side = longest_side

    def read(self, rank: int, world_size: int) -> Iterator[Found]:
        """The pages of one task."""
        form = RegionFormat()
        with PdfReader(self.longest_side) as reader:
            for file in self.files(rank, world_size):
                for name, page in self._pages(file, reader):
                    if isinstance(page, Unusable):
                        yield EngineDocument("", name), page
                    else:
                        yield page_document(page, page.text, region_questions(page, form))

    def _pages(self, file: InputFile, reader: PdfReader) -> _Named:
        try:
            require_inside(file)
        except Unusable as why:
            yield file.name, why
            return
        if file.name.lower().endswith(PDF):
            yield from reader.pages(file.path, file.name)
            return
        for number, sample in enumerate(read_archives([(file.path, 0)])):
            name = f"{file.name}/{number}"
            try:
                record = unwrapped({**sample, FOLDER: file.folder}, name)
            except Unusable as why:
                yield name, why
            else:
                yield from self._sample_pages(record, name, reader)

    def _sample_pages(self, record: Record, name: str, reader: PdfReader) -> _Named:
        scan, pdf, known = record.get("tif", record.get("tiff")), record.get("pdf"), record.get("json")
        if scan is not None and known is not None:
            pages = known.get("pages") if isinstance(known, Mapping) else None
            if not (isinstance(pages, list) and all(isinstance(page, Mapping) for page in pages)):
                yield name, Unusable(WRONG_LAYOUT, f"{name}: json holds no list of objects under pages")
            else:
                yield from scanned_pages(scan, pages, name, self.longest_side)
        elif pdf is not None:
            yield from reader.pages(pdf, name)
        else:
            yield name, Unusable(NO_IMAGE, f"{name}: a sample holds neither pdf, nor tif with json")
