"""Records without an end: every pass whole, every reader in its own part, from any place."""

from collections import Counter

import datasets
import pytest
from torch.utils.data import DataLoader, IterableDataset

from mm1_hf.data.records import Records, open_records


def dataset(number: int, shards: int = 0):
    made = datasets.Dataset.from_dict({"index": list(range(number))})
    return made.to_iterable_dataset(num_shards=shards) if shards else made


def opened(number: int, shards: int = 0, reader: int = 0, readers: int = 1) -> Records:
    return open_records(dataset(number, shards), "numbers", seed=0, reader=reader, readers=readers)


def read(records: Records, number: int) -> list[int]:
    return [records.read()[0]["index"] for _ in range(number)]


@pytest.mark.parametrize(("number", "shards"), [(24, 0), (24, 4), (24, 8), (24, 3), (7, 0), (2, 0)])
def test_a_pass_over_all_readers_holds_every_record_once(number, shards):
    """Readers that take turns: the first pass is what they read first, 1 reader's 6th of 24 records and so on."""
    readers = 4
    passes = 3 * readers
    together = [read(opened(number, shards, reader, readers), number * passes // readers) for reader in range(readers)]
    if not shards:
        # Record by record in turn: the line of all passes.
        line = [records[turn] for turn in range(number * passes // readers) for records in together]
        epochs = [line[start : start + number] for start in range(0, len(line), number)]
    else:
        share = number // readers
        epochs = [
            [index for records in together for index in records[share * epoch : share * (epoch + 1)]]
            for epoch in range(passes)
        ]
    assert len(epochs) == passes
    assert all(sorted(epoch) == list(range(number)) for epoch in epochs)
    if number > 10 and shards != 3:
        assert len(set(map(tuple, epochs))) == passes, "every pass has its own order"


@pytest.mark.parametrize("shards", [0, 1, 2, 6])
@pytest.mark.parametrize("place", [0, 1, 5, 11, 12, 13, 30])
def test_going_on_from_a_place(shards, place):
    straight = opened(24, shards, 1, 2)
    read(straight, place)
    state = straight.state_dict()
    resumed = opened(24, shards, 1, 2)
    read(resumed, 3)
    resumed.load_state_dict(state)
    assert read(resumed, 40) == read(straight, 40)
    # And back, in the same reader.
    straight.load_state_dict(state)
    resumed.load_state_dict(state)
    assert read(resumed, 40) == read(straight, 40)


def test_sources_and_seeds_have_orders_of_their_own():
    orders = [
        tuple(read(open_records(dataset(50), name, seed=seed, reader=0, readers=1), 50))
        for name, seed in (("a", 0), ("b", 0), ("a", 1))
    ]
    assert len(set(orders)) == 3


class Reading(IterableDataset):
    def __iter__(self):
        yield from read(opened(24, shards=4), 24)


def test_a_data_worker_does_not_deal_a_stream_out_again():
    """datasets shares a stream out among the workers by itself where it is iterated in one."""
    both = Counter(DataLoader(Reading(), batch_size=None, num_workers=2))
    assert both == dict.fromkeys(range(24), 2)
