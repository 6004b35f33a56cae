"""A step that gets the files of the images that documents name: local files, WARC records, `data:` URLs and downloads."""

import os
from concurrent.futures import ThreadPoolExecutor

from datatrove.data import Document as EngineDocument
from datatrove.data import Media

from mm1_hf.corpus.bridge import Documents, image_of
from mm1_hf.corpus.downloads import Downloader, DownloadRules
from mm1_hf.corpus.steps import CountedStep
from mm1_hf.corpus.warc_images import WarcImages
from mm1_hf.data.documents import Unusable
from mm1_hf.data.wall import result_or_reason


# Images of one document, in bytes: what a task holds in memory is bounded by it.
MAX_DOCUMENT_BYTES = 64 * 2**20


class FetchImages(CountedStep):
    """
    Fills in the bytes of the images of documents, and drops images that cannot be had. An image is looked for in the WARC
    files of the pages first, and downloaded otherwise. The images of several documents are downloaded side by side, and the
    documents stay in their order.

    Args:
        locks: folder for the locks that count the requests to each host, which all tasks of a run share.
        rules: how images are downloaded. `None` downloads nothing: images on the web are dropped with the reason `"on the
            web"`.
        archives: folder of the index that [`mm1_hf.corpus.warc_images.IndexWarcImages`] wrote, if the pages are from WARC
            files.
    """

    batch_size = 16

    def __init__(
        self,
        locks: str | os.PathLike[str],
        rules: DownloadRules | None = None,
        archives: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__("images fetched")
        self.locks = os.fspath(locks)
        self.rules = rules
        self.archives = archives

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Passes the documents on, with the images that could be had."""
        self._downloader = None if self.rules is None else Downloader(self.rules, self.locks)
        max_bytes = (self.rules or DownloadRules()).max_bytes
        self._archives = None if self.archives is None else WarcImages(self.archives, max_bytes)
        with ThreadPoolExecutor(self.batch_size) as self._pool:
            yield from super().run(data, rank, world_size)

    def process_batch(self, documents: list[EngineDocument]) -> list[EngineDocument | Unusable]:
        """Fetches the images of several documents side by side, those of one document one after the other."""
        for document, fetched in zip(documents, self._pool.map(self._fetch, documents), strict=True):
            for image, found in fetched:
                if isinstance(found, Unusable):
                    self.drop_image(document, image, found)
                else:
                    image.media_bytes = found
                    self.stat_update("bytes fetched", value=len(found))
        return list(documents)

    def process(self, document: EngineDocument) -> EngineDocument:
        """Fetches the images of one document."""
        self.process_batch([document])
        return document

    def _fetch(self, document: EngineDocument) -> list[tuple[Media, bytes | Unusable]]:
        fetched: list[tuple[Media, bytes | Unusable]] = []
        held = 0
        for image in document.media:
            if image.media_bytes:
                continue
            name = image.url or image.path or ""
            if held > MAX_DOCUMENT_BYTES:
                why = f"{document.id}: its images before {name:.200} have more than {MAX_DOCUMENT_BYTES} bytes"
                fetched.append((image, Unusable("too large together", why)))
                continue
            content = result_or_reason(self._read, image, name[:200])
            if not isinstance(content, Unusable):
                held += len(content)
            fetched.append((image, content or Unusable("empty file", name[:200])))
        return fetched

    def _read(self, image: Media) -> bytes:
        if not image.url.startswith(("http://", "https://")):
            return image_of(image).read()
        if self._archives is not None and (content := self._archives.read(image.url)) is not None:
            return content
        if self._downloader is None:
            raise Unusable("on the web", image.url)
        return self._downloader.download(image.url)
