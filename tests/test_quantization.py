"""Loading in 4 and 8 bits: only the decoder's layers are quantised."""

import pytest
from tiny import byte_tokenizer, tiny_decoder, tiny_vision
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from mm1_hf import MM1ConnectorConfig, assemble
from mm1_hf.quantization import keep_precise


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
