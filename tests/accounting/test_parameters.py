import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_mm1
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, MixtralConfig, OPTConfig

from mm1_hf import MM1Config, MM1ForConditionalGeneration, MM1Model, MM1TextConfig
from mm1_hf.accounting.parameters import PartCount, count_parameters, parameter_table
from mm1_hf.training.lora import lora_config


TINY_VISION = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
)


def connector_of(vision, **fields):
    """The parameters of a preset's connector before a decoder of another width."""
    return count_parameters(MM1Config.from_preset(vision, text_config=MM1TextConfig(**fields))).connector.parameters


def tiny(text_config):
    connector_config = {"num_tokens": 4, "hidden_size": 32}
    return MM1Config(
        vision_config=TINY_VISION,
        text_config=text_config,
        connector_config=connector_config,
        image_token_id=511,
    )


def dense_decoder(width, layers, mlp, heads, kv_heads):
    """N: queries and output, keys and values, gate, up and down, two norms a layer, and the last norm."""
    attention = 2 * width**2 + 2 * width * (width // heads) * kv_heads
    return layers * (attention + 3 * width * mlp + 2 * width) + width


def clip_encoder(width, layers, mlp, patches):
    """Patches (no bias), class token, positions, a norm; per layer 4 + 2 linear layers with bias and 2 norms."""
    embeddings = 14 * 14 * 3 * width + width + (patches + 1) * width + 2 * width
    layer = 4 * (width**2 + width) + 2 * width * mlp + mlp + width + 4 * width
    return embeddings + layers * layer


@pytest.mark.parametrize(
    ("preset", "width", "parameters"),
    [
        ("mm1-3b", 2048, 24_763_200),
        ("mm1-3b", 3072, 31_056_704),
        ("mm1-3b", 4096, 39_447_360),
        ("mm1-3b", 7168, 77_202_240),
        ("mm1-ablation-1.2b", 2048, 22_713_856),
    ],
)
def test_connectors_are_as_large_as_honeybees(preset, width, parameters):
    heads = width // 64
    text = {"hidden_size": width, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": heads}
    assert connector_of(preset, **text) == parameters


@pytest.mark.parametrize(
    ("preset", "width"), [("mm1-ablation-2.9b", 3072), ("mm1-3b", 3072), ("mm1-7b", 4096), ("mm1-30b", 7168)]
)
def test_dense_presets_against_the_formula(preset, width):
    config = MM1Config.from_preset(preset)
    text, vision, count = config.text_config, config.vision_config, count_parameters(config)
    mlp = {3072: 8192, 4096: 11008, 7168: 19200}[width]
    expected = dense_decoder(width, text.num_hidden_layers, mlp, text.num_attention_heads, text.num_attention_heads)
    assert count.decoder.parameters == count.decoder.active == expected
    assert count.embeddings.parameters == count.head.parameters == 32128 * width
    patches = (vision.image_size // 14) ** 2
    encoder = clip_encoder(vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size, patches)
    assert count.encoder.parameters == encoder
    assert count.total.parameters == sum(part.parameters for _, part in count.parts())
    assert count.adapters == PartCount()


@pytest.mark.parametrize(
    ("preset", "shape", "experts", "sparse_layers"),
    [
        ("mm1-3b-moe", (3072, 26, 8192, 24), 64, 13),
        ("mm1-7b-moe", (4096, 32, 11008, 32), 32, 8),
        ("mm1.5-1b-moe", (2048, 24, 5632, 32), 64, 12),
    ],
)
def test_sparse_presets_against_the_formula(preset, shape, experts, sparse_layers):
    width, layers, mlp, heads = shape
    count = count_parameters(MM1Config.from_preset(preset))
    dense = dense_decoder(width, layers, mlp, heads, heads)
    routers, expert = sparse_layers * width * experts, 3 * width * mlp
    assert count.decoder.parameters == dense + routers + sparse_layers * (experts - 1) * expert
    # A token takes two experts where the dense layer has one MLP.
    assert count.decoder.active == dense + routers + sparse_layers * expert
    assert count.total.parameters - count.total.active == sparse_layers * (experts - 2) * expert


def test_a_configuration_costs_no_memory():
    with torch.device("meta"):
        model = MM1ForConditionalGeneration(MM1Config.from_preset("mm1-3b-moe"))
    assert count_parameters(model) == count_parameters(model.config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_model_counts_as_its_configuration():
    model, _ = tiny_mm1()
    assert count_parameters(model) == count_parameters(model.config)
    assert count_parameters(model).total.parameters == model.num_parameters()
    core = count_parameters(model.model)
    assert isinstance(model.model, MM1Model)
    assert core.head == PartCount()
    assert core.total.parameters == count_parameters(model).total.parameters - model.lm_head.weight.numel()


def test_a_tied_head_counts_once():
    text = {"model_type": "mm1_text", "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2}
    text |= {"intermediate_size": 128, "num_attention_heads": 4}
    tied, apart = (count_parameters(tiny({**text, "tie_word_embeddings": tie})) for tie in (True, False))
    assert tied.head == PartCount()
    assert apart.head.parameters == tied.embeddings.parameters == 512 * 64
    assert apart.total.parameters - tied.total.parameters == 512 * 64


def test_frozen_parts_are_not_trained():
    model, _ = tiny_mm1()
    model.model.vision_tower.requires_grad_(False)
    count = count_parameters(model)
    assert count.encoder.trainable == 0
    assert count.encoder.parameters > 0
    assert count.total.trainable == count.total.parameters - count.encoder.parameters


@pytest.mark.parametrize("preset", ["decoder", "decoder+connector"])
def test_adapters_are_counted_apart(preset):
    model, _ = tiny_mm1()
    before = count_parameters(model)
    adapted = get_peft_model(model, lora_config(model, preset, r=4))
    count = count_parameters(adapted)
    # In 2 layers rank 4 goes between: q and o 64 -> 64, k and v 64 -> 32, gate and up 64 -> 128, down 128 -> 64.
    assert count.adapters.parameters == count.adapters.trainable == 2 * 4 * (2 * 128 + 2 * 96 + 3 * 192)
    for name, part in before.parts():
        trained = part.parameters if name == "connector" and preset == "decoder+connector" else 0
        assert dict(count.parts())[name] == PartCount(part.parameters, part.active, trained)
    assert count.total.trainable == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_trained_tokens_and_dora_are_adapters():
    model, _ = tiny_mm1()
    decoder = "model.language_model"
    layers = [f"{decoder}.layers.{layer}.self_attn.q_proj" for layer in range(2)]
    tokens = {f"{decoder}.embed_tokens": [1, 2, 3]}
    config = LoraConfig(r=2, use_dora=True, target_modules=layers, trainable_token_indices=tokens)
    before, adapted = count_parameters(model), get_peft_model(model, config)
    count = count_parameters(adapted)
    assert count.embeddings.parameters == before.embeddings.parameters
    assert count.adapters.parameters == count.total.trainable == 2 * (2 * 128 + 64) + 3 * 64


def test_positions_that_a_decoder_learns_are_embeddings():
    config = OPTConfig(
        vocab_size=512,
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=64,
    )
    count = count_parameters(tiny(config))
    # OPT's table has two rows more than positions.
    assert count.embeddings.parameters == (512 + 34) * 64


def test_experts_of_a_foreign_decoder():
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    sparse = count_parameters(tiny(MixtralConfig(num_local_experts=8, num_experts_per_tok=3, **sizes)))
    dense = count_parameters(tiny(LlamaConfig(**sizes)))
    expert = 3 * 64 * 128
    assert sparse.decoder.parameters == dense.decoder.parameters + 2 * (7 * expert + 8 * 64)
    assert sparse.decoder.active == dense.decoder.parameters + 2 * (2 * expert + 8 * 64)


def test_the_table_is_aligned_and_complete():
    model, _ = tiny_mm1()
    model.model.vision_tower.requires_grad_(False)
    count, lines = count_parameters(model), parameter_table(model).splitlines()
    assert lines[0].split() == ["part", "parameters", "share", "trained"]
    assert [line[:13].rstrip() for line in lines[1:]] == [
        "image encoder",
        "connector",
        "decoder",
        "embeddings",
        "head",
        "total",
    ]
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[2::2] == [f"{count.encoder.parameters:,}", "0"]
    assert lines[-1].split()[1::2] == [f"{count.total.parameters:,}", f"{count.total.trainable:,}"]


def test_the_table_shows_what_a_token_meets_and_what_peft_added():
    assert "active" not in parameter_table(MM1Config.from_preset("mm1-tiny"))
    config = MM1Config.from_preset("mm1-tiny-moe")
    assert parameter_table(config).splitlines()[0].split() == ["part", "parameters", "share", "active"]
    model = MM1ForConditionalGeneration(config)
    adapted = get_peft_model(model, lora_config(model, "decoder", r=4))
    assert parameter_table(adapted).splitlines()[-2].startswith("adapters")


@pytest.mark.parametrize("other", [nn.Linear(2, 2), "mm1-3b", None])
def test_what_is_no_mm1_is_refused(other):
    with pytest.raises(ValueError, match=f"got {type(other).__name__}"):
        count_parameters(other)
