import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_vision
from transformers import (
    AutoModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
)

from mm1_hf.model.image_processing_mm1 import MM1ImageProcessor
from mm1_hf.model.vision import build_vision_tower, encode, normalize_levels


KINDS = ["clip", "siglip", "aimv2", "dinov2", "dinov2-registers", "dinov3", "aim"]
# Class and register tokens before the patches.
PREFIX = {"clip": 1, "siglip": 0, "aimv2": 0, "dinov2": 1, "dinov2-registers": 5, "dinov3": 5, "aim": 0}
FINAL_NORM = {
    "clip": "post_layernorm",
    "siglip": "post_layernorm",
    "aimv2": "rms_norm",
    "dinov2": "layernorm",
    "dinov2-registers": "layernorm",
    "dinov3": "norm",
    "aim": "norm",
}


def source(kind: str):
    """One of transformers' own encoders, with random weights everywhere."""
    if kind == "dinov2-registers":
        config = Dinov2WithRegistersConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            num_register_tokens=4,
        )
        model = Dinov2WithRegistersModel(config)
    elif kind == "dinov3":
        config = DINOv3ViTConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            num_register_tokens=4,
        )
        model = DINOv3ViTModel(config)
    else:
        model = tiny_vision(kind)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model.eval()


def tower_of(model, final_norm: bool, layer: int = -1):
    tower = build_vision_tower(copy.deepcopy(model.config), layer, final_norm).eval()
    missing, _ = tower.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    return tower


def tiles(side: int = 56) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1


def layer_outputs(model, pixel_values: torch.Tensor, **kwargs) -> list[torch.Tensor]:
    """What every layer of transformers' own class hands on, read off by hooks."""
    found = []
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    hooks = [
        layer.register_forward_hook(
            lambda _, __, output: found.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer in layers
    ]
    model(pixel_values, **kwargs)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("layer", [-1, -2, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_encoder_s_own_patches(kind, layer, final_norm):
    model = source(kind)
    # Layer 3 is the last of three, as -1 is.
    expected = layer_outputs(model, tiles())[layer if layer < 0 else layer - 1]
    if final_norm:
        expected = getattr(model, FINAL_NORM[kind])(expected)
    expected = expected[:, PREFIX[kind] :]
    _, features = encode(tower_of(model, final_norm, layer), tiles(), final_norm)
    assert features.shape == (2, 16, 32)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "dinov2-registers", "dinov3"])
@pytest.mark.parametrize("side", [28, 112, 126])
def test_other_resolutions_are_the_encoder_s_own_interpolation(kind, side):
    model = source(kind)
    flag = {} if kind.startswith("dino") else {"interpolate_pos_encoding": True}
    expected = layer_outputs(model, tiles(side), **flag)[-1][:, PREFIX[kind] :]
    _, features = encode(tower_of(model, False), tiles(side), False)
    assert features.shape == (2, (side // 14) ** 2, 32)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


def test_aimv2_follows_the_resolution_though_its_own_class_does_not():
    model = source("aimv2")
    table = model.embeddings.position_embedding.weight
    grid = F.interpolate(table.reshape(1, 4, 4, 32).permute(0, 3, 1, 2), size=(8, 8), mode="bicubic")
    positions = grid.permute(0, 2, 3, 1).reshape(1, 64, 32)
    patches = model.embeddings.patch_embed(tiles(112)).flatten(2).transpose(1, 2)
    expected = model.embeddings.rms_norm(patches) + positions
    tower = tower_of(model, False)
    torch.testing.assert_close(tower.embeddings(tiles(112)), expected, atol=1e-5, rtol=1e-5)
    _, features = encode(tower, tiles(112), False)
    hidden = expected
    for layer in next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList)):
        hidden = layer(hidden, None)
    torch.testing.assert_close(features, hidden, atol=1e-4, rtol=1e-4)


# DINOv3 turns its positions instead of adding them, AIM computes them for any grid.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("dinov3", "aim")])
def test_position_embeddings_are_interpolated_in_float32(kind):
    """A bf16 encoder's embeddings at twice the resolution: those of the fp32 interpolation, rounded once."""
    tower = tower_of(source(kind), False).bfloat16()
    added = []

    def record(grid, *args, **kwargs):
        added.append(grid.dtype)
        return interpolate(grid, *args, **kwargs)

    interpolate, F.interpolate = F.interpolate, record
    try:
        _, features = encode(tower, tiles(112), False)
    finally:
        F.interpolate = interpolate
    assert added == [torch.float32]
    assert features.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_the_embeddings_may_be_the_features(kind):
    model = source(kind)
    seen = []
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args or (kwargs["hidden_states"],))[0]), with_kwargs=True
    )
    model(tiles())
    for layer in (0, -4):
        tower = tower_of(model, False, layer)
        assert not next(m for m in tower.modules() if isinstance(m, torch.nn.ModuleList))
        torch.testing.assert_close(encode(tower, tiles(), False)[1], seen[0][:, PREFIX[kind] :])


@pytest.mark.parametrize("layer", [-1, -2, 0, 2])
@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_gets_a_gradient(kind, final_norm, layer):
    """Data-parallel training refuses weights that no loss reaches."""
    tower = tower_of(source(kind), final_norm, layer).train()
    encode(tower, tiles(), final_norm)[1].square().sum().backward()
    assert not [name for name, parameter in tower.named_parameters() if parameter.grad is None]


def test_the_pooling_head_is_gone():
    model = source("siglip")
    assert any("head" in name for name, _ in model.named_parameters())
    assert not any("head" in name for name, _ in tower_of(model, True).named_parameters())


@pytest.mark.parametrize("kind", ["clip", "aimv2"])
def test_a_tower_survives_copy_and_pickle(kind):
    tower = tower_of(source(kind), False)
    for again in (copy.deepcopy(tower), pickle.loads(pickle.dumps(tower))):
        torch.nn.init.zeros_(tower.embeddings.position_embedding.weight)
        # Its own weights, not the original's.
        _, changed = encode(tower, tiles(112), False)
        _, features = encode(again, tiles(112), False)
        assert not torch.equal(changed, features)
        tower = tower_of(source(kind), False)
        assert torch.equal(encode(tower, tiles(112), False)[1], features)


@pytest.mark.parametrize("shape", [(57, 57), (56, 70), (60, 60)])
def test_tiles_that_are_no_square_of_whole_patches_are_refused(shape):
    with pytest.raises(ValueError, match=f"14 x 14 patches; got tiles of {shape[0]} x {shape[1]}"):
        encode(tower_of(source("clip"), False), torch.zeros(1, 3, *shape), False)


def test_the_encoder_s_own_resolution_is_taken_though_patches_do_not_fill_it():
    """SigLIP's so400m reads 384 pixels in patches of 14 and leaves the last 6 out."""
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=60, patch_size=14
    )
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    expected = layer_outputs(model, tiles(60))[-1]
    _, features = encode(tower_of(model, False), tiles(60), False)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_sizes_may_be_pairs():
    model = source("dinov2")
    tower = tower_of(model, False)
    expected = encode(tower, tiles(), False)[1]
    tower.config.patch_size = [14, 14]
    assert torch.equal(encode(tower, tiles(), False)[1], expected)


def test_uint8_levels_become_the_image_processor_s_values():
    mean, std = [0.48, 0.45, 0.40], [0.26, 0.25, 0.27]
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    processor = MM1ImageProcessor(
        size={"height": 16, "width": 16}, image_mean=mean, image_std=std, image_splitting="none"
    )
    expected = processor(list(levels), return_tensors="pt")["pixel_values"]
    assert torch.equal(normalize_levels(levels, mean, std), expected)


def test_uint8_levels_without_statistics_are_refused():
    with pytest.raises(ValueError, match=r"uint8.*Set its pixel_mean and pixel_scale"):
        normalize_levels(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), None, None)
