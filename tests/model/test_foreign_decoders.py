"""Decoders of other families inside an MM1: text alone gives their own logits, before and after saving."""

import pytest
import torch
from tiny import byte_tokenizer, tiny_vision
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from mm1_hf import MM1ConnectorConfig, assemble


CONNECTOR = MM1ConnectorConfig(num_tokens=4, hidden_size=32, depth=1)
TOKENS = torch.arange(3, 27).view(2, 12)
SIZES = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 256,
}
GROUPED = {"num_key_value_heads": 2}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
# What is particular about each family, switched on and strong enough to show in the logits.
FAMILIES = {
    "llama": {**GROUPED, "attention_bias": True, "mlp_bias": True},
    "mistral": {**GROUPED, "sliding_window": 4},
    "qwen2": {**GROUPED, **WINDOW, "use_sliding_window": True},
    "qwen3": {**GROUPED, "head_dim": 16},
    "smollm3": {**GROUPED, "no_rope_layers": [1, 0]},
    "olmo2": GROUPED,
    "gemma": {**GROUPED, "head_dim": 8},
    "gemma2": {
        **GROUPED,
        **WINDOW,
        "head_dim": 8,
        "query_pre_attn_scalar": 16,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 3.0,
    },
    "gemma3_text": {**GROUPED, **WINDOW, "head_dim": 8, "query_pre_attn_scalar": 16},
    "phi": {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    "phi3": {**GROUPED, "sliding_window": 4},
    "granite": {
        **GROUPED,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
        "logits_scaling": 4.0,
    },
    "gpt_neox": {"use_parallel_residual": True, "rotary_pct": 0.5},
    "cohere": {**GROUPED, "logit_scale": 0.3},
    "qwen3_moe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "olmoe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
}


def decoder(family: str, tied: bool):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[family](**{**SIZES, **FAMILIES[family], "tie_word_embeddings": tied})
    )
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    return model.eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_text_logits_are_the_decoder_s_own(family, tied, tmp_path):
    source = decoder(family, tied)
    model, _ = assemble(tiny_vision(), source, CONNECTOR, tokenizer=byte_tokenizer(), verbose=False)
    expected = source(TOKENS).logits
    torch.testing.assert_close(model(TOKENS).logits[..., :257], expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    own, others = reloaded.state_dict(), model.state_dict()
    assert own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)
    # Tensors mapped from a file lie at other addresses, where matrix products round differently.
    torch.testing.assert_close(reloaded(TOKENS).logits, model(TOKENS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_left_padded_text_with_a_cache_is_the_decoder_s_own(family):
    source = decoder(family, True)
    model, _ = assemble(tiny_vision(), source, CONNECTOR, tokenizer=byte_tokenizer(), verbose=False)
    mask = torch.ones_like(TOKENS)
    mask[1, :5] = 0
    inputs = {
        "attention_mask": mask,
        "pad_token_id": 0,
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
    }
    expected = source.generate(TOKENS, **inputs)
    given = model.generate(TOKENS, **inputs, suppress_tokens=list(range(257, model.lm_head.out_features)))
    assert torch.equal(given, expected)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_image_features_enter_as_they_leave_the_connector(family):
    """Families that scale their embeddings (Gemma, Granite) do so to images as to words, or not at all."""
    source = decoder(family, True)
    model, _ = assemble(tiny_vision(), source, CONNECTOR, tokenizer=byte_tokenizer(), verbose=False)
    pixels = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[5, 6, *[model.config.image_token_id] * 4, 7, 8]])
    embeddings = model.get_input_embeddings()(ids)
    embeddings[0, 2:6] = model.get_image_features(pixels).pooler_output.view(4, -1)
    given = model(ids, pixel_values=pixels).logits
    expected = source.get_output_embeddings()
    hidden = source.base_model(inputs_embeds=embeddings).last_hidden_state
    torch.testing.assert_close(given[..., :257], model.scale_logits(expected(hidden)), atol=1e-5, rtol=1e-5)
