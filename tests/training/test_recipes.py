import math
from dataclasses import replace

import pytest
import torch
from machines import CPUS, pretend_accelerator, pretend_cpu
from tiny import tiny_mm1
from transformers import get_scheduler

from mm1_hf import MM1Config
from mm1_hf.training.recipes import STAGES, accumulation_steps, peak_learning_rate, recipe


# The law's values for the papers' sizes, to two or three digits.
@pytest.mark.parametrize(
    ("number", "rate"),
    [
        (9e6, 6.75e-4),
        (85e6, 2.62e-4),
        (302e6, 1.53e-4),
        (1.2e9, 8.6e-5),
        (2.9e9, 5.9e-5),
        (6.4e9, 4.2e-5),
        (30e9, 2.2e-5),
    ],
)
def test_the_law_gives_the_papers_rates(number, rate):
    assert peak_learning_rate(number) == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize(
    ("name", "rate"),
    [("mm1-proxy-85m", 2.62e-4), ("mm1-3b", 5.9e-5), ("mm1-7b", 4.2e-5), ("mm1-30b", 2.2e-5), ("mm1-3b-moe", 5.9e-5)],
)
def test_n_is_counted_from_the_model(name, rate):
    # A mixture of experts learns at its backbone's rate.
    assert recipe(name).arguments["learning_rate"] == pytest.approx(rate, rel=0.02)


def test_models_of_ones_own_have_recipes():
    model, _ = tiny_mm1()
    number = sum(
        weight.numel() for name, weight in model.model.language_model.named_parameters() if "embed_tokens" not in name
    )
    assert recipe(model).parameters == recipe(model.config).parameters == number


def test_pretraining_sees_400_billion_positions():
    pretrain = recipe("mm1-3b")
    positions = pretrain.batch_size * pretrain.data.sequence_length * pretrain.arguments["max_steps"]
    assert positions == 419_430_400_000
    assert pretrain.data.max_images == 16 and pretrain.data.resolution == 378
    assert pretrain.data.mixture == {"interleaved": 0.45, "caption": 0.45, "text": 0.1}


def test_mm1_5_mixtures():
    assert recipe("mm1.5-3b").data.mixture == {"caption": 0.5, "interleaved": 0.1, "text": 0.4}
    per_cent = {name: round(100 * weight, 1) for name, weight in recipe("mm1.5-3b", "sft").data.mixture.items()}
    assert per_cent == {
        "general": 11.3,
        "text-rich": 37.2,
        "refer-and-ground": 22.5,
        "math": 5.6,
        "code": 2.3,
        "science": 1.1,
        "multi-image": 10.0,
        "text-only": 10.0,
    }


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["mm1-3b", "mm1.5-3b"])
def test_stages_become_training_arguments(name, stage, tmp_path):
    stage_recipe = recipe(name, stage)
    assert sum(stage_recipe.data.mixture.values()) == pytest.approx(1)
    arguments = stage_recipe.training_arguments(
        str(tmp_path), num_devices=8, rows_per_device=2, bf16=False, use_cpu=True
    )
    assert arguments.per_device_train_batch_size == 2
    assert arguments.gradient_accumulation_steps == stage_recipe.batch_size // 16
    assert arguments.ignore_data_skip and not arguments.remove_unused_columns
    assert not arguments.accelerator_config.dispatch_batches and not arguments.accelerator_config.split_batches
    assert arguments.optim == ("adamw_torch" if stage == "pretrain" else "adafactor")
    assert f"'learning_rate': {arguments.learning_rate}" in str(stage_recipe)


@CPUS
@pytest.mark.parametrize(
    ("changed", "changes", "bf16"),
    [({}, {}, None), ({}, {"bf16": True}, True), ({}, {"bf16": False}, False), ({"bf16": False}, {}, False)],
    ids=["as it is", "bf16", "no bf16", "recipe without bf16"],
)
def test_a_recipe_runs_on_any_cpu(changed, changes, bf16, cpu_dtype, tmp_path, monkeypatch):
    pretend_cpu(monkeypatch, cpu_dtype)
    stage = recipe("mm1-tiny")
    assert stage.arguments["bf16"], "the recipe itself is the same on every machine"
    stage = replace(stage, arguments=stage.arguments | changed)
    arguments = stage.training_arguments(str(tmp_path), num_devices=1, **changes)
    assert arguments.use_cpu and not arguments.fp16
    assert arguments.bf16 is (cpu_dtype is torch.bfloat16 if bf16 is None else bf16)


def test_a_recipe_can_be_held_to_the_cpu(tmp_path, monkeypatch):
    pretend_cpu(monkeypatch, torch.float32)
    pretend_accelerator(monkeypatch, "cuda", bfloat16=True)
    stage = recipe("mm1-tiny")
    stage = replace(stage, arguments=stage.arguments | {"use_cpu": True})
    arguments = stage.training_arguments(str(tmp_path), num_devices=1)
    assert arguments.use_cpu and not arguments.bf16


def test_weights_decay_by_a_tenth_of_the_rate(tmp_path):
    """The papers' decay, 0.1 * rate, is what one step takes off a weight that has no gradient."""
    arguments = recipe("mm1-3b").arguments
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=arguments["learning_rate"], weight_decay=arguments["weight_decay"])
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert 1 - weight.item() == pytest.approx(0.1 * 5.9e-5, rel=0.02)


@pytest.mark.parametrize(("stage", "end"), [("pretrain", 0.1), ("continual", 0.0), ("sft", 0.0)])
def test_the_schedule_ends_where_the_papers_say(stage, end):
    arguments = recipe("mm1-3b", stage).arguments
    peak, steps, warmup = (arguments[name] for name in ("learning_rate", "max_steps", "warmup_steps"))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=peak)
    schedule = get_scheduler(
        arguments["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments.get("lr_scheduler_kwargs"),
    )
    factor = schedule.lr_lambdas[0]
    assert factor(warmup) == 1 and factor(steps) == pytest.approx(end)
    middle = (warmup + steps) // 2
    assert factor(middle) == pytest.approx(end + (1 - end) * (1 + math.cos(math.pi / 2)) / 2)
    if stage == "pretrain":
        assert factor(1000) == 0.5


def test_only_the_30b_run_has_a_z_loss():
    assert recipe("mm1-30b").z_loss_coef == 1e-4
    assert recipe("mm1-3b").z_loss_coef == recipe("mm1-30b", "sft").z_loss_coef == 0


@pytest.mark.parametrize(("devices", "rows", "steps"), [(1, 1, 512), (64, 2, 4), (512, 1, 1)])
def test_the_batch_is_reached_by_accumulation(devices, rows, steps):
    assert accumulation_steps(512, devices, rows) == steps


@pytest.mark.parametrize(("devices", "rows"), [(24, 1), (3, 1), (1024, 1), (0, 1)])
def test_a_batch_that_does_not_divide_is_refused(devices, rows):
    with pytest.raises(ValueError, match=f"512 rows does not divide into passes of {devices} devices"):
        accumulation_steps(512, devices, rows)


def test_unknown_stages_and_presets_are_refused():
    with pytest.raises(ValueError, match="no stage 'rlhf'; choose one of pretrain, continual, sft"):
        recipe("mm1-3b", "rlhf")
    with pytest.raises(ValueError, match="mm1-5b"):
        recipe("mm1-5b")
    assert recipe(MM1Config.from_preset("mm1-tiny")).model == "custom"
