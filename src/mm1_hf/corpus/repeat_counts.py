"""
Finds which of very many hashes occur often, in bounded memory and in passes whose tasks run side by side.

Three passes, with only files between them:

1. Every task of a run writes the hashes that it meets to *runs*: files that are sorted by hash and hold each hash once, with
   its count ([`RunWriter`]).
2. Every counting task owns one range of the hashes. It reads this range of all runs, adds the counts, and writes the hashes
   that occur more often than the limit ([`write_repeated`]).
3. Whoever filters looks hashes up in those files, which stay on disk ([`RepeatedHashes`]).

A billion images on paper: a record of a run takes 20 bytes, so the runs take at most 20 GB for the addresses, and as much
for the MD5 hashes. The first pass holds `RUN_SIZE` hashes in memory, about 0.1 GB while it sorts them, and writes about
1,000 runs. A counting task reads its range in parts of about `PART_SIZE` records, which take 0.4 GB while they are
sorted; the billion records are 240 parts, which all tasks share. At most 91 million hashes can occur more than ten
times, which are 1.5 GB on disk, and a lookup reads a few pages of them. An image that is on many pages is one record of
each run, so it does not fill a range. `benchmarks/image_repeats.py` measures ten million images.

A hash has 16 bytes. A billion different ones coincide by chance with a probability of 10^-21, so the counts are exact.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mm1_hf.corpus.atomic import whole_file


# Hashes that are collected before a run is written, and records that a counting task holds at a time.
RUN_SIZE = 2**20
PART_SIZE = 2**22

_RUN = ".run"
_REPEATED = ".npy"
# A hash as two numbers of 64 bits, and who holds it: see `RunWriter`.
_HASH = [("first", "<u8"), ("second", "<u8")]
_OWNER = [("key", "<u8"), ("position", "<u8")]
_COUNT = [("count", "<u4")]
_MOST = np.iinfo(np.uint32).max
# Smaller files are read whole.
_MAPPED_BYTES = 2**16


class RunWriter:
    """
    Writes hashes to sorted runs.

    With `owned`, every occurrence of a hash has an owner, and of each hash the smallest owner is kept: the one that stays
    when the others are dropped as its duplicates. An owner is a key, which should not depend on how the work is divided
    into tasks, and a position, which tells owners with equal keys apart.

    Args:
        folder: folder of the runs; it is created.
        task: number of the task, which is part of its files' names.
        owned: whether occurrences have owners.
        run_size: number of hashes to collect before a run is written.
    """

    def __init__(
        self, folder: str | os.PathLike[str], task: int, *, owned: bool = False, run_size: int = RUN_SIZE
    ) -> None:
        self._folder = Path(folder)
        self._task = task
        self._fields = _HASH + (_OWNER if owned else [])
        self._run_bytes = run_size * np.dtype(self._fields).itemsize
        self._collected = bytearray()
        self._runs = 0

    def add(self, digest: bytes, key: int = 0, position: int = 0) -> None:
        """
        Adds one occurrence of a hash.

        Args:
            digest: the hash, of 16 bytes.
            key: key of its owner, below 2^64, if occurrences have owners.
            position: position of its owner, below 2^64.
        """
        self._collected += digest
        if len(self._fields) > len(_HASH):
            self._collected += key.to_bytes(8, "little") + position.to_bytes(8, "little")
        if len(self._collected) >= self._run_bytes:
            self._write()

    def close(self) -> None:
        """Writes the hashes that are not written yet. A task without hashes writes an empty run."""
        if self._collected or not self._runs:
            self._write()

    def _write(self) -> None:
        collected = np.frombuffer(bytes(self._collected), self._fields)
        self._collected.clear()
        records = np.ones(len(collected), self._fields + _COUNT)
        for name, _ in self._fields:
            records[name] = collected[name]
        with whole_file(self._folder / f"{self._task:05d}-{self._runs:05d}{_RUN}") as path:
            _summed(records).tofile(path)
        self._runs += 1


def write_repeated(
    runs: str | os.PathLike[str],
    output: str | os.PathLike[str],
    limit: int,
    *,
    task: int,
    tasks: int,
    owned: bool = False,
    part_size: int = PART_SIZE,
) -> tuple[int, int]:
    """
    Counts the hashes of one of the equal ranges into which all hashes are divided, and writes those that occur more often
    than the limit.

    Args:
        runs: folder of the runs of all tasks, which must be complete.
        output: folder of the repeated hashes; it is created.
        limit: a hash is written if it occurs more often than this.
        task: index of the range, counted from 0.
        tasks: number of ranges.
        owned: whether the occurrences in the runs have owners.
        part_size: number of records that are held in memory at a time, about.

    Returns:
        The number of different hashes of the range, and of those that are written.
    """
    fields = _HASH + (_OWNER if owned else [])
    dtype = np.dtype(fields + _COUNT)
    files = [_mapped(file, dtype) for file in sorted(Path(runs).glob(f"*{_RUN}"))]
    low, high = _bound(task, tasks), _bound(task + 1, tasks)
    # The first halves of hashes are distributed evenly, so equal parts of the range hold about as many records.
    records = sum(len(_between(file, low, high)) for file in files)
    parts = max(-(-records // part_size), 1)
    different, found = 0, [np.empty((len(fields), 0), np.uint64)]
    for part in range(parts):
        start, end = (low + (high - low) * index // parts for index in (part, part + 1))
        summed = _summed(np.concatenate([np.empty(0, dtype), *(_between(file, start, end) for file in files)]))
        different += len(summed)
        repeated = summed[summed["count"] > limit]
        found.append(np.stack([repeated[name] for name, _ in fields]))
    table = np.concatenate(found, axis=1)
    with whole_file(Path(output) / f"{task:05d}{_REPEATED}") as path, open(path, "wb") as file:
        np.save(file, table)
    return different, table.shape[1]


class RepeatedHashes:
    """
    The hashes that [`write_repeated`] found, in all ranges. They are looked up on disk.

    Args:
        folder: folder of the repeated hashes.

    Raises:
        ValueError: some ranges are missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        files = sorted(Path(folder).glob(f"[0-9]*{_REPEATED}"))
        if not files or int(files[-1].stem) != len(files) - 1:
            raise ValueError(
                f"{folder} holds {len(files)} files of repeated hashes, and some are missing. All tasks of the counting "
                "stage have to end before hashes are looked up."
            )
        self._ranges = [
            np.load(file, mmap_mode="r" if file.stat().st_size > _MAPPED_BYTES else None) for file in files
        ]

    def __contains__(self, digest: bytes) -> bool:
        return self._find(digest) is not None

    def __len__(self) -> int:
        return sum(table.shape[1] for table in self._ranges)

    def owner(self, digest: bytes) -> tuple[int, int] | None:
        """
        Key and position of the smallest owner of a hash, or `None` if the hash is not repeated.

        Args:
            digest: the hash, of 16 bytes.
        """
        found = self._find(digest)
        return None if found is None else (int(found[2]), int(found[3]))

    def _find(self, digest: bytes) -> NDArray[np.uint64] | None:
        first, second = (int.from_bytes(digest[place : place + 8], "little") for place in (0, 8))
        table = self._ranges[first * len(self._ranges) >> 64]
        place = int(np.searchsorted(table[0], np.uint64(first)))
        # Different hashes hardly ever have the same first half.
        while place < table.shape[1] and table[0, place] == first:
            if table[1, place] == second:
                return table[:, place]
            place += 1
        return None


def _summed(records: NDArray[np.void]) -> NDArray[np.void]:
    """Records in the order of their hashes, each hash once with the sum of its counts and its smallest owner."""
    if not len(records):
        return records
    names = [name for name in records.dtype.names or () if name != "count"]
    # The last column is the first to sort by.
    ordered = records[np.lexsort([records[name] for name in reversed(names)])]
    first, second = ordered["first"], ordered["second"]
    begins = np.flatnonzero(np.concatenate([[True], (first[1:] != first[:-1]) | (second[1:] != second[:-1])]))
    summed = ordered[begins]
    summed["count"] = np.minimum(np.add.reduceat(ordered["count"], begins, dtype=np.uint64), _MOST)
    return summed


def _mapped(file: Path, dtype: np.dtype) -> NDArray[np.void]:
    # An empty file cannot be mapped.
    return np.memmap(file, dtype, "r") if file.stat().st_size else np.empty(0, dtype)


def _bound(index: int, ranges: int) -> int:
    """The smallest first half of a range: the smallest one for which `first * ranges >> 64` is the index."""
    return -(-(index << 64) // ranges)


def _between(run: NDArray[np.void], low: int, high: int) -> NDArray[np.void]:
    """The records of a run from one first half up to another, without reading the others."""
    return run[_place(run, low) : _place(run, high)]


def _place(run: NDArray[np.void], bound: int) -> int:
    """Number of records below a bound. Searched by hand, because numpy would copy the whole column first."""
    low, high = 0, len(run)
    while low < high:
        middle = (low + high) // 2
        if int(run[middle]["first"]) < bound:
            low = middle + 1
        else:
            high = middle
    return low


__all__ = ["RepeatedHashes", "RunWriter", "write_repeated"]
