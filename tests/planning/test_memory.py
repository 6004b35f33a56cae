"""The planner's memory beside what real steps on the CPU take, as torch's allocator reports it."""

import gc

import pytest
import torch
from tiny import tiny_mm1
from torch.profiler import ProfilerActivity, profile
from transformers.optimization import Adafactor

from mm1_hf import MM1Config, MM1ForConditionalGeneration
from mm1_hf.model.versions import ENABLES_CHECKPOINTING
from mm1_hf.planning.memory import Layout, Row, activation_peak, rank_shapes, state_memory
from mm1_hf.training.parts import freeze


ROW = Row(positions=512, tiles=16, targets=300)
WITHIN = 0.15


def allocated_at_most(step):
    """The most bytes that the CPU's allocator has handed out during `step()`, above what it had before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    alive = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def preset(name):
    torch.manual_seed(0)
    return MM1ForConditionalGeneration(MM1Config.from_preset(name))


def batch_of(config):
    """A packed row of two segments."""
    input_ids = torch.full((1, ROW.positions), 7)
    input_ids[:, : ROW.tiles * config.connector_config.num_tokens] = config.image_token_id
    labels = input_ids.clone()
    labels[:, : -ROW.targets] = -100
    segment_ids = torch.ones_like(input_ids)
    segment_ids[:, ROW.positions // 2 :] = 2
    side = config.vision_config.image_size
    pixel_values = torch.randn(ROW.tiles, 3, side, side)
    return {"input_ids": input_ids, "labels": labels, "segment_ids": segment_ids, "pixel_values": pixel_values}


def run(model, autocast=False):
    """A forward and a backward pass, which accumulates on earlier gradients."""
    batch = batch_of(model.config)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**batch).loss
    loss.backward()


MODELS = {
    "dense": lambda: preset("mm1-tiny"),
    "moe": lambda: preset("mm1-tiny-moe"),
    "clip-llama": lambda: tiny_mm1()[0],
}


@pytest.mark.parametrize(
    ("make", "autocast", "checkpointing"),
    [
        ("dense", False, False),
        ("dense", True, False),
        ("dense", True, True),
        ("moe", False, True),
        ("moe", True, False),
        ("moe", True, True),
        ("clip-llama", True, False),
    ],
)
def test_activations_are_those_of_a_real_pass(make, autocast, checkpointing):
    model = MODELS[make]().train()
    if checkpointing:
        getattr(model, ENABLES_CHECKPOINTING)({"use_reentrant": False})
    run(model, autocast)
    measured = allocated_at_most(lambda: run(model, autocast))
    planned = activation_peak(model.config, ROW, autocast=autocast, gradient_checkpointing=checkpointing)
    assert planned == pytest.approx(measured, rel=WITHIN)


def test_a_frozen_encoder_saves_nothing():
    model = preset("mm1-tiny").train()
    freeze(model, ["encoder"])
    run(model)
    measured = allocated_at_most(lambda: run(model))
    planned = activation_peak(model.config, ROW, autocast=False, frozen=["encoder"])
    assert planned == pytest.approx(measured, rel=WITHIN)
    assert planned < activation_peak(model.config, ROW, autocast=False)


def test_many_layers_are_planned_from_a_few():
    config = MM1Config.from_preset("mm1-tiny-moe")
    config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers = 6, 11
    model = MM1ForConditionalGeneration(config).train()
    getattr(model, ENABLES_CHECKPOINTING)({"use_reentrant": False})
    run(model)
    measured = allocated_at_most(lambda: run(model))
    planned = activation_peak(config, ROW, autocast=False, gradient_checkpointing=True)
    assert planned == pytest.approx(measured, rel=0.02)


def adamw(weights):
    # As on a GPU, where foreach is the default.
    return torch.optim.AdamW(weights, foreach=True)


def adafactor(weights):
    return Adafactor(weights, lr=1e-5, scale_parameter=False, relative_step=False)


@pytest.mark.parametrize("frozen", [(), ("encoder", "connector")], ids=["all", "decoder"])
@pytest.mark.parametrize(("name", "make"), [("adamw_torch", adamw), ("adafactor", adafactor)])
@pytest.mark.parametrize("model", ["dense", "moe"])
def test_states_are_those_of_a_real_step(model, name, make, frozen):
    model = MODELS[model]().train()
    freeze(model, frozen)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = make(trained)
    run(model)
    optimizer.step()
    planned = state_memory(model.config, Layout(), name, frozen)
    states = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    assert planned.weights == sum(weight.nbytes for weight in model.parameters())
    assert planned.gradients == sum(weight.grad.nbytes for weight in model.parameters() if weight.grad is not None)
    assert planned.optimizer == pytest.approx(sum(value.nbytes for value in states), rel=0.01)
    assert planned.update == pytest.approx(allocated_at_most(optimizer.step), rel=WITHIN)


def test_seven_billion_parameters_take_112_gigabytes():
    planned = state_memory(MM1Config.from_preset("mm1-7b"), Layout())
    assert planned.weights == pytest.approx(4 * 7.4e9, rel=0.05)
    assert planned.states == 4 * planned.weights


def test_what_does_not_divide_is_refused():
    model = preset("mm1-tiny-moe")
    for layout, words in {
        Layout(tp=3): "num_attention_heads=4",
        Layout(tp=4): "num_key_value_heads=2",
        Layout(data=6, ep=3): "4 experts",
        Layout(data=2, ep=4): "divides 2",
    }.items():
        with pytest.raises(ValueError, match=words):
            rank_shapes(model, layout)
    with pytest.raises(ValueError, match="dense"):
        rank_shapes(preset("mm1-tiny"), Layout(data=2, ep=2))
