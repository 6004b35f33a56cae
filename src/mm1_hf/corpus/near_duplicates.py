"""
Drops all but one of documents with nearly the same text, by MinHash (MM1, appendix A.2), with datatrove's implementation: 14
bands of 8 hashes of all runs of five words, so that documents that share 80 % of these runs are found with a probability of
92 %, and those that share half of them with 5 %.

datatrove keeps a document of each group that depends on the number of tasks. Here it is the one with the smallest hash of
its id, so that the result is the same set for any number of tasks.

Finding equal bands is done in files that are sorted; the groups are joined in the memory of one task, which takes about 200
bytes for each document that has a near-duplicate.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as EngineDocument
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from numpy.typing import NDArray

from mm1_hf.corpus.atomic import whole_file
from mm1_hf.corpus.bridge import Documents
from mm1_hf.corpus.stages import Stage, work_folder
from mm1_hf.corpus.steps import CountedStep
from mm1_hf.corpus.storage import ReadDocuments
from mm1_hf.corpus.words import WORDS
from mm1_hf.data.documents import Unusable


_PAIR: Any = np.dtype([("document", "<u4"), ("group", "<u4")])
_MEMBER: Any = np.dtype([("group", "<u4"), ("key", "<u8"), ("task", "<u4"), ("document", "<u4")])


def near_duplicate_stages(
    output: str | os.PathLike[str], documents: str | os.PathLike[str], then: Sequence[PipelineStep]
) -> list[Stage]:
    """
    The stages that find near-duplicates among documents that an earlier stage wrote, and the stage that reads the documents
    again and drops them.

    Args:
        output: folder of the run.
        documents: folder of the documents.
        then: the steps that follow, for the documents that stay.
    """
    # datatrove's default, xxhash, does not take texts since its release 4.
    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    signatures, pairs, groups, dropped = (
        work_folder(output, f"near-duplicates-{name}") for name in ("signatures", "pairs", "groups", "dropped")
    )
    keys = work_folder(output, "near-duplicates-keys")
    signature = MinhashDedupSignature(signatures, config, language=WORDS)  # ty: ignore[invalid-argument-type] -- a tokenizer may take the place of a language
    return [
        Stage("minhash-signatures", [ReadDocuments(documents, images=False), _WriteKeys(keys), signature]),
        Stage("minhash-pairs", [MinhashDedupBuckets(signatures, pairs, config=config)], tasks=config.num_buckets),
        Stage(
            "minhash-groups",
            [MinhashDedupCluster(pairs, groups, config, save_cluster_id=True), _ChooseKept(groups, keys, dropped)],
            tasks=1,
        ),
        Stage("near-duplicates", [ReadDocuments(documents), DropNearDuplicates(dropped), *then]),
    ]


class _WriteKeys(PipelineStep):
    """
    Writes a hash of every document's id, by which the document that stays is chosen.

    Args:
        folder: where the files go.
    """

    type = "MM1 repeats"
    name = "write keys"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Writes the keys of one task."""
        with whole_file(Path(self.folder) / f"{rank:05d}.keys") as path, open(path, "wb") as file:
            for document in data or ():
                file.write(hashlib.md5(document.id.encode("utf-8", "surrogatepass")).digest()[:8])
                yield document


class _ChooseKept(PipelineStep):
    """
    Writes, for each task, the numbers of the documents that are not the chosen one of their group.

    Args:
        groups: folder of the groups that datatrove found.
        keys: folder of the documents' keys.
        output: where the numbers go.
    """

    type = "MM1 repeats"
    name = "choose documents"

    def __init__(self, groups: str, keys: str, output: str) -> None:
        super().__init__()
        self.groups, self.keys, self.output = groups, keys, output

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Chooses among all documents. Yields none."""
        # The step before it yields no documents either, and runs when it is asked for some.
        for _ in data or ():
            pass
        found: list[NDArray[np.void]] = [np.empty(0, _MEMBER)]
        for file in sorted(Path(self.groups).glob("*.clusters")):
            task = int(file.stem)
            pairs: NDArray[np.void] = np.fromfile(file, _PAIR)
            keys = np.memmap(Path(self.keys) / f"{task:05d}.keys", "<u8", "r")
            own: NDArray[np.void] = np.empty(len(pairs), _MEMBER)
            own["group"], own["document"], own["task"] = pairs["group"], pairs["document"], task
            own["key"] = keys[pairs["document"]]
            found.append(own)
        members: NDArray[np.void] = np.sort(np.concatenate(found), order=["group", "key", "task", "document"])
        first = np.concatenate([[True], members["group"][1:] != members["group"][:-1]])[: len(members)]
        dropped = members[~first]
        for file in sorted(Path(self.keys).glob("*.keys")):
            numbers = np.sort(dropped["document"][dropped["task"] == int(file.stem)])
            with whole_file(Path(self.output) / f"{file.stem}.dropped") as path:
                numbers.astype("<u4").tofile(path)
        self.stat_update("groups", value=int(first.sum()))
        self.stat_update("near-duplicates", value=len(dropped))
        yield from ()


class DropNearDuplicates(CountedStep):
    """
    Drops the documents that are near-duplicates. The documents must be those of the signatures, in the same order and the
    same tasks.

    Args:
        folder: folder of the numbers of the documents to drop.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__("near-duplicates")
        self.folder = os.fspath(folder)

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Passes on the documents that stay. Numbers that are missing end the task."""
        self._dropped = set(np.fromfile(Path(self.folder) / f"{rank:05d}.dropped", "<u4").tolist())
        self._next = 0
        yield from super().run(data, rank, world_size)

    def process(self, document: EngineDocument) -> EngineDocument:
        """Whether the next document of the task stays."""
        number = self._next
        self._next += 1
        if number in self._dropped:
            raise Unusable("near-duplicate", document.id)
        return document
