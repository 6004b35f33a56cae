"""
What vLLM's and SGLang's transformers backends read of a model and its processor, by what they do with it. They are not
installed here; `make test-vllm` runs vLLM itself.
"""

import importlib
import inspect
import tomllib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import TINY_DECODERS, byte_tokenizer, tiny_vision
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import mm1_hf
from mm1_hf import MM1ConnectorConfig, MM1ImageProcessor, assemble


@pytest.fixture(scope="module", params=TINY_DECODERS)
def parts(request):
    torch.manual_seed(0)
    connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32, depth=1)
    images = MM1ImageProcessor(
        size={"height": 56, "width": 56}, image_splitting="dynamic", position_indicators="index"
    )
    decoder = TINY_DECODERS[request.param]().eval()
    return assemble(
        tiny_vision(), decoder, connector, tokenizer=byte_tokenizer(), image_processor=images, verbose=False
    )


def engine_attention(module, query, key, value, attention_mask, scaling=None, attention_instances=None, **kwargs):
    """
    As an engine's: it keeps keys and values itself, finds its own layer by number, takes no mask, and returns
    `(sequence, heads * head_dim)`. The requests of a batch lie behind each other in one row.
    """
    lengths = attention_instances[module.layer_idx]
    assert module.is_causal and attention_mask is None
    assert query.shape[0] == 1 and query.shape[2] == sum(lengths)
    groups = query.shape[1] // key.shape[1]
    pieces = [
        F.scaled_dot_product_attention(
            q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), is_causal=True
        )
        for q, k, v in zip(*(each.split(lengths, dim=2) for each in (query, key, value)), strict=True)
    ]
    assert scaling == pytest.approx(query.shape[-1] ** -0.5)
    return torch.cat(pieces, dim=2).transpose(1, 2).reshape(query.shape[2], -1), None


@pytest.fixture(params=["vllm", "sglang"])
def engine(request, parts, monkeypatch):
    """The base model with its decoder's attention replaced."""
    base = parts[0].model
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, request.param, engine_attention)
    monkeypatch.setattr(base.language_model.config, "_attn_implementation_internal", request.param)
    return base


def test_they_take_the_model(parts):
    assert parts[0].is_backend_compatible() and parts[0].model.is_backend_compatible()
    assert parts[0].config.auto_map["AutoModel"] == "modeling_mm1.MM1Model"


@pytest.mark.parametrize("embeds_images", [True, False])
def test_requests_in_one_row_do_not_see_each_other(embeds_images, parts, engine):
    """vLLM embeds images itself, SGLang passes tokens and tiles. Both give each request its own positions and ask for a
    tuple."""
    model, processor = parts
    texts = ("What is <image>?", "Hello.", "And <image> or <image>?")
    images = [
        Image.new("RGB", size, colour) for size, colour in (((90, 60), "teal"), ((60, 60), "red"), ((9, 70), "blue"))
    ]
    attention = engine.language_model.config._attn_implementation
    rows, expected = [], []
    for text in texts:
        inputs = processor(
            text=text, images=[images.pop(0) for _ in range(text.count("<image>"))] or None, return_tensors="pt"
        )
        rows.append(inputs)
        engine.language_model.config._attn_implementation_internal = "eager"
        with torch.no_grad():
            expected.append(model.model(**inputs, use_cache=False).last_hidden_state)
        engine.language_model.config._attn_implementation_internal = attention
    lengths = [row["input_ids"].shape[1] for row in rows]
    batch = {
        "input_ids": torch.cat([row["input_ids"] for row in rows], dim=1),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows if "pixel_values" in row]),
    }
    if embeds_images:
        embeds = model.get_input_embeddings()(batch["input_ids"])
        features = model.model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
        embeds[batch["input_ids"] == model.config.image_token_id] = features.flatten(0, 1).detach()
        batch = {"inputs_embeds": embeds}
    with torch.no_grad():
        given = engine(
            **batch,
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
            use_cache=False,
            attention_instances=dict.fromkeys(range(2), lengths),
            return_dict=False,
        )[0]
    torch.testing.assert_close(given, torch.cat(expected, dim=1), rtol=0, atol=1e-5)


def test_an_image_token_without_an_image_does_not_end_the_engine(parts, engine):
    """A server that takes no images passes on what its users write, and so does one that decodes."""
    ids = torch.tensor([[5, parts[0].config.image_token_id, 6]])
    with torch.no_grad():
        engine(input_ids=ids, use_cache=False, attention_instances={0: [3], 1: [3]}, return_dict=False)


def test_without_images_no_encoder_runs(parts, engine, monkeypatch):
    """Elsewhere the processes of a sharded model wait for each other's encoders."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(type(engine), "get_image_features", None)
    with torch.no_grad():
        engine(
            input_ids=torch.tensor([[5, 6]]),
            use_cache=False,
            attention_instances={0: [2], 1: [2]},
            return_dict=False,
        )


def test_embeddings_of_control_tokens_are_not_taken_for_images(parts):
    """Until they are trained, all tokens that were added together have one embedding."""
    model, processor = parts
    text = processor.apply_chat_template([{"role": "user", "content": "Hi!"}], tokenize=False)
    ids = processor(text=text, return_tensors="pt")["input_ids"]
    embeddings = model.get_input_embeddings()
    added = processor.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<image>"])
    assert torch.equal(*embeddings.weight[added])
    with torch.no_grad():
        torch.testing.assert_close(model(inputs_embeds=embeddings(ids)).logits, model(ids).logits, rtol=0, atol=1e-6)


def test_arguments_are_what_a_compiler_binds(parts):
    """vLLM compiles the decoder ahead of time; torch then binds the arguments of the outermost wrapper by its signature."""
    forward = type(parts[0].model.language_model).forward
    code = forward.__code__
    arguments = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    arguments += bool(code.co_flags & inspect.CO_VARKEYWORDS)
    assert set(inspect.signature(forward, follow_wrapped=False).parameters) == set(code.co_varnames[:arguments])


def test_parts_are_found_by_the_names_they_look_for(parts):
    base = parts[0].model
    assert base.get_encoder(modality="image") is base.vision_tower and base.language_model is base.get_decoder()
    assert not any(getattr(module, "is_causal", False) for module in base.vision_tower.modules())
    layers = [layer.self_attn.layer_idx for layer in base.language_model.layers]
    assert layers == list(range(len(layers)))


def test_they_shard_it(parts):
    """vLLM's linear layers are split by columns and rows only; others it copies or replaces with its own experts."""
    config = parts[0].config.text_config
    linear = {
        name: style
        for name, style in config.base_model_tp_plan.items()
        if name.endswith("_proj") and "experts" not in name
    }
    assert linear and set(linear.values()) <= {"colwise", "rowwise"}


def test_experts_are_one_module_of_three_dimensional_weights(parts):
    experts = [module for name, module in parts[0].model.named_modules() if name.endswith(".experts")]
    config = parts[0].config.text_config
    assert bool(experts) is bool(getattr(config, "num_experts", 0))
    for module in experts:
        width, number = config.moe_intermediate_size, config.num_experts
        assert module.gate_up_proj.shape == (number, 2 * width, config.hidden_size)
        assert module.down_proj.shape == (number, config.hidden_size, width)


@pytest.mark.parametrize("sizes", [[(60, 90)], [(60, 90), (300, 100)]])
def test_placeholders_are_found_by_their_replacements(parts, sizes):
    """An engine encodes each image by itself, and puts its features where the most frequent token of its text is."""
    model, processor = parts
    images = [Image.new("RGB", (width, height), "teal") for height, width in sizes]
    text = "What are " + processor.image_token * len(images) + "?"
    inputs = processor(text=text, images=images, return_text_replacement_offsets=True, return_tensors="pt")
    (offsets,) = inputs.pop("text_replacement_offsets")
    assert [entry["type"] for entry in offsets] == ["image"] * len(images)
    counts = processor._get_num_multimodal_tokens(image_sizes=sizes)
    assert sum(counts["num_image_patches"]) == len(inputs["pixel_values"])
    expanded = text
    for entry, tokens in zip(offsets, counts["num_image_tokens"], strict=True):
        ids = torch.tensor(processor.tokenizer.encode(entry["replacement"], add_special_tokens=False))
        assert ids.mode().values == model.config.image_token_id == processor.image_token_id
        assert (ids == processor.image_token_id).sum() == tokens
        # Anything but the token itself, so that it is not found twice.
        expanded = expanded.replace(
            processor.image_token, entry["replacement"].replace(processor.image_token, "\0"), 1
        )
    expanded = expanded.replace("\0", processor.image_token)
    assert processor.tokenizer.encode(expanded, add_special_tokens=False) == inputs["input_ids"][0].tolist()
    with torch.no_grad():
        together = model.model.get_image_features(inputs["pixel_values"]).pooler_output
        for image, tiles in zip(images, together.split(counts["num_image_patches"]), strict=True):
            alone = processor(text=processor.image_token, images=image, return_tensors="pt")["pixel_values"]
            features = model.model.get_image_features(alone, return_dict=True).pooler_output
            torch.testing.assert_close(features, tiles, rtol=0, atol=1e-5)
            assert features.flatten(0, 1).shape[0] % len(alone) == 0


def test_the_largest_image_is_counted(parts):
    _, processor = parts
    counts = processor._get_num_multimodal_tokens(image_sizes=([10_000, 10_000], [56, 56]))
    assert counts["num_image_tokens"][0] == max(counts["num_image_tokens"]) == 4 * 10
    assert processor.image_processor.model_input_names == ["pixel_values"]


def test_the_images_of_a_request_are_counted_together(parts):
    """Three images are not split, so they are not counted as if each were alone."""
    _, processor = parts
    sizes = [(60, 90)] * 3
    counts = processor._get_num_multimodal_tokens(image_sizes=sizes)
    assert counts["num_image_patches"] == [1, 1, 1]
    images = [Image.new("RGB", (width, height)) for height, width in sizes]
    inputs = processor(text=processor.image_token * 3, images=images, return_tensors="pt")
    assert len(inputs["pixel_values"]) == sum(counts["num_image_patches"])


def test_nothing_is_returned_that_an_engine_would_cut_up(parts):
    """It splits every key among the images, and passes those that it does not know to the model."""
    image = Image.new("RGB", (90, 60), "teal")
    inputs = parts[1](text="<image>", images=image, return_tensors="pt", return_mm_token_type_ids=True)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values", "mm_token_type_ids"}


def test_vllm_finds_the_registration():
    project = tomllib.loads((Path(mm1_hf.__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    module, name = project["project"]["entry-points"]["vllm.general_plugins"]["mm1"].split(":")
    assert getattr(importlib.import_module(module), name) is mm1_hf.register
