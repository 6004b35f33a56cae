"""Adapters and quantised variants as repositories of their own."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors import safe_open
from tiny import tiny_mm1
from transformers import AutoModelForImageTextToText

from mm1_hf.cli import main
from mm1_hf.hub.card import CardDetails, PartDetails
from mm1_hf.hub.publishing import push
from mm1_hf.hub.quantized_variant import quantize
from mm1_hf.training.lora import lora_config


BASE = "someone/tiny"
NAME = "someone/tiny-variant"


@pytest.fixture
def adapter(tmp_path):
    """An adapter's folder as PEFT saves it, and the adapted model."""
    model, processor = tiny_mm1()
    model.name_or_path = BASE
    adapted = get_peft_model(model, lora_config(model, r=4))
    for weight in adapted.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", adapted.eval(), processor


def test_an_adapter_is_a_repository_of_peft(hub, saved, adapter, tmp_path):
    folder, adapted, processor = adapter
    push(saved[0], BASE)
    details = CardDetails(encoder=PartDetails("apple/aimv2", "apple-amlr"), connector_license="apache-2.0")
    push(folder, NAME, details=details)
    files = hub.repositories[NAME].files
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    # PEFT's own card is a form.
    assert "[More Information Needed]" in (folder / "README.md").read_text(encoding="utf-8")
    card = ModelCard(files["README.md"].decode())
    assert (card.data.library_name, card.data.base_model, card.data.license) == ("peft", [BASE], "apple-amlr")
    assert card.data.base_model_relation == "adapter" and "rank 4" in card.text

    inputs = processor(text="What is <image>?", images=Image.new("RGB", (60, 90), "red"), return_tensors="pt")
    base = AutoModelForImageTextToText.from_pretrained(BASE, cache_dir=tmp_path / "here")
    loaded = PeftModel.from_pretrained(base, NAME, cache_dir=tmp_path / "here").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, adapted(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("base", "told"),
    [(None, "does not name its base model"), (".", "which others cannot load")],
)
def test_an_adapter_of_what_nobody_has_is_refused(base, told, hub, adapter):
    path = adapter[0] / "adapter_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"base_model_name_or_path": base}), encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        push(adapter[0], NAME)
    assert not hub.requests


def test_an_adapter_without_safe_weights_is_refused(hub, adapter):
    (adapter[0] / "adapter_model.safetensors").rename(adapter[0] / "adapter_model.bin")
    with pytest.raises(ValueError, match="holds no adapter_model"):
        push(adapter[0], NAME)


def test_only_known_schemes_quantise(saved, tmp_path):
    with pytest.raises(ValueError, match=r"'int3'.*int8"):
        quantize(saved[0], tmp_path / "variant", "int3")


def test_a_quantised_variant_is_published_and_loads(hub, saved, tmp_path, capsys):
    folder, model, processor = saved
    assert main(["push", str(folder), NAME, "--quantize", "int8"]) == 0, capsys.readouterr().err
    files = hub.repositories[NAME].files
    card = ModelCard(files["README.md"].decode())
    assert "quantized" in card.data.tags and "quantised (torchao)" in card.text
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(files["model.safetensors"])
    with safe_open(weights, "pt") as tensors:
        kinds = {name: tensors.get_tensor(name).dtype for name in tensors.keys()}  # noqa: SIM118 - no mapping
    small = [name for name, kind in kinds.items() if kind == torch.int8]
    assert small and all(name.startswith("model.language_model.layers") for name in small)
    loaded = AutoModelForImageTextToText.from_pretrained(NAME, cache_dir=tmp_path / "here").eval()
    inputs = processor(text="What is <image>?", images=Image.new("RGB", (60, 90), "red"), return_tensors="pt")
    with torch.no_grad():
        expected, given = model(**inputs).logits, loaded(**inputs).logits
        seen = [each.model.get_image_features(inputs["pixel_values"]).pooler_output for each in (model, loaded)]
    # The encoder and the connector are as they were.
    torch.testing.assert_close(*seen, atol=1e-5, rtol=1e-5)
    # Rounding to 8 bits moves each weight by 1/254 of its row's largest at most.
    assert 0 < (given - expected).abs().max() < 0.05 * expected.abs().max()
