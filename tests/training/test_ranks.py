"""MM1Trainer on two ranks learns and logs as on one that accumulates the same micro-batches, however the weights are split.
Rank 1 has no image in the first step, rank 0 none in the second: it joins every collective all the same."""

import pytest
import torch
from metered import DENSE, MOE, build, train, train_one_rank
from ranks import run_ranks


# The model, and how its weights lie on the ranks; None is DistributedDataParallel without a search for unused ones.
RUNS = {
    "dense-ddp": (DENSE, None),
    "dense-ddp-balanced": (DENSE, None),
    "moe-ddp": (MOE, None),
    "dense-fsdp": (DENSE, {"fsdp_size": 2}),
    "moe-fsdp-ep": (MOE, {"fsdp_size": 2, "ep_size": 2}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[dict, list[dict]]:
    """What one rank gets, by kind of model, and what each of two gets, by run; all in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    expected, runs = {}, {}
    for run, (fields, split) in RUNS.items():
        kind = run.split("-")[0]
        if kind not in expected:
            model = build(**fields)
            model.save_pretrained(folder / kind)
            expected[kind] = train(model, str(folder), accumulation=4)
        runs[run] = (str(folder / kind), split)
    return expected, run_ranks(train_one_rank, folder, str(folder), runs)


@pytest.mark.parametrize("run", RUNS)
def test_gradients_and_weights_are_those_of_one_rank(run, results):
    expected, ranks = results[0][run.split("-")[0]], [rank[run] for rank in results[1]]
    for rank in ranks:
        for what in ("gradients", "weights"):
            assert rank[what].keys() == expected[what].keys()
            for name, tensor in expected[what].items():
                torch.testing.assert_close(rank[what][name], tensor, atol=1e-5, rtol=1e-5, msg=f"{what} of {name}")
    assert any(gradient.abs().max() > 1e-3 for gradient in expected["gradients"].values())


@pytest.mark.parametrize("run", RUNS)
def test_logs_are_those_of_one_rank(run, results):
    expected, ranks = results[0][run.split("-")[0]], [rank[run] for rank in results[1]]
    rates = {"tokens_per_second", "images_per_second"}
    for rank in ranks:
        for got, want in zip(rank["logs"], expected["logs"], strict=True):
            assert got.keys() == want.keys()
            assert {name: got[name] for name in got.keys() - rates} == pytest.approx(
                {name: want[name] for name in want.keys() - rates}, abs=1e-5, rel=1e-5
            )
            # Both count the same rows: the ratio of the rates is that of the rows.
            assert got["tokens_per_second"] / got["images_per_second"] == pytest.approx(
                want["tokens_per_second"] / want["images_per_second"]
            )
