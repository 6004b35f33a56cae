"""LoRA presets on dense and sparse, own and foreign decoders: what they train, and that it survives however it is kept."""

from functools import cache

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from tiny import DECODER_SIZES, byte_tokenizer, tiny_decoder, tiny_mm1, tiny_vision
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3MoeConfig, Qwen3MoeForCausalLM

from mm1_hf import MM1ConnectorConfig, MM1TextConfig, MM1TextForCausalLM, assemble
from mm1_hf.training.lora import lora_config


SIZES = {**DECODER_SIZES, "pad_token_id": None, "bos_token_id": None}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DECODERS = {
    "own": lambda: MM1TextForCausalLM(MM1TextConfig(**SIZES)),
    "own sparse": lambda: MM1TextForCausalLM(MM1TextConfig(**SIZES, **EXPERTS, moe_layer_period=2)),
    "llama": tiny_decoder,
    "qwen3 sparse": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **EXPERTS)),
}
# Linear layers of the two decoder layers, and experts' weights.
LINEAR = {"own": 14, "own sparse": 11, "llama": 14, "qwen3 sparse": 8}
FUSED = {"own": 0, "own sparse": 2, "llama": 0, "qwen3 sparse": 4}
# 3 encoder layers, without what comes after the one that is read, of 6 linear layers each.
ENCODER = 18
PRESETS = ["decoder", "decoder+connector", "all", "experts"]
CASES = [(decoder, preset) for decoder in DECODERS for preset in PRESETS if FUSED[decoder] or preset != "experts"]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """Where a model with the decoder of this name lies."""

    @cache
    def save(name: str) -> str:
        torch.manual_seed(2)
        decoder = DECODERS[name]().eval()
        connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32)
        model, processor = assemble(tiny_vision(), decoder, connector, tokenizer=byte_tokenizer(), verbose=False)
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return str(folder)

    return save


def load(folder: str):
    return AutoModelForImageTextToText.from_pretrained(folder)


def inputs(processor) -> dict[str, torch.Tensor]:
    image = torch.arange(3 * 56 * 56, dtype=torch.int64).view(3, 56, 56).remainder(251).to(torch.uint8)
    return processor(text="a<image>bcde", images=image, return_tensors="pt")


def train(model, batch: dict[str, torch.Tensor], image_token_id: int) -> list[float]:
    """The losses of a few steps."""
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == image_token_id, -100)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    losses = []
    for _ in range(4):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("decoder", "preset"), CASES)
def test_presets_train_what_they_name(base_folder, decoder, preset):
    base = load(base_folder(decoder))
    adapted = get_peft_model(base, lora_config(base, preset, r=4))
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert all(".lora_" in name or ".connector." in name for name in trained)
    updates = [name for name in trained if name.endswith(".lora_A.default.weight")]
    in_encoder = sum(".vision_tower." in name for name in updates)
    in_experts = sum(".experts." in name for name in updates)
    assert in_encoder == (ENCODER if preset == "all" else 0)
    assert in_experts == (FUSED[decoder] if preset in ("all", "experts") else 0)
    assert len(updates) - in_encoder - in_experts == (0 if preset == "experts" else LINEAR[decoder])
    connector = adapted.base_model.model.model.connector
    whole = sum(".connector." in name for name in trained)
    assert whole == (0 if preset in ("decoder", "experts") else len(list(connector.original_module.parameters())))


@pytest.mark.parametrize(("decoder", "preset"), CASES)
def test_adapters_survive_saving_loading_and_merging(base_folder, tmp_path, decoder, preset):
    folder = base_folder(decoder)
    processor = AutoProcessor.from_pretrained(folder)
    batch, base = inputs(processor), load(folder)
    adapted = get_peft_model(base, lora_config(base, preset, r=4, lora_alpha=16))
    losses = train(adapted.train(), batch, base.config.image_token_id)
    assert losses[-1] < losses[0]
    adapted.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = adapted(**batch).logits
        native = load(folder)
        assert not torch.allclose(native(**batch).logits, expected, atol=1e-3), "the adapter does something"
        native.load_adapter(str(tmp_path))
        # Tensors mapped from a file lie at other addresses, where matrix products round differently.
        torch.testing.assert_close(native(**batch).logits, expected, rtol=1e-5, atol=1e-5)
        reloaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path)).eval()
        torch.testing.assert_close(reloaded(**batch).logits, expected, rtol=1e-5, atol=1e-5)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_is_a_repository_of_its_own(base_folder, tmp_path):
    """The processor beside the adapter, as one pushes it: everything loads from the one folder."""
    folder = base_folder("llama")
    base, processor = load(folder), AutoProcessor.from_pretrained(folder)
    adapted = get_peft_model(base, lora_config(base, r=4))
    train(adapted, inputs(processor), base.config.image_token_id)
    adapted.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = inputs(AutoProcessor.from_pretrained(tmp_path))
    with torch.no_grad():
        expected = adapted(**batch).logits
        for loaded in (
            AutoModelForImageTextToText.from_pretrained(tmp_path),
            AutoPeftModelForCausalLM.from_pretrained(str(tmp_path)),
            PeftModel.from_pretrained(load(folder), tmp_path),
        ):
            torch.testing.assert_close(loaded.eval()(**batch).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vision", ["clip", "siglip", "aimv2", "dinov2"])
def test_every_update_of_an_adapted_encoder_learns(vision):
    model, processor = tiny_mm1(vision)
    adapted = get_peft_model(model, lora_config(model, "all", r=4, lora_dropout=0.1))
    batch = inputs(processor)
    adapted(**batch, labels=batch["input_ids"]).loss.backward()
    without = [name for name, weight in adapted.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not without


def other_base(depth=3, **fields):
    decoder = tiny_decoder(**fields)
    connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32, depth=depth)
    return assemble(tiny_vision(), decoder, connector, tokenizer=byte_tokenizer(), verbose=False)[0]


@pytest.mark.parametrize("way", ["peft", "native"])
@pytest.mark.parametrize("layers", [(2, 3), (3, 2), (2, 2)], ids=["more layers", "fewer layers", "other sizes"])
def test_an_adapter_for_another_base_is_refused(way, layers, tmp_path):
    made_for = other_base(num_hidden_layers=layers[0])
    get_peft_model(made_for, lora_config(made_for, "decoder", r=4)).save_pretrained(tmp_path)
    sizes = {"hidden_size": 32} if layers == (2, 2) else {}
    model = other_base(num_hidden_layers=layers[1], **sizes)
    with pytest.raises(ValueError, match=r"was made for another base model: .*base_model_name_or_path"):
        if way == "peft":
            PeftModel.from_pretrained(model, tmp_path)
        else:
            model.load_adapter(str(tmp_path))


@pytest.mark.parametrize("way", ["peft", "native"])
def test_an_adapter_with_another_connector_is_refused(way, tmp_path):
    """Its low-rank updates fit, and PEFT would drop the layers that this connector has not."""
    made_for = other_base()
    get_peft_model(made_for, lora_config(made_for, "decoder+connector", r=4)).save_pretrained(tmp_path)
    model = other_base(depth=1)
    with pytest.raises(ValueError, match=r"was made for another base model: .*base_model_name_or_path"):
        if way == "peft":
            PeftModel.from_pretrained(model, tmp_path)
        else:
            model.load_adapter(str(tmp_path))


def test_what_a_preset_cannot_do_is_refused():
    model, _ = tiny_mm1()
    with pytest.raises(
        ValueError, match=r"no LoRA preset 'encoder'; choose one of decoder, decoder\+connector, all, e"
    ):
        lora_config(model, "encoder")
    with pytest.raises(ValueError, match=r"decoder \(llama\) has no experts; choose another preset"):
        lora_config(model, "experts")


def test_dropout_of_experts_is_refused(base_folder):
    with pytest.raises(ValueError, match="updates of experts have no dropout"):
        lora_config(load(base_folder("own sparse")), "all", lora_dropout=0.1)
