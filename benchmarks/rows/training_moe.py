"""A training step of an MM1 whose decoder has experts in every second layer: 64 of them, of which a token goes to two."""

from typing import Any

from benchmarks.measuring import Report
from benchmarks.rows.training import measure_model, prepare_model
from benchmarks.scales import Scale


def experts(scale: Scale) -> dict[str, Any]:
    return {
        "num_experts": scale.experts[0],
        "num_experts_per_tok": 2,
        "moe_intermediate_size": scale.expert_size,
        "moe_layer_period": 2,
        "router_aux_loss_coef": 0.01,
    }


def prepare(scale: Scale) -> None:
    prepare_model(scale.shallow(), experts(scale))


def measure(scale: Scale, report: Report) -> None:
    measure_model(scale, report, "training, experts", experts(scale))
