import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import tiny_mm1

from mm1_hf.training.lora import lora_config


def inputs(processor):
    return processor(text="a<image>bc", images=torch.zeros(3, 56, 56, dtype=torch.uint8), return_tensors="pt")


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def randomize(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)


@pytest.mark.parametrize("preset", ["decoder", "decoder+connector"])
def test_presets_train_what_they_name(preset):
    model, _ = tiny_mm1()
    adapted = get_peft_model(model, lora_config(model, preset, r=4))
    names = trained_names(adapted)
    assert not any("vision_tower" in name for name in names)
    assert all("lora_" in name or ".connector." in name for name in names)
    # q, k, v, o, gate, up and down of 2 layers, an A and a B each
    assert sum("lora_" in name for name in names) == 7 * 2 * 2
    connector = {name for name in names if ".connector." in name}
    assert len(connector) == (
        len(list(model.model.connector.original_module.parameters())) if "connector" in preset else 0
    )
    assert not any("lm_head" in name for name in names)


@pytest.mark.parametrize("preset", ["decoder", "decoder+connector"])
def test_adapters_survive_saving_and_merging(preset, tmp_path):
    model, processor = tiny_mm1()
    adapted = get_peft_model(model, lora_config(model, preset, r=4)).eval()
    randomize(adapted)
    batch = inputs(processor)
    with torch.no_grad():
        expected = adapted(**batch).logits
        adapted.save_pretrained(tmp_path)
        base, _ = tiny_mm1()
        before = base(**batch).logits
        reloaded = PeftModel.from_pretrained(base, tmp_path).eval()
        assert torch.equal(reloaded(**batch).logits, expected)
        assert not torch.allclose(before, expected, atol=1e-3), "the adapter does something"
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_preset_is_refused():
    model, _ = tiny_mm1()
    with pytest.raises(ValueError, match="no LoRA preset 'encoder'; choose one of decoder, decoder"):
        lora_config(model, "encoder")
