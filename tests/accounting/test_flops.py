import pytest
import torch
from tiny import tiny_mm1
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mm1_hf import MM1Config, MM1ConnectorConfig, MM1ForConditionalGeneration
from mm1_hf.accounting.flops import causal_pairs, flops_formula


POSITIONS, TILES, TARGETS = 48, 3, 9


def counted(model, backward=False):
    """What torch counts in a step on one row of 48 positions with 3 tiles and 9 targets, and the formula for it."""
    config = model.config
    tokens, side = config.connector_config.num_tokens, config.vision_config.image_size
    input_ids = torch.arange(POSITIONS).unsqueeze(0) % 32
    input_ids[:, : TILES * tokens] = config.image_token_id
    labels = input_ids.clone()
    labels[:, :-TARGETS] = -100
    torch.manual_seed(0)
    # torch does not count inside the CPU's fused attention, nor inside the experts' grouped kernel.
    model.set_attn_implementation("eager")
    if getattr(config.text_config, "num_experts", 0):
        model.set_experts_implementation("eager")
    # Without gradients in a forward pass alone: the head would compute its own at once.
    with sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        loss = model.train()(input_ids=input_ids, labels=labels, pixel_values=torch.randn(TILES, 3, side, side)).loss
        if backward:
            loss.backward()
    formula = flops_formula(model)
    # torch counts every pair of a row.
    count = formula.training if backward else formula.forward
    sizes = {"positions": POSITIONS, "tiles": TILES, "targets": TARGETS, "pairs": POSITIONS**2}
    return counter, count, sizes


def of(counter, *names):
    return sum(sum(counter.get_flop_counts()[f"MM1ForConditionalGeneration.{name}"].values()) for name in names)


def with_connector(kind):
    # The unreduced ones make 16 tokens of a tile.
    tokens = None if kind in ("linear", "mlp") else 4
    connector = MM1ConnectorConfig(connector_type=kind, num_tokens=tokens, num_attention_heads=2)
    return tiny_mm1(connector=connector)[0]


def preset(name, **fields):
    torch.manual_seed(0)
    return MM1ForConditionalGeneration(MM1Config.from_preset(name, **fields))


MODELS = {
    "dense": lambda: preset("mm1-tiny"),
    "moe": lambda: preset("mm1-tiny-moe"),
    "clip-llama": lambda: tiny_mm1()[0],
    "siglip-llama": lambda: tiny_mm1("siglip")[0],
    "aimv2-llama": lambda: tiny_mm1("aimv2")[0],
    "dinov2-llama": lambda: tiny_mm1("dinov2")[0],
    "feature layer": lambda: preset("mm1-tiny", vision_feature_layer=-2),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_part_is_counted_as_torch_counts_it(make):
    counter, count, sizes = counted(make())
    flops = count(**sizes)
    assert of(counter, "model.vision_tower") == flops.encoder
    assert of(counter, "model.connector") == flops.connector
    assert of(counter, "model.language_model") == flops.decoder
    # The loss reads the head's weights without calling it, so only the sum shows the head.
    assert counter.get_total_flops() == flops.total


@pytest.mark.parametrize("kind", ["average", "attention", "linear", "mlp"])
def test_other_connectors(kind):
    model = with_connector(kind)
    counter, count, sizes = counted(model)
    once = 2 * model.config.connector_config.num_tokens * 32**2 if kind == "attention" else 0
    assert of(counter, "model.connector") == count(**sizes).connector + once


@pytest.mark.parametrize(
    "frozen", [(), ("encoder",), ("encoder", "connector"), ("decoder",), ("connector",)], ids="+".join
)
def test_a_training_step_is_counted_as_torch_counts_it(frozen):
    # Without convolutions: torch counts the gradient of a depthwise one's weights as if it were a full one.
    model = with_connector("mlp")
    parts = {
        "encoder": [model.model.vision_tower],
        "connector": [model.model.connector],
        "decoder": [model.model.language_model, model.lm_head],
    }
    for name in frozen:
        for part in parts[name]:
            part.requires_grad_(False)
    counter, count, sizes = counted(model, backward=True)
    flops = count(**sizes, frozen=frozen)
    # The formula asks gradients of what they end at too. torch computes none of the pixels.
    patches = model.model.vision_tower.embeddings.patch_embedding.weight.numel() * 16
    pixels = 0 if "encoder" in frozen else 2 * patches * TILES
    assert counter.get_total_flops() == pytest.approx(flops.total - pixels, rel=0.02)


def test_experts_count_by_those_that_a_token_meets():
    dense, sparse = (flops_formula(MM1Config.from_preset(name)) for name in ("mm1-3b", "mm1-3b-moe"))
    config = MM1Config.from_preset("mm1-3b").text_config
    second_expert = 3 * config.hidden_size * config.intermediate_size
    router = 64 * config.hidden_size
    # 13 of 26 layers are sparse, with two experts for a token in place of one MLP.
    assert sparse.decoder_per_position - dense.decoder_per_position == 2 * 13 * (second_expert + router)


def test_the_decoder_costs_two_operations_per_parameter():
    formula = flops_formula(MM1Config.from_preset("mm1-30b"))
    assert formula.decoder_per_position == pytest.approx(2 * 29.7e9, rel=0.01)
    assert formula.decoder_per_pair == 4 * 48 * 7168


def test_pairs_of_a_packed_row():
    mask = torch.block_diag(torch.ones(5, 5), torch.ones(3, 3)).tril()
    assert causal_pairs(5, 3) == mask.sum()
