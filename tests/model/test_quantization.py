"""Loading in 4 and 8 bits: only the decoder's layers are quantised."""

from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, get_peft_model
from tiny import byte_tokenizer, tiny_decoder, tiny_mm1, tiny_vision
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizer_hqq import HqqHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from mm1_hf import MM1ConnectorConfig, assemble
from mm1_hf.model.quantization import PRECISE_MODULES, keep_precise
from mm1_hf.training.lora import lora_config


def converted(model, skipped: list[str] | None) -> set[str]:
    """The linear layers that transformers' quantisers replace."""
    skipped = HfQuantizer.get_modules_to_not_convert(model, skipped, model._keep_in_fp32_modules)
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name for name in linear if should_convert_module(name, skipped)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("connector", ["c_abstractor", "attention", "linear", "mlp"])
def test_only_the_decoder_s_layers_are_quantised(connector, tied):
    connector = MM1ConnectorConfig(connector_type=connector, num_tokens=16, hidden_size=32)
    decoder = tiny_decoder(tie_word_embeddings=tied)
    model, _ = assemble(tiny_vision(), decoder, connector, tokenizer=byte_tokenizer(), verbose=False)
    skipped = keep_precise(BitsAndBytesConfig(load_in_4bit=True)).llm_int8_skip_modules
    assert any("vision_tower" in name for name in converted(model, None)), "what would happen otherwise"
    names = converted(model, skipped)
    assert len(names) == 14 and all(name.startswith("model.language_model.layers.") for name in names)
    names = converted(model.model, skipped)
    assert len(names) == 14 and all(name.startswith("language_model.layers.") for name in names)


def test_one_s_own_choice_of_modules_stays():
    chosen = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    assert keep_precise(chosen) is chosen and chosen.llm_int8_skip_modules == ["lm_head"]
    unset = BitsAndBytesConfig(load_in_8bit=True)
    assert keep_precise(unset).llm_int8_skip_modules and unset.llm_int8_skip_modules is None


def test_a_configuration_may_be_its_fields():
    kept = keep_precise({"load_in_4bit": True})
    assert kept.load_in_4bit and kept.llm_int8_skip_modules == PRECISE_MODULES
    assert keep_precise({"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head"]}).llm_int8_skip_modules == [
        "lm_head"
    ]


def test_transformers_still_cannot_quantise_with_hqq():
    """
    It raises for a quantiser without operations of its own. When it has some, `keep_precise` must name the encoder's and
    the connector's layers in `skip_modules`, each in full: HQQ does not take a module's name for its layers.
    """
    assert HqqHfQuantizer.get_quantize_ops is HfQuantizer.get_quantize_ops
    with pytest.raises(NotImplementedError):
        HqqHfQuantizer.get_quantize_ops(SimpleNamespace(quantization_config=SimpleNamespace(quant_method="hqq")))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_is_trained_by_low_rank_updates(bits, tmp_path):
    """QLoRA: the encoder and the connector as they were, the decoder nearly, and the connector learns whole."""
    model, processor = tiny_mm1()
    model.save_pretrained(tmp_path / "model")
    batch = processor(text="a<image>bcd", images=torch.zeros(3, 56, 56, dtype=torch.uint8), return_tensors="pt")
    quantized = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    )
    own, others = quantized.state_dict(), model.state_dict()
    kept = {name for name in others if name in own and own[name].equal(others[name])}
    assert kept == {name for name in others if ".layers." not in name or "vision_tower" in name or "norm" in name}
    with torch.no_grad():
        tokens = quantized.get_image_features(batch["pixel_values"]).pooler_output
        assert torch.equal(tokens, model.get_image_features(batch["pixel_values"]).pooler_output)
        difference = (quantized(**batch).logits - model(**batch).logits).abs().max()
    assert 0 < difference < {4: 0.2, 8: 0.02}[bits]

    adapted = get_peft_model(quantized, lora_config(quantized, "decoder+connector", r=4))
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.image_token_id, -100)
    optimizer = torch.optim.AdamW([weight for weight in adapted.parameters() if weight.requires_grad], lr=5e-3)
    losses = []
    for _ in range(3):
        loss = adapted(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = adapted.eval()(**batch).logits
        reloaded = AutoPeftModelForCausalLM.from_pretrained(
            str(tmp_path / "adapter"),
            quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}),
        )
        given, own = (
            {name: weight for name, weight in each.state_dict().items() if "lora_" in name or ".connector." in name}
            for each in (reloaded, adapted)
        )
        assert given.keys() == own.keys() and all(torch.equal(given[name], own[name]) for name in own)
        logits = reloaded.eval()(**batch).logits
        with reloaded.disable_adapter():
            effect = (reloaded(**batch).logits - expected).abs().max()
    # bitsandbytes repacks 4-bit weights for CPUs that multiply in bfloat16 as soon as a model infers, and unpacks them to
    # train: there, a trained and a loaded model agree to bfloat16's rounding of the quantised layers only.
    tolerance = {4: 0.03, 8: 1e-5}[bits]
    assert effect > 3 * tolerance
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
