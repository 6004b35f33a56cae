import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tiny import byte_tokenizer, tiny_decoder
from torch import nn
from transformers import AutoImageProcessor, AutoModel, CLIPVisionModel

from mm1_hf import MM1ConnectorConfig, assemble
from mm1_hf.convert import convert_open_clip


MEAN, STD = [0.48, 0.45, 0.40], [0.26, 0.27, 0.28]
# DFN-5B's ViT-H/14 at 378 pixels, smaller.
CONFIG = {
    "model_cfg": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 56, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
        "text_cfg": {"width": 16},
    },
    "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"},
}


class Block(nn.Module):
    def __init__(self, width, heads, hidden, act):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})
        self.act = act

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp["c_proj"](self.act(self.mlp["c_fc"](self.ln_2(x))))


class Visual(nn.Module):
    """What open_clip's vision transformer computes, by its names: fused attention from torch itself."""

    def __init__(self, act, width=32, layers=2, heads=2, hidden=128):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 14, 14, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(17, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList(Block(width, heads, hidden, act) for _ in range(layers))}
        )
        self.proj = nn.Parameter(torch.empty(width, 24))

    def forward(self, images):
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer["resblocks"]:
            x = block(x)
        return x


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def saved(folder, config=CONFIG, act=quick_gelu):
    torch.manual_seed(0)
    visual = Visual(act).eval()
    for name, parameter in visual.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "ln_" in name and "weight" in name else 0.0, std=0.3)
    weights = {f"visual.{name}": weight for name, weight in visual.state_dict().items()}
    text = {
        "logit_scale": torch.ones(()),
        "token_embedding.weight": torch.ones(8, 16),
        "text_projection": torch.ones(2),
    }
    folder.mkdir()
    save_file({**weights, **text}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return visual


@pytest.mark.parametrize("quick", [True, False])
def test_features_are_the_encoder_s_own(quick, tmp_path):
    config = {**CONFIG, "model_cfg": {**CONFIG["model_cfg"], "quick_gelu": quick}}
    visual = saved(tmp_path / "source", config, quick_gelu if quick else F.gelu)
    convert_open_clip(tmp_path / "source", tmp_path / "converted")
    model = AutoModel.from_pretrained(tmp_path / "converted").eval()
    assert type(model) is CLIPVisionModel
    tiles = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    outputs = model(tiles)
    expected = visual(tiles)
    torch.testing.assert_close(outputs.last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.pooler_output, visual.ln_post(expected[:, 0]), atol=1e-5, rtol=1e-5)


def test_images_are_squashed_and_normalised_as_the_encoder_was_trained(tmp_path):
    saved(tmp_path / "source")
    convert_open_clip(tmp_path / "source", tmp_path / "converted")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    squashed = np.asarray(image.resize((56, 56), Image.Resampling.BICUBIC)) / 255
    expected = torch.tensor(((squashed - MEAN) / STD).transpose(2, 0, 1), dtype=torch.float32)
    image_processor = AutoImageProcessor.from_pretrained(tmp_path / "converted", backend="pil")
    given = image_processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
    # An MM1 of it sees the same.
    _, processor = assemble(
        tmp_path / "converted",
        tiny_decoder(),
        MM1ConnectorConfig(num_tokens=4, hidden_size=32),
        tokenizer=byte_tokenizer(),
        verbose=False,
    )
    (tile,) = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(tile, expected, atol=2e-2, rtol=0)


def test_the_shortest_side_is_the_default(tmp_path):
    saved(tmp_path / "source", {"model_cfg": CONFIG["model_cfg"]})
    convert_open_clip(tmp_path / "source", tmp_path / "converted")
    image_processor = AutoImageProcessor.from_pretrained(tmp_path / "converted", backend="pil")
    assert image_processor.do_center_crop and image_processor.size == {"shortest_edge": 56}


@pytest.mark.parametrize(
    "vision, preprocess, message",
    [
        ({"timm_model_name": "vit_base"}, {}, "vision_cfg.timm_model_name is vit_base"),
        ({"ls_init_value": 1e-5}, {}, "vision_cfg.ls_init_value is 1e-05"),
        ({"layers": [3, 4, 6, 3]}, {}, "a convolutional encoder"),
        ({}, {"resize_mode": "longest"}, "resize_mode is 'longest'"),
    ],
)
def test_other_encoders_are_refused_by_their_field(vision, preprocess, message, tmp_path):
    model_cfg = CONFIG["model_cfg"]
    config = {
        "model_cfg": {**model_cfg, "vision_cfg": {**model_cfg["vision_cfg"], **vision}},
        "preprocess_cfg": preprocess,
    }
    saved(tmp_path / "source", config)
    with pytest.raises(ValueError, match=message):
        convert_open_clip(tmp_path / "source", tmp_path / "converted")


def test_pickled_and_nested_as_open_clip_trains_them(tmp_path):
    visual = saved(tmp_path / "source")
    (tmp_path / "source" / "open_clip_model.safetensors").unlink()
    weights = {f"visual.{name}": weight for name, weight in visual.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "source" / "open_clip_pytorch_model.bin")
    convert_open_clip(tmp_path / "source", tmp_path / "converted", allow_pickle=True)
    model = CLIPVisionModel.from_pretrained(tmp_path / "converted")
    assert torch.equal(model.embeddings.class_embedding, visual.class_embedding)
