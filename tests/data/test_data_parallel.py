"""Rows and their tiles stay together when several ranks and their workers share the data: tiles are flat over a batch and
carry no row, so that whatever cuts a finished batch would mispair them."""

import pytest
import torch
from parallel_data import COUNTS, train, train_one_rank, weights
from ranks import run_ranks
from tiny import tiny_mm1

from mm1_hf import MM1ForConditionalGeneration


WHOLE = {"dispatch_batches": False, "split_batches": False}


@pytest.fixture
def folder(tmp_path) -> str:
    model, processor = tiny_mm1()
    processor.image_processor.image_splitting = "none"
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return str(tmp_path)


def ranks(folder: str, tmp_path, **settings) -> list[dict]:
    return run_ranks(train_one_rank, tmp_path, folder, {"rows_per_step": 2, "steps": 2, "workers": 2, **settings})


@pytest.mark.parametrize(
    "dataset",
    [
        pytest.param("rows", marks=pytest.mark.slow),
        pytest.param("stream", marks=pytest.mark.slow),
        "stream of 4 shards",
        # Fewer shards than ranks: every rank reads all and keeps its batches.
        pytest.param("stream of 1 shard", marks=pytest.mark.slow),
    ],
)
def test_every_rank_s_rows_have_their_own_tiles(dataset, folder, tmp_path):
    results = ranks(folder, tmp_path, dataset=dataset, **WHOLE)
    rows = []
    for result in results:
        assert len(result["seen"]) == 2, result.get("error")
        for own, places, tiles in result["seen"]:
            assert places == [row for row in own for _ in range(COUNTS[row])]
            assert tiles == places
            rows += own
    # Each row once: a stream that ranks and workers both shard, or neither, would lose or repeat some.
    assert sorted(rows) == list(range(len(COUNTS)))
    assert {len(tiles) for result in results for _, _, tiles in result["seen"]} >= {0, 4}
    for name, weight in results[0]["weights"].items():
        assert torch.equal(weight, results[1]["weights"][name]), name


def test_two_ranks_step_as_one_rank_on_their_union(folder, tmp_path):
    """First 5 images beside 1, then none beside 4: a step is the one on all rows, whatever a rank has."""
    settings = {"dataset": "rows", "workers": 0, "steps": 2, **WHOLE}
    first, second = ranks(folder, tmp_path, **settings)
    assert [len(tiles) for _, _, tiles in first["seen"]] == [5, 0]
    assert [len(tiles) for _, _, tiles in second["seen"]] == [1, 4]
    expected = weights(train(folder, rows_per_step=4, **settings))
    start = dict(MM1ForConditionalGeneration.from_pretrained(folder).named_parameters())
    for name, weight in expected.items():
        # Far below the step itself.
        torch.testing.assert_close(first["weights"][name] - start[name], weight - start[name], atol=2e-6, rtol=1e-3)
    assert any(not torch.equal(weight, start[name]) for name, weight in expected.items() if "vision_tower" in name)


def test_batches_cut_among_ranks_are_refused(folder, tmp_path):
    """accelerate's default for streams: rank 0 reads for all and cuts every tensor into as many parts as rows. Each rank
    begins in the tiles where it does in the rows, so one rank's count is wrong wherever any tile is."""
    for result in ranks(folder, tmp_path, dataset="level stream", workers=0, steps=1):
        assert "Image features and image tokens do not match" in result["error"]


def test_replicas_of_one_process_are_refused():
    model, processor = tiny_mm1()
    batch = processor(text="<image>a", images=[torch.zeros(3, 56, 56)], return_tensors="pt")
    # As torch.nn.parallel.replicate marks its copies.
    model.model._is_replica = True
    with pytest.raises(ValueError, match="one process per GPU"):
        model(**batch)
