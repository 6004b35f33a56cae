import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf import MM1ConnectorConfig
from mm1_hf.model.connectors import CONNECTORS, RegNetBlock, build_connector, interpolate_grid


def connector(connector_type: str, grid_size: int, num_tokens: int | None, vision=24, text=20, **fields):
    """A connector with random weights everywhere: norms and embeddings too, so that none of them hides."""
    torch.manual_seed(0)
    fields = {"hidden_size": 16, "num_attention_heads": 4, **fields}
    config = MM1ConnectorConfig(connector_type=connector_type, num_tokens=num_tokens, **fields)
    config.fit(vision, text, grid_size)
    module = build_connector(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def paper_connector(vision: int, grid_size: int, text: int) -> torch.nn.Module:
    config = MM1ConnectorConfig()
    config.fit(vision, text, grid_size)
    with torch.device("meta"):
        return build_connector(config)


@pytest.mark.parametrize(
    ("vision", "grid_size", "text", "parameters"),
    [
        (1280, 27, 2048, 24_763_200),
        (1280, 27, 3072, 31_056_704),
        (1280, 27, 4096, 39_447_360),
        (1280, 27, 7168, 77_202_240),
        (1024, 24, 2048, 22_713_856),
    ],
)
def test_c_abstractor_has_honeybee_s_number_of_parameters(vision, grid_size, text, parameters):
    assert count(paper_connector(vision, grid_size, text)) == parameters


def test_each_stage_has_honeybee_s_number_of_parameters():
    module = paper_connector(1280, 27, 2048)
    assert count(module.stage1) == 9_620_288
    assert count(module.stage2) == 7_914_240


def norm2d(features: torch.Tensor, weights: dict, name: str) -> torch.Tensor:
    mean = features.mean(1, keepdim=True)
    variance = (features - mean).square().mean(1, keepdim=True)
    scale, shift = weights[f"{name}.weight"][:, None, None], weights[f"{name}.bias"][:, None, None]
    return (features - mean) / (variance + 1e-5).sqrt() * scale + shift


def reference_block(features: torch.Tensor, weights: dict) -> torch.Tensor:
    """The block as facts about Honeybee state it, from the weights alone."""
    channels = weights["conv1.conv.weight"].shape[0]
    hidden = F.silu(norm2d(F.conv2d(features, weights["conv1.conv.weight"]), weights, "conv1.norm"))
    hidden = F.conv2d(hidden, weights["conv2.conv.weight"], padding=1, groups=channels)
    hidden = F.silu(norm2d(hidden, weights, "conv2.norm"))
    squeezed = hidden.mean((2, 3))
    squeezed = F.silu(
        squeezed @ weights["squeeze_excite.reduce.weight"][..., 0, 0].T + weights["squeeze_excite.reduce.bias"]
    )
    gate = squeezed @ weights["squeeze_excite.expand.weight"][..., 0, 0].T + weights["squeeze_excite.expand.bias"]
    hidden = hidden * gate.sigmoid()[..., None, None]
    hidden = norm2d(F.conv2d(hidden, weights["conv3.conv.weight"]), weights, "conv3.norm")
    if "shortcut.conv.weight" in weights:
        features = norm2d(F.conv2d(features, weights["shortcut.conv.weight"]), weights, "shortcut.norm")
    return F.silu(hidden + features)


@pytest.mark.parametrize(("in_channels", "channels"), [(16, 16), (24, 16), (10, 16)])
def test_block_equals_an_independent_computation(in_channels, channels):
    torch.manual_seed(0)
    block = RegNetBlock(in_channels, channels)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features = torch.randn(2, in_channels, 5, 5)
    weights = block.state_dict()
    assert weights["squeeze_excite.reduce.weight"].shape[0] == round(0.25 * in_channels)
    assert ("shortcut.conv.weight" in weights) == (in_channels != channels)
    torch.testing.assert_close(block(features), reference_block(features, weights), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_c_abstractor_equals_an_independent_computation(depth):
    # 7 patches to 3 tokens a side does not divide, as the paper's 27 to 12 does not.
    module = connector("c_abstractor", 7, 9, depth=depth)
    weights = module.state_dict()
    patches = torch.randn(2, 49, 24)

    def stage(hidden: torch.Tensor, name: str) -> torch.Tensor:
        for index in range(depth):
            prefix = f"{name}.{index}."
            block = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            hidden = reference_block(hidden, block)
        return hidden

    hidden = (patches + weights["position_embedding"]).transpose(1, 2).reshape(2, 24, 7, 7)
    hidden = stage(hidden, "stage1")
    # Adaptive pooling: cell i averages from floor(i * 7 / 3) to ceil((i + 1) * 7 / 3).
    edges = [(i * 7 // 3, -(-(i + 1) * 7 // 3)) for i in range(3)]
    rows = [[hidden[:, :, top:bottom, left:right].mean((2, 3)) for left, right in edges] for top, bottom in edges]
    hidden = stage(torch.stack([torch.stack(row, -1) for row in rows], -2), "stage2")
    tokens = hidden.reshape(2, -1, 9).transpose(1, 2)
    tokens = F.silu(tokens @ weights["readout.0.weight"].T + weights["readout.0.bias"])
    tokens = tokens @ weights["readout.2.weight"].T + weights["readout.2.bias"]
    torch.testing.assert_close(module(patches), tokens, atol=1e-4, rtol=1e-4)


def test_attention_pooling_equals_an_independent_formula():
    module = connector("attention", 4, 5)
    weights = module.state_dict()
    patches = torch.randn(2, 16, 24)

    def project(features: torch.Tensor, name: str) -> torch.Tensor:
        return features @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(features: torch.Tensor, name: str) -> torch.Tensor:
        centred = features - features.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    queries = weights["queries"][0]
    query = project(norm(queries, "query_norm"), "q_proj")
    normed = norm(patches, "patch_norm")
    key, value = project(normed, "k_proj"), project(normed, "v_proj")
    heads = []
    for head in range(4):
        part = slice(6 * head, 6 * head + 6)
        scores = torch.einsum("qd,bpd->bqp", query[:, part], key[..., part]) / math.sqrt(6)
        heads.append(scores.softmax(-1) @ value[..., part])
    pooled = queries + project(torch.cat(heads, -1), "o_proj")
    torch.testing.assert_close(module(patches), project(pooled, "projection"), atol=1e-4, rtol=1e-4)


def test_average_pooling_averages_blocks_of_patches():
    module = connector("average", 4, 4)
    patches = torch.randn(2, 16, 24)
    # By hand: token (i, j) is the mean of the 2 x 2 patches below it.
    cells = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    pooled = torch.stack([patches[:, cell].mean(1) for cell in cells], dim=1)
    torch.testing.assert_close(module(patches), F.linear(pooled, module.projection.weight, module.projection.bias))


@pytest.mark.parametrize("connector_type", ["linear", "mlp"])
def test_unreduced_connectors_project_each_patch_by_itself(connector_type):
    module = connector(connector_type, 4, None)
    patches = torch.randn(2, 16, 24)
    weights = [module] if connector_type == "linear" else [module[0], module[2]]
    tokens = F.linear(patches, weights[0].weight, weights[0].bias)
    if connector_type == "mlp":
        tokens = 0.5 * tokens * (1 + torch.erf(tokens / math.sqrt(2)))
        tokens = F.linear(tokens, weights[1].weight, weights[1].bias)
    torch.testing.assert_close(module(patches), tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [64, 144, 169])
@pytest.mark.parametrize("connector_type", ["c_abstractor", "average", "attention"])
def test_reducing_connectors_give_the_tokens_asked_for(connector_type, num_tokens):
    # 169 is every patch of a 13 x 13 grid: no reduction.
    module = connector(connector_type, 13, num_tokens)
    assert module(torch.randn(2, 169, 24)).shape == (2, num_tokens, 20)
    # Another resolution gives as many tokens.
    assert module(torch.randn(2, 400, 24)).shape == (2, num_tokens, 20)


def test_average_pooling_without_reduction_is_the_linear_connector():
    module = connector("average", 5, 25)
    patches = torch.randn(2, 25, 24)
    torch.testing.assert_close(module(patches), module.projection(patches))


@pytest.mark.parametrize("connector_type", CONNECTORS)
def test_every_weight_gets_a_gradient(connector_type):
    unreduced = connector_type in ("linear", "mlp")
    module = connector(connector_type, 6, None if unreduced else 9)
    module(torch.randn(2, 36, 24)).square().sum().backward()
    assert not [name for name, parameter in module.named_parameters() if parameter.grad is None]


def test_tiles_do_not_see_each_other():
    for connector_type in CONNECTORS:
        module = connector(connector_type, 4, None if connector_type in ("linear", "mlp") else 4)
        patches = torch.randn(3, 16, 24)
        torch.testing.assert_close(module(patches)[1:2], module(patches[1:2]), atol=1e-5, rtol=1e-5)


def test_position_embedding_is_interpolated_in_float32():
    torch.manual_seed(0)
    table = torch.randn(36, 8).bfloat16()
    grid = table.reshape(1, 6, 6, 8).permute(0, 3, 1, 2)

    def interpolate(grid: torch.Tensor) -> torch.Tensor:
        resized = F.interpolate(grid, size=(9, 9), mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1).reshape(81, 8).bfloat16()

    result = interpolate_grid(table, 9, 9)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, interpolate(grid.float()))
    # Otherwise the line above says nothing.
    assert not torch.equal(result, interpolate(grid))


def test_c_abstractor_adds_the_interpolated_embedding_at_another_resolution():
    module = connector("c_abstractor", 4, 4, depth=0)
    patches = torch.randn(2, 36, 24)
    table = module.position_embedding.data[0]
    expected = module.readout(
        F.adaptive_avg_pool2d((patches + interpolate_grid(table, 6, 6)).transpose(1, 2).reshape(2, 24, 6, 6), 2)
        .flatten(2)
        .transpose(1, 2)
    )
    torch.testing.assert_close(module(patches), expected, atol=1e-5, rtol=1e-5)


@given(side=st.integers(1, 6), height=st.integers(1, 9), width=st.integers(1, 9), value=st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_a_constant_embedding_stays_constant_on_any_grid(side, height, width, value):
    resized = interpolate_grid(torch.full((side**2, 3), value), height, width)
    assert resized.shape == (height * width, 3)
    torch.testing.assert_close(resized, torch.full_like(resized, value))


def test_the_same_grid_keeps_the_embedding_itself():
    table = torch.randn(9, 4)
    assert interpolate_grid(table, 3, 3) is table


@pytest.mark.parametrize("connector_type", ["c_abstractor", "average", "attention"])
def test_half_precision_stays_close(connector_type):
    module = connector(connector_type, 8, 16)
    patches = torch.randn(2, 64, 24)
    exact, half = module(patches), module.bfloat16()(patches.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() / exact.norm() < 0.03
