import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import byte_tokenizer, tiny_decoder
from transformers import AutoConfig, AutoModel

from mm1_hf import AIMVisionConfig, AIMVisionModel, MM1ConnectorConfig, MM1ForConditionalGeneration, assemble
from mm1_hf.convert import aim, convert_aim
from mm1_hf.convert.engine import empty_model


WIDTH, DEPTH, HEADS = 32, 3, 2


def random_weights(width=WIDTH, depth=DEPTH):
    """AIM's own names and shapes: no biases but in the norms and the patches' projection."""
    shapes = {
        "preprocessor.patchifier.proj.weight": (width, 3, 14, 14),
        "preprocessor.patchifier.proj.bias": (width,),
        "preprocessor.patchifier.norm.weight": (width,),
        "preprocessor.patchifier.norm.bias": (width,),
        "trunk.post_trunk_norm.weight": (width,),
        "trunk.post_trunk_norm.bias": (width,),
        "head.cls_token": (1, 1, width),
        "head.linear.weight": (10, width),
    }
    for layer in range(depth):
        block = f"trunk.blocks.{layer}."
        shapes |= {f"{block}norm_{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
        shapes[f"{block}attn.qkv.weight"] = (3 * width, width)
        shapes[f"{block}attn.proj.weight"] = (width, width)
        shapes[f"{block}mlp.fc1.weight"] = (4 * width, width)
        shapes[f"{block}mlp.fc2.weight"] = (width, 4 * width)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def positions(height, width, dim):
    """One number at a time."""
    table = torch.empty(height * width, dim)
    quarter = dim // 4
    for row in range(height):
        for column in range(width):
            for index in range(quarter):
                for axis, place in enumerate((column, row)):
                    angle = torch.tensor(place / 10000 ** (index / quarter))
                    table[row * width + column, axis * dim // 2 + index] = angle.sin()
                    table[row * width + column, axis * dim // 2 + quarter + index] = angle.cos()
    return table


def features(weights, images, layers):
    """What AIM computes, from its weights by functions alone; before the last norm."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    patches = "preprocessor.patchifier"
    x = F.conv2d(images, weights[f"{patches}.proj.weight"], weights[f"{patches}.proj.bias"], stride=14)
    height, width = x.shape[-2:]
    x = norm(x.flatten(2).transpose(1, 2), f"{patches}.norm") + positions(height, width, WIDTH)
    for layer in range(layers):
        block = f"trunk.blocks.{layer}"
        qkv = F.linear(norm(x, f"{block}.norm_1"), weights[f"{block}.attn.qkv.weight"])
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        scores = (query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        x = x + F.linear((scores @ value).transpose(1, 2).flatten(2), weights[f"{block}.attn.proj.weight"])
        hidden = F.gelu(F.linear(norm(x, f"{block}.norm_2"), weights[f"{block}.mlp.fc1.weight"]))
        x = x + F.linear(hidden, weights[f"{block}.mlp.fc2.weight"])
    return x, norm(x, "trunk.post_trunk_norm")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(random_weights(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"img_size": 56, "num_heads": HEADS}))
    return folder


def tiles(side=56):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", [56, 84])
@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_features_are_aim_s_own(source, tmp_path, side, layers, attention):
    convert_aim(source, tmp_path / "converted", num_layers=layers)
    model = AutoModel.from_pretrained(tmp_path / "converted", attn_implementation=attention).eval()
    assert (
        type(model) is AIMVisionModel and type(AutoConfig.from_pretrained(tmp_path / "converted")) is AIMVisionConfig
    )
    outputs = model(tiles(side), output_hidden_states=True)
    before, after = features(random_weights(), tiles(side), layers or DEPTH)
    torch.testing.assert_close(outputs.last_hidden_state, after, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs.hidden_states[-1], before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "width, depth, heads, used, parameters",
    # The papers' sizes without the probing head; 20 of 24 layers for the first.
    [(1536, 24, 12, 20, 0.57e9), (2048, 24, 16, 24, 1.21e9), (3072, 24, 24, 24, 2.72e9), (4096, 32, 32, 32, 6.45e9)],
)
def test_the_published_sizes(width, depth, heads, used, parameters, tmp_path):
    class Described(dict):
        path = tmp_path
        meta = dict.__getitem__

    with torch.device("meta"):
        names = {"preprocessor.patchifier.proj.weight": torch.empty(width, 3, 14, 14)}
        names |= {f"trunk.blocks.{layer}.mlp.fc1.weight": torch.empty(4 * width, width) for layer in range(depth)}
    config = aim._configuration(Described(names), {}, None)
    assert (config.num_attention_heads, config.num_hidden_layers, config.image_size) == (heads, used, 224)
    model = empty_model(AIMVisionModel, config)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(parameters, rel=0.02)


def test_an_mm1_sees_through_it(source, tmp_path):
    convert_aim(source, tmp_path / "converted")
    connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32)
    model, processor = assemble(
        tmp_path / "converted",
        tiny_decoder(),
        connector,
        tokenizer=byte_tokenizer(),
        vision_feature_layer=2,
        verbose=False,
    )
    assert model.config.vision_config.num_hidden_layers == 2
    assert list(processor.image_processor.image_mean) == [0.485, 0.456, 0.406]
    expected, _ = features(random_weights(), tiles(), 2)
    patches = model.model.vision_tower(tiles()).last_hidden_state
    torch.testing.assert_close(patches, expected, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path / "mm1")
    assert (tmp_path / "mm1" / "modeling_aim.py").is_file()
    again = MM1ForConditionalGeneration.from_pretrained(tmp_path / "mm1")
    torch.testing.assert_close(again.model.vision_tower(tiles()).last_hidden_state, patches)
    again.train().model.get_image_features(tiles()).pooler_output.sum().backward()
    assert all(weight.grad is not None for weight in again.model.vision_tower.parameters())


def test_what_is_no_aim(source, tmp_path):
    with pytest.raises(ValueError, match=r"num_layers=4, but .* has 3 layers"):
        convert_aim(source, tmp_path / "converted", num_layers=4)
    save_file({"embeddings.weight": torch.ones(2)}, source / "model.safetensors")
    with pytest.raises(ValueError, match="is not a checkpoint of AIM, version 1"):
        convert_aim(source, tmp_path / "converted")
    with pytest.raises(ValueError, match="hidden_size=30"):
        AIMVisionConfig(hidden_size=30, num_attention_heads=2)
