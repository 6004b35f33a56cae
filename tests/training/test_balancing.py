"""Batches within a budget of tiles and of the same cost: what the sampler plans, and Trainer on it."""

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_mm1
from transformers import TrainingArguments, trainer_pt_utils

from mm1_hf import MM1Config
from mm1_hf.accounting.flops import causal_pairs, flops_formula
from mm1_hf.data.collation import MM1Collator
from mm1_hf.training.balancing import BalancedBatchSampler, ExampleSizes, batch_cost, measure
from mm1_hf.training.trainer import MM1Trainer


TOKENS = 4


def simple_cost(tiles, rows, longest, text):
    return 100.0 * tiles + rows * longest + text


def sampler(tiles, text, cost=simple_cost, **settings) -> BalancedBatchSampler:
    return BalancedBatchSampler(ExampleSizes(np.array(tiles), np.array(text), TOKENS), cost, **settings)


def mixed(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples without an image, with one tile and with five to ten, and text of very different length."""
    draw = np.random.default_rng(0)
    tiles = draw.choice([0, 1, 5, 7, 10], number, p=[0.3, 0.4, 0.1, 0.1, 0.1])
    return tiles, draw.lognormal(4, 0.8, number).clip(8, 600).astype(int)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(1, 300)), min_size=1, max_size=60),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2]),
    st.sampled_from([None, 10, 13]),
)
def test_every_example_comes_once_within_the_budget(examples, ranks, accumulation, max_tiles):
    tiles, text = zip(*examples, strict=True)
    options = {"batch_size": 4, "max_tiles": max_tiles, "ranks": ranks, "accumulation": accumulation}
    of_ranks = [list(sampler(tiles, text, rank=rank, **options)) for rank in range(ranks)]
    assert len({len(batches) for batches in of_ranks}) == 1, "ranks that run out of batches would wait for the others"
    assert all(batch for batches in of_ranks for batch in batches)
    seen = sorted(index for batches in of_ranks for batch in batches for index in batch)
    assert set(seen) == set(range(len(examples))) and len(seen) < len(examples) + ranks
    if max_tiles is not None:
        assert max(sum(tiles[index] for index in batch) for batches in of_ranks for batch in batches) <= max_tiles


def test_a_step_has_the_examples_of_its_place_in_the_shuffle():
    tiles, text = mixed(96)
    options = {"batch_size": 4, "ranks": 2, "accumulation": 3, "max_tiles": 60, "seed": 5}
    balanced = sampler(tiles, text, **options)
    orders = []
    for epoch in (0, 1):
        balanced.set_epoch(epoch)
        plan = balanced.plan()
        assert len(plan) == len(balanced) == 12
        orders.append([{i for time in plan[s : s + 3] for batch in time for i in batch} for s in range(0, 12, 3)])
        assert [len(step) for step in orders[-1]] == [24] * 4
    assert orders[0] != orders[1]
    balanced.set_epoch(0)
    plain = sampler(np.ones(96, dtype=int), np.ones(96, dtype=int), **options).plan()
    assert orders[0] == [{i for time in plain[s : s + 3] for batch in time for i in batch} for s in range(0, 12, 3)]


def test_what_exceeds_a_steps_budget_comes_with_the_next_one():
    # Four tiles fit into each of two batches, and a step would have sixteen.
    plan = sampler([2] * 16, [5] * 16, batch_size=4, ranks=2, max_tiles=4, shuffle=False).plan()
    assert [len(batch) for time in plan for batch in time] == [2] * 8
    assert [sorted(i for batch in time for i in batch) for time in plan][:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_ranks_wait_less_for_each_other(accumulation):
    """Eight ranks: the time of all, the slowest one's at every batch, over that of their work shared out evenly."""
    tiles, text = mixed(2048)
    cost = batch_cost(MM1Config.from_preset("mm1-tiny"))
    balanced = sampler(tiles, text, cost, batch_size=4, ranks=8, accumulation=accumulation, max_tiles=24)

    def waiting(plan) -> float:
        costs = np.array([balanced._batch_costs(time) for time in plan])
        return costs.max(axis=1).sum() / costs.mean(axis=1).sum()

    order = np.random.default_rng(1).permutation(2048).reshape(-1, 8, 4).tolist()
    assert waiting(order) > 1.6
    assert waiting(balanced.plan()) < 1.2
    if not hasattr(trainer_pt_utils, "BatchRebalanceSampler"):
        pytest.skip("this transformers has no such sampler to compare with")
    by_length = trainer_pt_utils.BatchRebalanceSampler(balanced.lengths, 32 * accumulation, 8, accumulation)
    of_ranks = []
    for rank in range(8):
        by_length.rank = rank
        of_ranks.append(list(by_length))
    assert waiting(balanced.plan()) < waiting(zip(*of_ranks, strict=True)), "transformers' own, by length alone"


def test_cost_is_that_of_the_padded_batch():
    config = MM1Config.from_preset("mm1-tiny")
    (cost,) = batch_cost(config, frozen=["encoder"])(*(np.array([value]) for value in (7, 3, 50, 90)))
    flops = flops_formula(config).training(
        positions=150, tiles=7, targets=90, pairs=3 * causal_pairs(50), frozen=["encoder"]
    )
    assert cost == flops.total


def examples() -> list[dict]:
    """Six of them, with 0 to 10 tiles, in all of the columns that are read."""
    wide, square = Image.new("RGB", (504, 56)), Image.new("RGB", (56, 56))
    return [
        {"text": "<image>one wide picture", "images": [wide]},
        {"text": "no picture at all, but more words"},
        {"text": "<image><image>two", "images": [square, wide]},
        {"text": "<image><image><image>three, unsplit", "images": [square, wide, square]},
        {"text": "<image>one", "image": square},
        {"text": "words"},
    ]


@pytest.fixture(scope="module")
def parts():
    model, processor = tiny_mm1()
    processor.image_processor.image_splitting = "dynamic"
    processor.image_processor.min_tiles = 1
    return model, processor


def test_tiles_and_text_are_those_of_the_batch(parts):
    _, processor = parts
    sizes = measure(examples(), processor)
    for index, row in enumerate(examples()):
        batch = MM1Collator(processor)([row])
        assert len(batch.get("pixel_values", ())) == sizes.tiles[index]
        # A place in the text was counted as a token beside the image tokens that it becomes.
        images = row.get("images") or ([row["image"]] if "image" in row else [])
        assert batch["input_ids"].shape[1] == sizes.lengths[index] - len(images)
    assert sizes.tiles.tolist() == [10, 0, 11, 3, 1, 0]


def test_stored_chats_are_measured_undecoded(parts):
    _, processor = parts
    chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A wide picture."}]
    features = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "images": datasets.List(datasets.Image()),
        }
    )
    rows = [{"messages": chat, "images": [Image.new("RGB", (504, 56))]}, {"messages": chat[:2], "images": []}]
    dataset = datasets.Dataset.from_list(rows, features=features)
    sizes = measure(dataset, processor)
    assert sizes.tiles.tolist() == [10, 0]
    # Bytes are the tokens here; what stands around a message is reckoned.
    assert sizes.text.tolist() == [len("What is it?A wide picture.") + 10] * 2
    spoken = [{"role": "user", "content": [{"type": "image", "image": rows[0]["images"][0]}]}]
    assert measure([{"prompt": spoken, "completion": chat[1:]}], processor).tiles.tolist() == [10]


def trainer(parts, folder, balanced: bool, **settings) -> MM1Trainer:
    """Over ten rows of 48 tiles, from the same weights every time."""
    processor = parts[1]
    rows = [{"text": row["text"], "images": row.get("images") or []} for row in examples() if "image" not in row] * 2
    return MM1Trainer(
        model=tiny_mm1()[0],
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            **{"save_strategy": "no", **settings},
        ),
        train_dataset=rows,
        data_collator=MM1Collator(processor),
        **({"example_sizes": measure(rows, processor), "max_tiles": 26} if balanced else {}),
    )


def weights(run: MM1Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in run.model.named_parameters()}


def test_a_balanced_step_is_the_same_step(parts, tmp_path):
    settings = {"max_steps": 1, "per_device_train_batch_size": 5, "gradient_accumulation_steps": 2}
    runs = [trainer(parts, tmp_path, balanced, **settings) for balanced in (False, True)]
    plain, balanced = ([len(batch["pixel_values"]) for batch in run.get_train_dataloader()] for run in runs)
    assert max(plain) > 26 >= max(balanced) and sum(plain) == sum(balanced) == 48
    for run in runs:
        run.train()
    moved = weights(runs[1])
    for name, weight in weights(runs[0]).items():
        torch.testing.assert_close(moved[name], weight, atol=1e-5, rtol=1e-5, msg=name)


def test_a_run_stopped_in_a_later_epoch_goes_on_with_its_batches(parts, tmp_path):
    settings = {"max_steps": 9, "per_device_train_batch_size": 2}
    straight = trainer(parts, tmp_path / "straight", True, **settings)
    straight.train()
    first = trainer(parts, tmp_path / "stopped", True, save_strategy="steps", save_steps=7, **settings)
    first.train()
    resumed = trainer(parts, tmp_path / "stopped", True, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-7"))
    moved = weights(resumed)
    for name, weight in weights(straight).items():
        assert torch.equal(moved[name], weight), name


def test_what_cannot_be_balanced_is_refused(parts, tmp_path):
    with pytest.raises(ValueError, match=r"Example 1 has 11 tiles, more than max_tiles=10"):
        sampler([1, 11, 2], [1, 1, 1], batch_size=1, max_tiles=10)
    with pytest.raises(ValueError, match="max_tiles needs the sizes"):
        MM1Trainer(model=parts[0], max_tiles=4)
    run = trainer(parts, tmp_path, True, max_steps=1)
    run.train_dataset = run.train_dataset[:4]
    with pytest.raises(ValueError, match="holds the sizes of 10 examples, but the training data has 4"):
        run.get_train_dataloader()
