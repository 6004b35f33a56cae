"""Images that were crawled together with their pages: an index of the image records of WARC files, and reading by URL."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from datatrove.pipeline.base import PipelineStep
from warcio.archiveiterator import ArchiveIterator

from mm1_hf.corpus.atomic import whole_file
from mm1_hf.corpus.bridge import Documents
from mm1_hf.data.compression import is_broken
from mm1_hf.data.documents import Unusable


_ENTRY = np.dtype([("first", "<u8"), ("second", "<u8"), ("file", "<u4"), ("offset", "<u8")])
_MAPPED_BYTES = 2**16


class IndexWarcImages(PipelineStep):
    """
    Writes an index of the image records of WARC files. The only step of its stage.

    Args:
        files: the WARC files, in the same order in all tasks.
        folder: where the index goes.
    """

    type = "MM1 reader"
    name = "index of images in WARC files"

    def __init__(self, files: list[str], folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.files = files
        self.folder = os.fspath(folder)

    def run(self, data: Documents = None, rank: int = 0, world_size: int = 1) -> Documents:
        """Indexes the files of one task. Yields no documents."""
        entries = []
        for number in range(rank, len(self.files), world_size):
            entries += self._entries(number)
        # Of several records of a URL, the first one counts.
        table = np.array(sorted(entries), _ENTRY)
        with whole_file(Path(self.folder) / f"{rank:05d}.npy") as path, open(path, "wb") as file:
            np.save(file, table)
        if rank == 0:
            with whole_file(Path(self.folder) / "files.json") as path:
                path.write_text(json.dumps(self.files), encoding="utf-8")
        yield from ()

    def _entries(self, number: int) -> list[tuple[int, int, int, int]]:
        found = []
        with open(self.files[number], "rb") as file:
            archive = ArchiveIterator(file)
            try:
                for record in archive:
                    kind = record.rec_type
                    headers = record.http_headers
                    declared = (headers and headers.get_header("Content-Type")) or record.content_type or ""
                    if kind not in ("response", "resource") or not declared.strip().lower().startswith("image/"):
                        continue
                    status = headers.get_statuscode() if headers else "200"
                    url = record.rec_headers.get_header("WARC-Target-URI") or ""
                    if status == "200":
                        found.append(
                            (*_halves(url.strip("<>").partition("#")[0]), number, archive.get_record_offset())
                        )
                        self.stat_update("images")
                    else:
                        self.stat_update(f"dropped: HTTP status {status:.3}")
            # warcio raises errors of many types for archives that are cut off or broken.
            except Exception as error:
                if isinstance(error, OSError) and not is_broken(error):
                    raise
                # The rest cannot be read. The step that reads the file's pages counts it.
                self.stat_update("broken files")
        return found


class WarcImages:
    """
    Reads images by their URL.

    Args:
        folder: the folder of [`IndexWarcImages`].
        max_bytes: largest size of an image file, in bytes.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int) -> None:
        self._files = json.loads(Path(folder, "files.json").read_text(encoding="utf-8"))
        self._max_bytes = max_bytes
        self._tables = [
            np.load(file, mmap_mode="r" if file.stat().st_size > _MAPPED_BYTES else None)
            for file in sorted(Path(folder).glob("*.npy"))
        ]

    def read(self, url: str) -> bytes | None:
        """
        The content of an image, or `None` if no WARC file holds it.

        Args:
            url: the URL.

        Raises:
            Unusable: the image is too large.
        """
        first, second = _halves(url.partition("#")[0])
        for table in self._tables:
            place = _place(table, first)
            while place < len(table) and table[place]["first"] == first:
                if table[place]["second"] == second:
                    return self._record(table[place], url)
                place += 1
        return None

    def _record(self, entry: np.void, url: str) -> bytes:
        with open(self._files[int(entry["file"])], "rb") as file:
            file.seek(int(entry["offset"]))
            record = next(iter(ArchiveIterator(file)))
            content = record.content_stream().read(self._max_bytes + 1)
        if len(content) > self._max_bytes:
            raise Unusable("too large", f"{url:.200} has more than {self._max_bytes} bytes")
        return content


def _halves(url: str) -> tuple[int, int]:
    digest = hashlib.md5(url.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _place(table: np.ndarray, first: int) -> int:
    """The place of the first entry from this half on. numpy's own search would copy the whole column."""
    low, high = 0, len(table)
    while low < high:
        middle = (low + high) // 2
        if int(table[middle]["first"]) < first:
            low = middle + 1
        else:
            high = middle
    return low


__all__ = ["IndexWarcImages", "WarcImages"]
