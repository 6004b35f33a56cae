"""
Steps that drop what repeats in the whole data set: images that occur too often, and all but one of equal documents.

They take three stages, with [`mm1_hf.corpus.repeat_counts`] between them: [`CountHashes`] writes the hashes of the documents
that pass, [`FindRepeats`] finds those that occur often, and [`DropRepeatedImages`] or [`DropDuplicates`] look them up.

The paper drops images whose URL or MD5 hash occurs more than ten times. Here repeated addresses are dropped first, so
that they need not be downloaded. Their files are then not counted among the hashes of files.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import count

from datatrove.data import Document as EngineDocument
from datatrove.data import Media
from datatrove.pipeline.base import PipelineStep

from mm1_hf.corpus.bridge import Documents
from mm1_hf.corpus.repeat_counts import RepeatedHashes, RunWriter, write_repeated
from mm1_hf.corpus.steps import CountedStep
from mm1_hf.data.documents import Unusable


# Documents of a task are numbered below this.
_POSITION_BITS = 40

KeyOfImage = Callable[[Media], bytes | None]
HashesOfDocument = Callable[[EngineDocument], Iterable[bytes]]


class CountHashes(PipelineStep):
    """
    Writes hashes of the documents that pass, for [`FindRepeats`], and passes the documents on.

    Args:
        folder: where the files go.
        hashes_of: the hashes of a document, of 16 bytes each. A document that must be counted once has to yield a hash
            once.
        owned: whether the document owns its hashes, as [`DropDuplicates`] needs it.
    """

    type = "MM1 repeats"
    name = "count hashes"

    def __init__(self, folder: str | os.PathLike[str], hashes_of: HashesOfDocument, owned: bool = False) -> None:
        super().__init__()
        self.folder = os.fspath(folder)
        self.hashes_of = hashes_of
        self.owned = owned

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Writes the hashes of one task."""
        writer = RunWriter(self.folder, rank, owned=self.owned)
        for index, document in enumerate(data or ()):
            with self.track_time():
                for digest in self.hashes_of(document):
                    writer.add(digest, _key(document), _position(rank, index))
                    self.stat_update("hashes")
            yield document
        writer.close()


class FindRepeats(PipelineStep):
    """
    Finds the hashes that occur often among those that all tasks of [`CountHashes`] wrote in an earlier stage. Its own
    stage may have any number of tasks: every task counts one range of the hashes.

    Args:
        runs: folder of the hashes.
        output: where the repeated hashes go.
        limit: hashes that occur more often than this are repeated.
        owned: whether documents own their hashes.
    """

    type = "MM1 repeats"
    name = "find repeats"

    def __init__(
        self, runs: str | os.PathLike[str], output: str | os.PathLike[str], limit: int, owned: bool = False
    ) -> None:
        super().__init__()
        self.runs, self.output = os.fspath(runs), os.fspath(output)
        self.limit = limit
        self.owned = owned

    def run(self, data: Documents = None, rank: int = 0, world_size: int = 1) -> Documents:
        """Counts one range. Documents of steps before it pass."""
        yield from data or ()
        with self.track_time("range"):
            different, repeated = write_repeated(
                self.runs, self.output, self.limit, task=rank, tasks=world_size, owned=self.owned
            )
        self.stat_update("different hashes", value=different)
        self.stat_update("repeated hashes", value=repeated)


class DropRepeatedImages(CountedStep):
    """
    Drops the images whose key is repeated in the data set.

    Args:
        folder: folder of the repeated hashes.
        key: the key of an image that was counted.
        what: what the key is of, for the step's name.
    """

    def __init__(self, folder: str | os.PathLike[str], key: KeyOfImage, what: str = "images") -> None:
        super().__init__(f"repeated {what}")
        self.folder = os.fspath(folder)
        self.key = key

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Passes the documents on without those images. Counts that are missing end the task."""
        self._repeated = RepeatedHashes(self.folder)
        yield from super().run(data, rank, world_size)

    def process(self, document: EngineDocument) -> EngineDocument:
        """Drops the images of one document."""
        for image in list(document.media):
            key = self.key(image)
            if key is not None and key in self._repeated:
                self.drop_image(document, image, Unusable("repeated in the data set", image.url or image.path or ""))
        return document


class DropDuplicates(CountedStep):
    """
    Drops all but one of the documents with the same hash. The one that stays is chosen by a hash of its id, which does not
    depend on the number of tasks. The documents must be those that were counted, in the same order and the same tasks.

    Args:
        name: what the step does.
        folder: folder of the repeated hashes, which documents own.
        hashes_of: the hashes of a document that were counted. A document is a duplicate by any of them.
        reason: the reason to drop a duplicate.
    """

    def __init__(
        self, name: str, folder: str | os.PathLike[str], hashes_of: HashesOfDocument, reason: str = "duplicate"
    ) -> None:
        super().__init__(name)
        self.folder = os.fspath(folder)
        self.hashes_of = hashes_of
        self.reason = reason

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Passes on the documents that stay. Counts that are missing end the task."""
        self._repeated = RepeatedHashes(self.folder)
        self._positions = count(_position(rank, 0))
        yield from super().run(data, rank, world_size)

    def process(self, document: EngineDocument) -> EngineDocument:
        """Whether the next document of the task stays."""
        own = (_key(document), next(self._positions))
        owners = (self._repeated.owner(digest) for digest in self.hashes_of(document))
        if any(owner is not None and owner != own for owner in owners):
            raise Unusable(self.reason, document.id)
        return document


def text_hashes(document: EngineDocument) -> Iterator[bytes]:
    """
    The hash by which documents with the same text are found. White space and case do not count.

    Args:
        document: the document.
    """
    words = " ".join(document.text.lower().split())
    yield hashlib.md5(words.encode("utf-8", "surrogatepass")).digest()


def _key(document: EngineDocument) -> int:
    return int.from_bytes(hashlib.md5(document.id.encode("utf-8", "surrogatepass")).digest()[:8], "little")


def _position(rank: int, index: int) -> int:
    return rank << _POSITION_BITS | index
