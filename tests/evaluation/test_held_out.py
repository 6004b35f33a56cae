"""The held-out loss against cross-entropies computed from full logits."""

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from tiny import DECODER_SIZES, TINY_DECODERS, byte_tokenizer, tiny_mm1, tiny_vision
from transformers import MixtralConfig, MixtralForCausalLM

from mm1_hf import MM1ConnectorConfig, assemble
from mm1_hf.data.collation import MM1Collator
from mm1_hf.evaluation.held_out import held_out_loss
from mm1_hf.training.lora import lora_config


TEXTS = ["It is red.<eos>", "It is a circle, and it is blue.<eos>", "No.<eos>"]
DECODERS = TINY_DECODERS | {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**DECODER_SIZES, num_local_experts=4, bos_token_id=None)),
}


@pytest.fixture(params=DECODERS)
def model_and_batches(request):
    torch.manual_seed(0)
    model, processor = assemble(
        tiny_vision(),
        DECODERS[request.param]().eval(),
        MM1ConnectorConfig(num_tokens=4, hidden_size=32, depth=1),
        tokenizer=byte_tokenizer(),
        verbose=False,
    )
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    model.config.z_loss_coef = 0.1
    collate = MM1Collator(processor)
    return model, [collate([{"text": text} for text in TEXTS[:2]]), collate([{"text": TEXTS[2]}])]


def expected(model, batches) -> float:
    losses = []
    for batch in batches:
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits.float()
        targets = batch["labels"][:, 1:]
        losses.append(F.cross_entropy(logits[:, :-1][targets != -100], targets[targets != -100], reduction="none"))
    return torch.cat(losses).mean().item()


def test_it_is_the_cross_entropy_alone(model_and_batches):
    model, batches = model_and_batches
    loss = held_out_loss(model, batches)
    assert loss == pytest.approx(expected(model, batches), rel=1e-5)
    # The model's own loss has the z-loss in it, and with experts the router's losses.
    assert abs(model(**batches[1]).loss.item() - held_out_loss(model, batches[1:])) > 1e-3


def test_it_is_measured_in_evaluation_mode(model_and_batches):
    model, batches = model_and_batches
    expected_loss = held_out_loss(model, batches)
    # In training, dropout and the experts' capacity would change it.
    model.config.text_config.attention_dropout = 0.5
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert held_out_loss(model.train(), batches) == pytest.approx(expected_loss, rel=1e-6)


def test_an_adapter_around_the_model_counts(model_and_batches):
    model, batches = model_and_batches
    before = held_out_loss(model, batches)
    adapted = get_peft_model(model, lora_config(model, "decoder"))
    assert held_out_loss(adapted, batches) == pytest.approx(before, rel=1e-6)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    assert held_out_loss(adapted, batches) != pytest.approx(before, rel=1e-3)


def test_without_targets_there_is_nothing_to_measure():
    model, processor = tiny_mm1()
    batch = MM1Collator(processor)([{"text": TEXTS[0]}])
    with pytest.raises(ValueError, match="no batch has any"):
        held_out_loss(model, [batch | {"labels": torch.full_like(batch["labels"], -100)}])
    with pytest.raises(ValueError, match="no batch has any"):
        held_out_loss(model, [])
