import random

import numpy as np
import pytest
from datatrove.data import Document as EngineDocument
from datatrove.pipeline.base import PipelineStep
from engine_documents import run_here

from mm1_hf.corpus.near_duplicates import near_duplicate_stages
from mm1_hf.corpus.stages import Stage
from mm1_hf.corpus.storage import WriteDocuments, read_documents


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


class Given(PipelineStep):
    """A first step: the documents of a list, in turn to each task."""

    type, name = "test", "given"

    def __init__(self, documents: list[tuple[str, str]]):
        super().__init__()
        self.documents = documents

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        yield from (EngineDocument(text, id) for id, text in self.documents[rank::world_size])


def words_of(seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghij", k=5)) for _ in range(120)]


def varied(words: list[str], changes: int) -> str:
    """A text in which some words, far from each other, are others."""
    changed = list(words)
    for place in range(changes):
        changed[(place + 1) * len(words) // (changes + 1)] = f"changed{place}"
    return " ".join(changed)


def kept(folder, documents, tasks: int) -> tuple[set[str], dict]:
    stages = [
        Stage("given", [Given(documents), WriteDocuments(folder / "given")]),
        *near_duplicate_stages(folder, folder / "given", [WriteDocuments(folder / "kept")]),
    ]
    counted = run_here(stages, tasks)
    return {page.id for file in sorted((folder / "kept").glob("*.parquet")) for page in read_documents(file)}, counted


def test_one_of_each_group_stays_whatever_the_number_of_tasks(tmp_path):
    groups = [words_of(seed) for seed in range(4)]
    documents = [
        (f"{group}-{copy}", varied(words, copy % 2)) for group, words in enumerate(groups) for copy in range(5)
    ]
    documents += [(f"alone-{seed}", " ".join(words_of(seed))) for seed in range(100, 110)]
    # Half of the words are others, and texts that are too short to be compared.
    documents += [("half", varied(groups[0], 60)), ("short-1", "one two"), ("short-2", "one two")]
    random.Random(0).shuffle(documents)
    found, counted = kept(tmp_path / "1", documents, 1)
    assert len(found) == 4 + 10 + 3
    assert sorted(id[0] for id in found if id[0].isdigit()) == ["0", "1", "2", "3"]
    assert counted["near-duplicates"] == {"dropped: near-duplicate": 16, "kept": 17}
    assert counted["choose documents"] == {"groups": 4, "near-duplicates": 16}
    assert kept(tmp_path / "3", documents, 3)[0] == found
    assert kept(tmp_path / "again", documents[::-1], 2)[0] == found


def test_without_duplicates_and_without_documents(tmp_path):
    documents = [(str(seed), " ".join(words_of(seed))) for seed in range(3)]
    assert kept(tmp_path / "a", documents, 2)[0] == {"0", "1", "2"}
    # The second task has no document.
    assert kept(tmp_path / "b", documents[:1], 2)[0] == {"0"}
    assert kept(tmp_path / "c", [], 2)[0] == set()


def test_ids_that_repeat(tmp_path):
    text = " ".join(words_of(0))
    found, counted = kept(tmp_path, [("a", text), ("a", text), ("b", text)], 2)
    assert len(found) == 1 and counted["near-duplicates"] == {"dropped: near-duplicate": 2, "kept": 1}


def test_numbers_of_dropped_documents(tmp_path):
    text = " ".join(words_of(0))
    kept(tmp_path, [("a", text), ("b", text)], 1)
    (file,) = (tmp_path / "work" / "near-duplicates-dropped").iterdir()
    assert np.fromfile(file, "<u4").tolist() in ([0], [1])
