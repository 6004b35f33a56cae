import pytest
import torch
from safetensors.torch import save_file
from tiny import byte_tokenizer
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mm1_hf import MM1ForConditionalGeneration
from mm1_hf.convert import convert_llava


IMAGE, ROWS, GRID = 257, 264, 4
TEXT = [5, 6, 7]


def config_of(kind="llava", **fields):
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    text = {
        "vocab_size": ROWS,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": 256,
        "pad_token_id": None,
    }
    config_class = LlavaConfig if kind == "llava" else LlavaNextConfig
    siglip = fields.pop("siglip", False)
    return config_class(
        vision_config=SiglipVisionConfig(**vision) if siglip else CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text),
        image_token_index=IMAGE,
        **fields,
    )


def saved(config, folder):
    """transformers' own class with random weights everywhere."""
    next_one = config.model_type == "llava_next"
    model = (LlavaNextForConditionalGeneration if next_one else LlavaForConditionalGeneration)(config).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.save_pretrained(folder)
    return model


def tiles(count):
    return torch.rand(count, 3, 56, 56, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"vision_feature_layer": -1, "tie_word_embeddings": True},
        {"siglip": True, "vision_feature_select_strategy": "full", "vision_feature_layer": 2},
    ],
)
def test_logits_are_llava_s_own(fields, tmp_path):
    source = saved(config_of(**fields), tmp_path / "source")
    convert_llava(tmp_path / "source", tmp_path / "converted")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "converted")
    assert type(model) is MM1ForConditionalGeneration
    # The layers behind the one that is used are gone.
    assert model.config.vision_feature_layer == -1
    ids = torch.tensor([TEXT + [IMAGE] * GRID**2 + TEXT, [IMAGE] * GRID**2 + TEXT + TEXT])
    batch = {"input_ids": ids, "pixel_values": tiles(2)}
    torch.testing.assert_close(model(**batch).logits, source(**batch).logits, atol=1e-5, rtol=1e-5)
    if fields.get("tie_word_embeddings"):
        assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("version", ["4", "5"])
def test_names_of_all_versions(version, tmp_path):
    source = saved(config_of(), tmp_path / "source")
    weights = {}
    for name, weight in source.state_dict().items():
        if version == "4":
            name = name.replace("model.language_model.", "language_model.model.")
            name = name.replace("lm_head", "language_model.lm_head")
            name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
            name = name.replace("model.multi_modal_projector", "multi_modal_projector")
        weights[name] = weight.contiguous()
    save_file(weights, tmp_path / "source" / "model.safetensors")
    convert_llava(tmp_path / "source", tmp_path / "converted")
    model = MM1ForConditionalGeneration.from_pretrained(tmp_path / "converted")
    batch = {"input_ids": torch.tensor([[IMAGE] * GRID**2 + TEXT]), "pixel_values": tiles(1)}
    torch.testing.assert_close(model(**batch).logits, source(**batch).logits, atol=1e-5, rtol=1e-5)


def test_llava_next_with_its_newlines_as_tokens(tmp_path):
    """Of a square picture transformers' class sees the whole and one tile, each of whose rows it ends with a newline."""
    source = saved(config_of("llava_next", image_grid_pinpoints=[[56, 56]]), tmp_path / "source")
    convert_llava(tmp_path / "source", tmp_path / "converted")
    model = MM1ForConditionalGeneration.from_pretrained(tmp_path / "converted")
    newline = ROWS
    assert model.config.text_config.vocab_size == 320
    both = tiles(2)
    theirs = torch.tensor([[IMAGE] * (GRID**2 + GRID * (GRID + 1)) + TEXT])
    ours = torch.tensor([[IMAGE] * GRID**2 + ([IMAGE] * GRID + [newline]) * GRID + TEXT])
    expected = source(input_ids=theirs, pixel_values=both[None], image_sizes=torch.tensor([[56, 56]])).logits
    logits = model(input_ids=ours, pixel_values=both).logits
    torch.testing.assert_close(logits[..., :ROWS], expected, atol=1e-5, rtol=1e-5)
    assert model.generation_config.suppress_tokens == [IMAGE, newline]


def test_the_processor_comes_along(tmp_path):
    saved(config_of(), tmp_path / "source")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}USER: <image>\n{{ message.content }} ASSISTANT:{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "source")
    CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path / "source")
    GenerationConfig(max_new_tokens=7).save_pretrained(tmp_path / "source")
    convert_llava(tmp_path / "source", tmp_path / "converted")
    model = MM1ForConditionalGeneration.from_pretrained(tmp_path / "converted")
    processor = AutoProcessor.from_pretrained(tmp_path / "converted")
    assert model.config.pixel_mean == list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert model.generation_config.max_new_tokens == 7
    text = processor.apply_chat_template([{"role": "user", "content": "What?"}])
    assert text == "USER: <image>\nWhat? ASSISTANT:"
    inputs = processor(text=text, images=torch.zeros(3, 90, 60, dtype=torch.uint8), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 56, 56)
    assert (inputs["input_ids"] == IMAGE).sum() == GRID**2
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy is 'full'"),
        ({"vision_feature_layer": [-1, -2]}, r"vision_feature_layer is \[-1, -2\]"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias is False"),
    ],
)
def test_what_an_mm1_does_not_do_is_refused_by_its_field(fields, message, tmp_path):
    config_of(**fields).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=message):
        convert_llava(tmp_path / "source", tmp_path / "converted")
