"""Records of a source without an end: pass after pass, each in its own order, from any place in it."""

import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node


class Records(Protocol):
    """One reader's share of a source, over and over."""

    def read(self) -> tuple[dict[str, Any], str]:
        """The next record, and where it stands, for messages."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place of the next record, for JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Goes to a place.

        Args:
            state: what `state_dict` gave.
        """
        ...


def open_records(
    dataset: datasets.Dataset | datasets.IterableDataset, name: str, *, seed: int, reader: int, readers: int
) -> Records:
    """
    Args:
        dataset: with records at hand, or a stream.
        name: the source's.
        seed: of the order of every pass.
        reader: which of the readers this is.
        readers: among how many the source is dealt out, each record to one of them.
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
    Every pass has its own random order. The readers take turns in the line of all passes, so that none is left without
    records, however few there are.
    """

    def __init__(self, dataset: datasets.Dataset, name: str, seed: int, reader: int, readers: int):
        self.dataset, self.name, self.seed = dataset, name, seed
        self.reader, self.readers = reader, readers
        self.taken = 0

    def read(self) -> tuple[dict[str, Any], str]:
        epoch, place = divmod(self.reader + self.readers * self.taken, len(self.dataset))
        index = int(_order(len(self.dataset), self.seed, epoch)[place])
        self.taken += 1
        return self.dataset[index], f"record {index} of {self.name}"

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]


class _StreamedRecords:
    """
    A stream is dealt out by its shards where they divide among the readers, else every reader skips what is another's.
    Its shards come in another order in every pass, their records in their own.
    """

    def __init__(self, dataset: datasets.IterableDataset, name: str, seed: int, reader: int, readers: int):
        self.dataset = split_dataset_by_node(dataset, rank=reader, world_size=readers)
        self.name, self.seed, self.reader, self.readers = name, seed, reader, readers
        self.epoch = self.taken = 0
        self.iterator = self._begin()

    def _begin(self) -> Iterator[dict[str, list]]:
        # datasets shuffles the shards of every epoch but 0.
        self.dataset.set_epoch(1 + self.seed + self.epoch)
        # Not iter(): inside a data worker it would deal the records out once more, among the workers.
        return self.dataset.iter(batch_size=1)

    def read(self) -> tuple[dict[str, Any], str]:
        batch = next(self.iterator, None)
        if batch is None:
            if not self.taken:
                raise ValueError(
                    f"The stream {self.name} has no record for reader {self.reader} of {self.readers}. Load it without "
                    "streaming, or read it with fewer ranks or lanes."
                )
            self.epoch, self.taken = self.epoch + 1, 0
            self.dataset.load_state_dict({"epoch": None})
            self.iterator = self._begin()
            return self.read()
        self.taken += 1
        record = {column: values[0] for column, values in batch.items()}
        return record, f"record {self.taken} of pass {self.epoch + 1} over {self.name}, reader {self.reader}"

    def state_dict(self) -> dict[str, Any]:
        stream = self.dataset.state_dict() if self.taken else None
        return {"epoch": self.epoch, "taken": self.taken, "stream": stream}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.taken = state["epoch"], state["taken"]
        self.dataset.load_state_dict(state["stream"] or {"epoch": None})
        self.iterator = self._begin()
