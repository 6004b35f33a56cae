"""ONNX Runtime computes what the model computes."""

import pytest
import torch
from PIL import Image
from tiny import tiny_mm1
from transformers import DynamicCache
from transformers.exporters.base import ExportedModel
from transformers.exporters.utils import get_leaf_tensors

from mm1_hf.hub.export import DECODER, EMBED_TOKENS, IMAGE_FEATURES, export_onnx


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The model and its processor, and the graphs as a stranger has them."""
    folder = tmp_path_factory.mktemp("onnx")
    model, processor = tiny_mm1()
    export_onnx(model, folder)
    graphs = [ExportedModel.from_pretrained(folder / name) for name in (IMAGE_FEATURES, EMBED_TOKENS, DECODER)]
    return model, processor, graphs


def only(output) -> torch.Tensor:
    (tensor,) = get_leaf_tensors(output).values() if not isinstance(output, torch.Tensor) else (output,)
    return tensor


def empty_cache(model) -> DynamicCache:
    config = model.config.text_config
    cache, width = DynamicCache(config=config), config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        nothing = torch.zeros(1, config.num_key_value_heads, 0, width)
        cache.update(nothing, nothing.clone(), layer)
    return cache


@pytest.mark.parametrize("number", [1, 2, 7])
def test_tiles_become_the_same_tokens(number, exported):
    model, _, (image_features, *_) = exported
    torch.manual_seed(number)
    tiles = torch.randn(number, 3, 56, 56)
    with torch.no_grad():
        expected = model.get_image_features(tiles).pooler_output
    torch.testing.assert_close(only(image_features(pixel_values=tiles)), expected, rtol=0, atol=1e-4)


def test_it_answers_a_question_about_pictures_as_the_model_does(exported):
    model, processor, (image_features, embed_tokens, decoder) = exported
    images = [Image.new("RGB", (90, 60), "teal"), Image.new("RGB", (60, 90), "red")]
    inputs = processor(text="What are <image> and <image>?", images=images, return_tensors="pt")
    reference = model.generate(
        **inputs, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    embeds = only(embed_tokens(input=inputs["input_ids"]))
    features = only(image_features(pixel_values=inputs["pixel_values"]))
    embeds[inputs["input_ids"] == model.config.image_token_id] = features.flatten(0, 1)
    cache, seen = empty_cache(model), 0
    for expected in reference.logits:
        seen += embeds.shape[1]
        mask = torch.ones(1, seen, dtype=torch.long)
        output = decoder(inputs_embeds=embeds, attention_mask=mask, past_key_values=cache, use_cache=True)
        torch.testing.assert_close(output.logits[:, -1], expected, rtol=0, atol=1e-4)
        cache = output.past_key_values
        embeds = only(embed_tokens(input=output.logits[:, -1:].argmax(-1)))
