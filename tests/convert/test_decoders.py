import pytest
import torch
from tiny import byte_tokenizer, tiny_vision
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from mm1_hf import MM1ConnectorConfig, MM1TextForCausalLM, assemble
from mm1_hf.convert import convert_decoder, text_config_of


SIZES = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + index / 4 for index in range(8)],
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
MAPPED = {
    "llama": LlamaConfig(**SIZES),
    "llama-tied-biased": LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, head_dim=32),
    "llama-3": LlamaConfig(**SIZES, rope_parameters=LLAMA3, rms_norm_eps=1e-3),
    "mistral": MistralConfig(**SIZES, sliding_window=None, head_dim=8),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, sliding_window=None),
    "phi3": Phi3Config(**SIZES),
    "phi3-long": Phi3Config(**SIZES, rope_parameters=LONG, original_max_position_embeddings=16),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2-yarn": Qwen2Config(**SIZES, rope_parameters=YARN),
    "qwen3": Qwen3Config(**SIZES, head_dim=24),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layers=[1, 1]),
}
IDS = torch.randint(0, 257, (2, 40), generator=torch.Generator().manual_seed(0))


def random_decoder(config, folder):
    """A decoder of transformers with random weights everywhere, saved with a tokenizer."""
    model = AutoModelForCausalLM.from_config(config).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", MAPPED)
def test_logits_are_the_decoder_s_own(kind, tmp_path):
    source = random_decoder(MAPPED[kind], tmp_path / "source")
    convert_decoder(tmp_path / "source", tmp_path / "converted")
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    assert type(converted) is MM1TextForCausalLM
    torch.testing.assert_close(converted(IDS).logits, source(IDS).logits, atol=1e-5, rtol=1e-5)
    assert converted.generation_config.max_new_tokens == 7
    tied = source.config.tie_word_embeddings
    assert (converted.lm_head.weight is converted.model.embed_tokens.weight) == tied
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
    assert tokenizer("A cat.")["input_ids"] == byte_tokenizer()("A cat.")["input_ids"]


def test_generation_and_dtype(tmp_path):
    random_decoder(MAPPED["qwen3"], tmp_path / "source")
    convert_decoder(tmp_path / "source", tmp_path / "converted", dtype=torch.bfloat16)
    source = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.bfloat16)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "converted", dtype="auto")
    assert converted.dtype == converted.config.dtype == torch.bfloat16
    row = {"input_ids": IDS[:1, :5], "do_sample": False}
    assert torch.equal(converted.generate(**row), source.generate(**row))


def test_a_converted_decoder_is_assembled_with_rows_for_new_tokens(tmp_path):
    source = random_decoder(MAPPED["qwen2"], tmp_path / "source")
    convert_decoder(tmp_path / "source", tmp_path / "converted")
    connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32)
    model, _ = assemble(tiny_vision(), tmp_path / "converted", connector, verbose=False)
    embeddings = model.get_input_embeddings().weight
    # 257 rows and three new tokens come to a multiple of 64; the new rows are the mean, the head stays tied.
    assert embeddings.shape == (320, 64) and model.lm_head.weight is embeddings
    mean = source.get_input_embeddings().weight.mean(0)
    torch.testing.assert_close(embeddings[257:], mean.expand(63, -1))
    torch.testing.assert_close(model(IDS).logits[..., :257], source(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config, field",
    [
        (LlamaConfig(mlp_bias=True), "mlp_bias is True"),
        (
            LlamaConfig(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
            "partial_rotary_factor is 0.5",
        ),
        (MistralConfig(), "sliding_window is 4096"),
        (Qwen2Config(use_sliding_window=True, max_window_layers=2), "layer_types contains sliding_attention"),
        (SmolLM3Config(), "no_rope_layers"),
        (Phi3Config(sliding_window=2047), "sliding_window is 2047"),
        (Olmo2Config(), "post_feedforward_layernorm"),
        (Gemma3TextConfig(), "query_pre_attn_scalar"),
        (PhiConfig(), "layer_norm_eps"),
        (GPTNeoXConfig(), "layer_norm_eps"),
    ],
    ids=lambda value: value.model_type if hasattr(value, "model_type") else "",
)
def test_what_computes_otherwise_is_refused_by_its_field(config, field):
    with pytest.raises(ValueError, match=field):
        text_config_of(config)


def test_an_unknown_kind_is_told_what_maps():
    with pytest.raises(
        ValueError,
        match=r"'bloom' decoder cannot be converted to mm1_text: the kinds that can be converted are llama, mistral",
    ):
        text_config_of(BloomConfig())
