from dataclasses import dataclass

import pytest
import torch
from machines import CPUS, pretend_cpu
from peft import get_peft_model
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.data.collation import MM1Collator
from mm1_hf.evaluation.answering import question_messages
from mm1_hf.quickstart.easy_vqa import Question
from mm1_hf.quickstart.training import (
    BatchDataset,
    CachedFeaturesCollator,
    CachedFeaturesTrainer,
    centre_features,
    encode_pictures,
    train,
    training_arguments,
)
from mm1_hf.training.lora import lora_config


@dataclass(frozen=True)
class Plain:
    image_id: int
    colour: str

    def image(self):
        return Image.new("RGB", (64, 64), self.colour)


RED, BLUE = Plain(7, "red"), Plain(3, "blue")
BATCH = [
    (RED, [Question("what is it?", "red", "colour"), Question("what?", "a circle", "shape")]),
    (BLUE, [Question("is it?", "no", "yes/no"), Question("red?", "no", "yes/no"), Question("blue?", "yes", "yes/no")]),
]


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


def test_a_step_on_cached_features_is_one_on_separate_rows(tmp_path):
    """A picture's questions share its tokens and do not see each other; the encoder is not run in training."""
    model, processor = tiny_mm1()
    model.train()
    rows = MM1Collator(processor)(
        [
            {"messages": question_messages(question.text, question.answer), "images": [picture.image()]}
            for picture, questions in BATCH
            for question in questions
        ]
    )
    expected = model(**rows).loss
    expected.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if "vision_tower" not in name}
    model.zero_grad()

    features = encode_pictures(model, processor, [RED, BLUE])
    collator = CachedFeaturesCollator(processor, features)
    batch = collator([BATCH])
    assert batch["input_ids"].numel() < 0.85 * rows["attention_mask"].sum() and "pixel_values" not in batch
    trainer = CachedFeaturesTrainer(
        model=model,
        args=training_arguments(str(tmp_path), 1, 0, 5e-4),
        train_dataset=BatchDataset([BATCH]),
        data_collator=collator,
    )
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
        else:
            assert parameter.grad is None


@CPUS
def test_training_teaches_at_the_rates_of_the_parts(model, cpu_dtype, tmp_path, monkeypatch):
    pretend_cpu(monkeypatch, cpu_dtype)
    processor = tiny_mm1()[1]
    features = encode_pictures(model.get_base_model(), processor, [RED, BLUE])
    rates = {}
    create = CachedFeaturesTrainer.create_optimizer

    def remember(trainer, *args):
        made = create(trainer, *args)
        rates.update({id(weight): group["lr"] for group in made.param_groups for weight in group["params"]})
        return made

    monkeypatch.setattr(CachedFeaturesTrainer, "create_optimizer", remember)
    losses = train(model, processor, features, [BATCH] * 30, str(tmp_path), 0, decoder_learning_rate=5e-3)
    assert losses[-1][1] < losses[0][1] - 0.4
    learned = {name: rates.pop(id(weight)) for name, weight in model.named_parameters() if weight.requires_grad}
    assert rates == {}
    assert {rate for name, rate in learned.items() if "connector" in name} == {1e-3}
    assert {rate for name, rate in learned.items() if "lora_" in name} == {5e-3}


@CPUS
def test_the_settings_are_the_machines(cpu_dtype, tmp_path, monkeypatch):
    pretend_cpu(monkeypatch, cpu_dtype)
    arguments = training_arguments(str(tmp_path), steps=100, seed=0, learning_rate=5e-4)
    assert arguments.use_cpu and arguments.bf16 is (cpu_dtype is torch.bfloat16)
