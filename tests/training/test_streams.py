"""Trainer over a mixture: a run that is stopped anywhere ends where one without a stop does."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from mixtures import mixture
from packaging.version import Version
from ranks import run_ranks
from safetensors.torch import load_file
from streamed_runs import diary, in_process, train, weights_of_one_rank
from tiny import tiny_mm1
from transformers import TrainingArguments

from mm1_hf.model.versions import SAVES_SPLIT_WEIGHTS
from mm1_hf.training.checkpoints import last_complete_checkpoint
from mm1_hf.training.streams import MixtureTrainer


def weights(folder: Path, step: int = 8) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoint-{step}" / "model.safetensors")


@pytest.mark.parametrize(("workers", "streaming"), [(0, 0), (2, 3)])
def test_a_run_killed_twice_ends_where_another_does(workers, streaming, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    assert in_process(train, str(straight), None, False, workers, streaming) == 0
    assert in_process(train, str(killed), 3, False, workers, streaming) == -9
    assert last_complete_checkpoint(killed) == str(killed / "checkpoint-2")
    assert in_process(train, str(killed), 7, False, workers, streaming) == -9
    assert last_complete_checkpoint(killed) == str(killed / "checkpoint-6")
    assert in_process(train, str(killed), None, False, workers, streaming) == 0
    assert diary(killed) == diary(straight)
    assert len({digest for digests in diary(straight).values() for digest in digests}) == 16
    ended = weights(killed)
    for name, weight in weights(straight).items():
        assert torch.equal(ended[name], weight), name


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    straight, filled = tmp_path / "straight", tmp_path / "filled"
    for folder in (straight, filled):
        folder.mkdir()
    train(str(straight))
    assert in_process(train, str(filled), 3, True) == 1, "the run says that it could not save"
    assert (filled / "checkpoint-4").exists(), "Trainer leaves what it could write"
    assert last_complete_checkpoint(filled) == str(filled / "checkpoint-2")
    train(str(filled))
    ended = weights(filled)
    for name, weight in weights(straight).items():
        assert torch.equal(ended[name], weight), name


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="Trainer restores random states only of a CPU without a number",
)
def test_two_ranks_read_their_own_parts_and_go_on_with_them(tmp_path):
    folders = {halves: tmp_path / str(halves) for halves in (False, True)}
    ended = {}
    for halves, folder in folders.items():
        folder.mkdir()
        ended[halves] = run_ranks(weights_of_one_rank, folder, str(folder), halves)
    for rank in range(2):
        assert diary(folders[True], rank) == diary(folders[False], rank)
        for name, weight in ended[False][rank].items():
            assert torch.equal(ended[True][rank][name], weight), name
    digests = [digest for rank in range(2) for step in diary(folders[False], rank).values() for digest in step]
    assert len(set(digests)) == 32, "no batch is on both ranks"
    places = [json.loads((folders[False] / "checkpoint-8" / f"mixture_{rank}.json").read_text()) for rank in range(2)]
    assert [place["mixture"]["rank"] for place in places] == [0, 1]


def arguments(folder: Path, **settings) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=1, report_to="none", remove_unused_columns=False, **settings
    )


def test_what_cannot_be_resumed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ignore_data_skip=True"):
        MixtureTrainer(model=tiny_mm1()[0], args=arguments(tmp_path), train_dataset=mixture())
    run = MixtureTrainer(
        model=tiny_mm1()[0], args=arguments(tmp_path, ignore_data_skip=True, save_steps=1), train_dataset=mixture()
    )
    run.train()
    if not SAVES_SPLIT_WEIGHTS:
        pytest.skip("no run of this transformers splits its weights")
    run.args.max_steps = 2
    run.is_distributed_loading_by_transformers = True
    with pytest.raises(ValueError, match="weights were not split over processes"):
        run.train(resume_from_checkpoint=True)


def test_what_stands_beside_it_in_its_row_does_not_change_an_example(tmp_path):
    """Loss and gradients of the first example of each row through Trainer, with other neighbours on its right."""
    stream = mixture()
    stream.split(0, 1, 6)
    run = MixtureTrainer(model=tiny_mm1()[0], args=arguments(tmp_path, ignore_data_skip=True), train_dataset=stream)
    batch = next(iter(run.get_train_dataloader()))
    assert (batch["segment_ids"].max(dim=1).values > 1).all()
    results = []
    for changed in (False, True):
        inputs = {name: value.clone() for name, value in run._prepare_inputs(dict(batch)).items() if name != "sources"}
        others = inputs["segment_ids"] > 1
        inputs["labels"][others] = -100
        if changed:
            image = inputs["input_ids"] == run.model.config.image_token_id
            inputs["input_ids"][others & ~image] = 65
            # Tiles of the other examples, by the segments of their first image token.
            of_others = inputs["segment_ids"][image].reshape(-1, 4)[:, 0] > 1
            inputs["pixel_values"][of_others] = 0.5
            assert of_others.any() and not of_others.all()
        run.model.zero_grad()
        loss = run.compute_loss(run.model, inputs)
        loss.backward()
        results.append(
            (loss.detach(), {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None})
        )
    (loss, gradients), (other_loss, other_gradients) = results
    torch.testing.assert_close(other_loss, loss, atol=1e-5, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, atol=1e-5, rtol=1e-4)
