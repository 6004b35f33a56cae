"""
Two steps of Trainer and of TRL, and an adapter saved and loaded, on the installed versions.

`run.py` names this file. pytest does not collect it by itself, because tests/training covers more on the versions of the
constraints.
"""

import pytest
import torch
from conversations import conversations
from peft import PeftModel, get_peft_model
from tiny import tiny_mm1
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from mm1_hf import MM1ForConditionalGeneration
from mm1_hf.data.collation import MM1Collator
from mm1_hf.model.versions import ALIGNS_ASSISTANT_MASKS
from mm1_hf.training.lora import lora_config
from mm1_hf.training.sft import MM1SFTTrainer
from mm1_hf.training.trainer import MM1Trainer


SETTINGS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "remove_unused_columns": False,
    "save_strategy": "no",
    "logging_steps": 1,
}


def changed(before: dict, model) -> set[str]:
    return {name for name, weight in model.named_parameters() if not torch.equal(before[name], weight)}


@pytest.mark.parametrize("how", ["trainer", "mm1 sft", "mm1 sft packed", "trl"])
def test_two_steps_train_every_part(how, tmp_path):
    model, processor = tiny_mm1()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    common = {"model": model, "train_dataset": conversations(8), "processing_class": processor}
    if how == "trainer":
        arguments = TrainingArguments(str(tmp_path), **SETTINGS)
        trainer = MM1Trainer(args=arguments, data_collator=MM1Collator(processor), **common)
    elif how == "trl":
        # TRL refuses assistant_only_loss for data with images on older ones.
        arguments = SFTConfig(str(tmp_path), max_length=None, assistant_only_loss=ALIGNS_ASSISTANT_MASKS, **SETTINGS)
        trainer = SFTTrainer(args=arguments, **common)
    else:
        arguments = SFTConfig(str(tmp_path), max_length=256, packing="packed" in how, **SETTINGS)
        trainer = MM1SFTTrainer(args=arguments, **common)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(0 < float(loss) < 20 for loss in losses)
    names = changed(before, trainer.model)
    for part in ("vision_tower", "connector", "language_model"):
        assert any(part in name for name in names), part


@pytest.mark.parametrize("way", ["peft", "transformers"])
def test_an_adapter_is_saved_and_loaded(way, tmp_path):
    model, processor = tiny_mm1()
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, lora_config(model, "decoder+connector", r=4)).eval()
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    inputs = MM1Collator(processor)(list(conversations(2)))
    inputs.pop("labels")
    base = MM1ForConditionalGeneration.from_pretrained(tmp_path / "base")
    if way == "peft":
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    else:
        base.load_adapter(str(tmp_path / "adapter"))
        loaded = base.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, adapted(**inputs).logits, rtol=0, atol=1e-5)
