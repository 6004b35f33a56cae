"""Reads the records of a source endlessly: epoch after epoch, each in its own order, resumable at any record."""

import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node

from mm1_hf.data.documents import Unusable
from mm1_hf.data.tables import row_of


class Records(Protocol):
    """The records that one reader gets from a source, without end. `epoch` is that of the last one read, from 0."""

    epoch: int

    def read(self) -> tuple[dict[str, Any] | Unusable, str]:
        """
        The next record, or the reason why it cannot be read, and a description of its position for error messages.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position of the next record, in a form that JSON can hold."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continues reading at a saved position.

        Args:
            state: what `state_dict` returned.
        """
        ...


def open_records(
    dataset: datasets.Dataset | datasets.IterableDataset, name: str, *, seed: int, reader: int, readers: int
) -> Records:
    """
    Opens one reader's share of a source.

    Args:
        dataset: the records of the source, indexed or streamed.
        name: name of the source.
        seed: seed of the order of every epoch.
        reader: index of this reader, counted from 0.
        readers: number of readers that share the source. In each epoch, every record goes to exactly one of them.
    """
    seed = zlib.crc32(f"{seed} {name}".encode())
    if isinstance(dataset, datasets.Dataset):
        return _IndexedRecords(dataset, name, seed, reader, readers)
    return _StreamedRecords(dataset, name, seed, reader, readers)


@lru_cache(maxsize=16)
def _order(number: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(number)


class _IndexedRecords:
    """
    Every epoch has its own random order. The readers take turns over the sequence of all epochs, so that each of them
    gets records even if there are more readers than records.
    """

    def __init__(self, dataset: datasets.Dataset, name: str, seed: int, reader: int, readers: int):
        self.dataset, self.name, self.seed = dataset, name, seed
        self.reader, self.readers = reader, readers
        self.taken = self.epoch = 0

    def read(self) -> tuple[dict[str, Any] | Unusable, str]:
        self.epoch, place = divmod(self.reader + self.readers * self.taken, len(self.dataset))
        index = int(_order(len(self.dataset), self.seed, self.epoch)[place])
        self.taken += 1
        name = f"record {index} of {self.name}"
        try:
            return row_of(self.dataset, index, name), name
        except Unusable as reason:
            return reason, name

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]


class _StreamedRecords:
    """
    The shards of a stream are distributed over the readers if their number is a multiple of the number of readers.
    Otherwise every reader reads all shards and skips the records of the other readers. The order of the shards changes
    from epoch to epoch; the order of the records inside a shard does not.
    """

    def __init__(self, dataset: datasets.IterableDataset, name: str, seed: int, reader: int, readers: int):
        self.dataset = split_dataset_by_node(dataset, rank=reader, world_size=readers)
        self.name, self.seed, self.reader, self.readers = name, seed, reader, readers
        self.epoch = self.taken = 0
        self.iterator = self._begin()

    def _begin(self) -> Iterator[dict[str, list]]:
        # datasets shuffles the shards in every epoch except 0.
        self.dataset.set_epoch(1 + self.seed + self.epoch)
        # Python's iter() would, inside a data worker, split the records once again among the workers.
        return self.dataset.iter(batch_size=1)

    def read(self) -> tuple[dict[str, Any], str]:
        batch = next(self.iterator, None)
        if batch is None:
            if not self.taken:
                raise ValueError(
                    f"The stream {self.name} has no record for reader {self.reader} of {self.readers}. Load it "
                    "without streaming, or read it with fewer ranks or lanes."
                )
            self.epoch, self.taken = self.epoch + 1, 0
            self.dataset.load_state_dict({"epoch": None})
            self.iterator = self._begin()
            return self.read()
        self.taken += 1
        record = {column: values[0] for column, values in batch.items()}
        return record, f"record {self.taken} of reader {self.reader} in epoch {self.epoch + 1} of {self.name}"

    def state_dict(self) -> dict[str, Any]:
        stream = self.dataset.state_dict() if self.taken else None
        return {"epoch": self.epoch, "taken": self.taken, "stream": stream}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.taken = state["epoch"], state["taken"]
        self.dataset.load_state_dict(state["stream"] or {"epoch": None})
        self.iterator = self._begin()
