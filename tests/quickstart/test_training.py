import pytest
import torch
from machines import CPUS, pretend_cpu
from peft import get_peft_model
from tiny import tiny_mm1

from mm1_hf.quickstart.training import centre_features, optimizer, training_arguments
from mm1_hf.training.lora import lora_config


@pytest.fixture
def model():
    model, _ = tiny_mm1()
    return get_peft_model(model, lora_config(model, "decoder+connector", r=4))


def test_the_connector_sees_features_without_their_mean(model):
    generator = torch.Generator().manual_seed(0)
    features = {index: 5 + torch.randn(16, 32, generator=generator) for index in range(50)}
    connector = model.get_base_model().model.connector
    patches = torch.stack(list(features.values()))
    before = (patches + connector.position_embedding).mean((0, 1))
    centre_features(connector, features)
    after = (patches + connector.position_embedding).mean((0, 1))
    assert before.min() > 4
    torch.testing.assert_close(after, before - patches.mean((0, 1)))
    assert after.abs().max() < 0.1


def test_connector_and_decoder_learn_at_their_own_rates(model):
    rates = {id(weight): group["lr"] for group in optimizer(model, 5e-4).param_groups for weight in group["params"]}
    learned = {name: rates.pop(id(weight)) for name, weight in model.named_parameters() if weight.requires_grad}
    assert rates == {}
    assert {rate for name, rate in learned.items() if "connector" in name} == {1e-3}
    assert {rate for name, rate in learned.items() if "lora_" in name} == {5e-4}


@CPUS
def test_the_settings_are_the_machines(cpu_dtype, tmp_path, monkeypatch):
    pretend_cpu(monkeypatch, cpu_dtype)
    arguments = training_arguments(str(tmp_path), steps=100, seed=0)
    assert arguments.use_cpu and arguments.bf16 is (cpu_dtype is torch.bfloat16)
