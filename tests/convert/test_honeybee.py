import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import tiny_mm1

from mm1_hf import MM1ConnectorConfig
from mm1_hf.convert import convert_honeybee, load_connector
from mm1_hf.model.connectors import build_connector


VISION, HIDDEN, TEXT, GRID, TOKENS = 32, 24, 64, 4, 4


def random_weights(depth=2, rows=GRID**2, prefix="abstractor."):
    """timm's names of RegNet stages, in Honeybee's abstractor."""
    shapes = {"pos_emb": (1, rows, VISION)}
    channels = VISION
    for net in (0, 2):
        for block in range(1, depth + 1):
            name = f"net.{net}.b{block}"
            convolutions = {
                "conv1": (HIDDEN, channels, 1, 1),
                "conv2": (HIDDEN, 1, 3, 3),
                "conv3": (HIDDEN, HIDDEN, 1, 1),
            }
            if channels != HIDDEN:
                convolutions["downsample"] = (HIDDEN, channels, 1, 1)
            for layer, shape in convolutions.items():
                shapes[f"{name}.{layer}.conv.weight"] = shape
                shapes |= {f"{name}.{layer}.bn.{kind}": (HIDDEN,) for kind in ("weight", "bias")}
            squeezed = round(0.25 * channels)
            shapes |= {f"{name}.se.fc1.weight": (squeezed, HIDDEN, 1, 1), f"{name}.se.fc1.bias": (squeezed,)}
            shapes |= {f"{name}.se.fc2.weight": (HIDDEN, squeezed, 1, 1), f"{name}.se.fc2.bias": (HIDDEN,)}
            channels = HIDDEN
    shapes |= {"readout.0.weight": (TEXT, channels), "readout.0.bias": (TEXT,)}
    shapes |= {"readout.2.weight": (TEXT, TEXT), "readout.2.bias": (TEXT,)}
    generator = torch.Generator().manual_seed(0)
    return {prefix + name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def abstract(weights, patches, depth):
    """The published block, by functions alone."""

    def conv_norm(x, name, **options):
        x = F.conv2d(x, weights[f"{name}.conv.weight"], **options)
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        scale, shift = (weights[f"{name}.bn.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def block(x, name):
        y = F.silu(conv_norm(x, f"{name}.conv1"))
        y = F.silu(conv_norm(y, f"{name}.conv2", padding=1, groups=HIDDEN))
        gate = F.silu(
            F.conv2d(y.mean((2, 3), keepdim=True), weights[f"{name}.se.fc1.weight"], weights[f"{name}.se.fc1.bias"])
        )
        y = y * F.conv2d(gate, weights[f"{name}.se.fc2.weight"], weights[f"{name}.se.fc2.bias"]).sigmoid()
        y = conv_norm(y, f"{name}.conv3")
        return F.silu(y + (conv_norm(x, f"{name}.downsample") if f"{name}.downsample.conv.weight" in weights else x))

    weights = {name.removeprefix("abstractor."): weight for name, weight in weights.items()}
    x = (patches + weights["pos_emb"][:, -(GRID**2) :]).transpose(1, 2).unflatten(2, (GRID, GRID))
    for number in range(depth):
        x = block(x, f"net.0.b{number + 1}")
    x = x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    for number in range(depth):
        x = block(x, f"net.2.b{number + 1}")
    x = F.silu(F.linear(x.flatten(2).transpose(1, 2), weights["readout.0.weight"], weights["readout.0.bias"]))
    return F.linear(x, weights["readout.2.weight"], weights["readout.2.bias"])


def patches():
    return torch.randn(2, GRID**2, VISION, generator=torch.Generator().manual_seed(1))


# One row more: early checkpoints kept the class token's.
@pytest.mark.parametrize("depth, rows", [(2, 16), (1, 17), (0, 16)])
def test_outputs_are_the_published_block_s(depth, rows, tmp_path):
    weights = random_weights(depth, rows)
    save_file({**weights, "language_model.norm.weight": torch.ones(2)}, tmp_path / "honeybee.safetensors")
    convert_honeybee(tmp_path / "honeybee.safetensors", tmp_path / "connector", num_tokens=TOKENS)
    config = MM1ConnectorConfig.from_pretrained(tmp_path / "connector")
    hidden = {"hidden_size": HIDDEN} if depth else {}
    model, _ = tiny_mm1(connector=MM1ConnectorConfig(num_tokens=TOKENS, depth=depth, **hidden))
    load_connector(model, tmp_path / "connector")
    with torch.no_grad():
        given = model.model.connector(patches())
    torch.testing.assert_close(given, abstract(weights, patches(), depth), atol=1e-5, rtol=1e-5)
    assert build_connector(config)(patches()).shape == given.shape


def test_another_size_is_named(tmp_path):
    save_file(random_weights(), tmp_path / "honeybee.safetensors")
    convert_honeybee(tmp_path / "honeybee.safetensors", tmp_path / "connector", num_tokens=TOKENS)
    with pytest.raises(
        ValueError,
        match="depth is 2 in the checkpoint and 3 in the model, hidden_size is 24 in the checkpoint and 32 in the model",
    ):
        load_connector(tiny_mm1()[0], tmp_path / "connector")


@pytest.mark.parametrize(
    "name, message",
    [
        ("abstractor.layers.0.cross_attn.sampling_offsets.weight", r"D-Abstractor \(deformable attention\)"),
        ("abstractor.eos_tokens", "has eos_tokens"),
        ("abstractor.prenorm.weight", "has prenorm"),
        ("abstractor.extra", r"not used abstractor\.extra"),
    ],
)
def test_other_abstractors_are_refused_by_name(name, message, tmp_path):
    save_file({**random_weights(), name: torch.ones(1)}, tmp_path / "honeybee.safetensors")
    with pytest.raises(ValueError, match=message):
        convert_honeybee(tmp_path / "honeybee.safetensors", tmp_path / "connector", num_tokens=TOKENS)


def test_no_abstractor_at_all(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"not hold a C-Abstractor of Honeybee: it has no abstractor\.pos_emb"):
        convert_honeybee(tmp_path, tmp_path / "connector")
