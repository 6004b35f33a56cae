from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf.corpus.repeat_counts import RepeatedHashes, RunWriter, write_repeated


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


# Hashes that share their first half or their second half, and lie at the ends of the ranges.
halves = st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1]).map(lambda number: number.to_bytes(8, "little"))
digests = st.tuples(halves, halves).map(b"".join) | st.binary(min_size=16, max_size=16)
few_digests = st.lists(digests, min_size=1, max_size=8).flatmap(
    lambda chosen: st.lists(st.lists(st.sampled_from(chosen), max_size=40), min_size=1, max_size=4)
)


@settings(max_examples=40, deadline=None)
@given(few_digests, st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.integers(0, 4))
def test_counts_are_those_of_a_plain_count(tmp_path_factory, tasks, ranges, part_size, run_size, limit):
    folder = tmp_path_factory.mktemp("runs")
    for task, found in enumerate(tasks):
        writer = RunWriter(folder / "runs", task, run_size=run_size)
        for digest in found:
            writer.add(digest)
        writer.close()
    counts = Counter(digest for found in tasks for digest in found)
    repeated = {digest for digest, count in counts.items() if count > limit}
    numbers = [
        write_repeated(folder / "runs", folder / "out", limit, task=task, tasks=ranges, part_size=part_size)
        for task in range(ranges)
    ]
    assert [sum(each) for each in zip(*numbers, strict=True)] == [len(counts), len(repeated)]
    found = RepeatedHashes(folder / "out")
    assert len(found) == len(repeated)
    assert {digest for digest in counts if digest in found} == repeated
    assert bytes(range(16)) not in found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.tuples(digests, st.integers(0, 3)), max_size=20), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 9),
)
def test_the_smallest_owner_stays(tmp_path_factory, tasks, ranges, run_size):
    folder = tmp_path_factory.mktemp("runs")
    owners: dict[bytes, list[tuple[int, int]]] = {}
    for task, found in enumerate(tasks):
        writer = RunWriter(folder / "runs", task, owned=True, run_size=run_size)
        for index, (digest, key) in enumerate(found):
            owners.setdefault(digest, []).append((key, task << 40 | index))
            writer.add(digest, *owners[digest][-1])
        writer.close()
    for task in range(ranges):
        write_repeated(folder / "runs", folder / "out", 1, task=task, tasks=ranges, owned=True)
    found = RepeatedHashes(folder / "out")
    for digest, held in owners.items():
        assert found.owner(digest) == (min(held) if len(held) > 1 else None)


def test_files_do_not_depend_on_the_order_within_a_run_nor_on_an_attempt_before(tmp_path):
    rng = np.random.default_rng(0)
    digests = [rng.bytes(16) for _ in range(50)] * 3
    for folder, order in (("a", digests), ("b", digests[::-1])):
        for _ in range(2):
            writer = RunWriter(tmp_path / folder, 7)
            for digest in order:
                writer.add(digest)
            writer.close()
    (a,), (b,) = (sorted((tmp_path / folder).iterdir()) for folder in "ab")
    assert a.name == b.name and a.read_bytes() == b.read_bytes()
    assert a.stat().st_size == 50 * 20


def test_a_missing_range_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds 0 files"):
        RepeatedHashes(tmp_path)
    RunWriter(tmp_path / "runs", 0).close()
    write_repeated(tmp_path / "runs", tmp_path / "out", 1, task=1, tasks=2)
    with pytest.raises(ValueError, match="holds 1 files"):
        RepeatedHashes(tmp_path / "out")
