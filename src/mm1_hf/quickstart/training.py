"""The quickstart's fine-tuning: LoRA on the decoder and all weights of the connector. The frozen encoder computes its
features only once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mm1_hf.data.collation import IGNORED, MM1Collator
from mm1_hf.evaluation.answering import question_messages
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.model.vision import encode
from mm1_hf.quickstart.easy_vqa import Picture, Question
from mm1_hf.quickstart.folding import fold_rows
from mm1_hf.training.machine import this_machine
from mm1_hf.training.parts import parameter_groups


Batch = list[tuple[Picture, list[Question]]]

# The connector is new, so its learning rate is high. At this rate, the decoder would learn to guess before the
# connector's tokens tell it anything about the image.
_CONNECTOR_LEARNING_RATE = 1e-3


@torch.no_grad()
def encode_pictures(
    model: MM1ForConditionalGeneration, processor: MM1Processor, pictures: Sequence[Picture], batch_size: int = 64
) -> dict[int, torch.Tensor]:
    """
    Computes the frozen encoder's patch features of every picture, `(patches, width)`, by image id. Every picture has
    to become a single tile, as the quickstart's small pictures do.
    """
    tower = model.model.vision_tower
    features = {}
    with tqdm(total=len(pictures), desc="Encoding pictures", unit="picture") as bar:
        for start in range(0, len(pictures), batch_size):
            chunk = pictures[start : start + batch_size]
            pixels = processor.image_processor([picture.image() for picture in chunk], return_tensors="pt")
            _, patches = encode(
                tower,
                pixels["pixel_values"].to(tower.device),
                final_norm=model.config.vision_feature_norm,
            )
            features.update(zip((picture.image_id for picture in chunk), patches.cpu(), strict=True))
            bar.update(len(chunk))
    return features


@torch.no_grad()
def centre_features(connector: nn.Module, features: dict[int, torch.Tensor]) -> None:
    """
    Subtracts the mean of all patch features from the connector's position embedding, which is added to the patches.
    This mean is several times larger than the difference between two colours, and would hide that difference for
    hundreds of training steps.
    """
    cast(torch.Tensor, connector.position_embedding).sub_(torch.stack(list(features.values())).mean((0, 1)))


class BatchDataset(Dataset):
    """Prepared batches of pictures with their questions, one batch per training step."""

    def __init__(self, batches: list[Batch]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]


@dataclass
class CachedFeaturesCollator:
    """Turns a batch of pictures into folded rows of questions, with the pictures' features instead of their pixels."""

    processor: MM1Processor
    features: dict[int, torch.Tensor]

    def __call__(self, batches: list[Batch]) -> dict[str, torch.Tensor]:
        (batch,) = batches
        examples, pictures = [], []
        for index, (picture, questions) in enumerate(batch):
            image = picture.image()
            for question in questions:
                examples.append({"messages": question_messages(question.text, question.answer), "images": [image]})
                pictures.append(index)
        rows = MM1Collator(self.processor)(examples)
        lengths = rows["attention_mask"].sum(dim=1).tolist()
        inputs = fold_rows(
            [row[:length] for row, length in zip(rows["input_ids"], lengths, strict=True)],
            [row[:length] for row, length in zip(rows["labels"], lengths, strict=True)],
            groups=pictures,
            ignored=IGNORED,
        )
        inputs["picture_features"] = torch.stack([self.features[picture.image_id] for picture, _ in batch])
        return inputs


class CachedFeaturesTrainer(Trainer):
    """A `Trainer` that skips the frozen encoder: the connector gets features that were computed beforehand."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        inputs = dict(inputs)
        mm1 = self.accelerator.unwrap_model(model)
        if isinstance(mm1, PeftModel):
            mm1 = mm1.get_base_model()
        tokens = mm1.model.connector(inputs.pop("picture_features"))
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=tokens)}
        return super().compute_loss(model, inputs, *args, **kwargs)


def training_arguments(output_dir: str, steps: int, seed: int) -> TrainingArguments:
    """Settings of the fine-tuning: a short warm-up, a constant learning rate, and a decay to 0 in the last fifth."""
    machine = this_machine()
    return TrainingArguments(
        output_dir=output_dir,
        max_steps=steps,
        per_device_train_batch_size=1,
        # The last lesson needs the full learning rate as much as the first one.
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": steps // 5},
        warmup_steps=min(20, steps // 4),
        max_grad_norm=1.0,
        **machine.arguments,
        logging_steps=max(1, min(10, steps // 10)),
        save_strategy="no",
        report_to="none",
        # By default, Trainer hides its progress bar when logging is set to errors only.
        disable_tqdm=False,
        # The batches are already in the order of the lessons.
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        accelerator_config={"dispatch_batches": False, "split_batches": False},
        dataloader_pin_memory=machine.device.type == "cuda",
        seed=seed,
    )


def optimizer(model: nn.Module, decoder_learning_rate: float) -> torch.optim.Optimizer:
    """AdamW over the trainable weights, with separate learning rates for the connector and the decoder."""
    return torch.optim.AdamW(
        parameter_groups(model, decoder_learning_rate, 0.0, {"connector": _CONNECTOR_LEARNING_RATE})
    )


def train(
    model: nn.Module,
    processor: MM1Processor,
    features: dict[int, torch.Tensor],
    batches: list[Batch],
    output_dir: str,
    seed: int,
    decoder_learning_rate: float = 5e-4,
) -> list[tuple[int, float]]:
    """
    Trains the trainable weights of an MM1, with or without PEFT adapters, for one step per batch.

    Returns:
        The training loss over time, as pairs of step and loss.
    """
    trainer = CachedFeaturesTrainer(
        model=model,
        args=training_arguments(output_dir, len(batches), seed),
        train_dataset=BatchDataset(batches),
        data_collator=CachedFeaturesCollator(processor, features),
        optimizers=(optimizer(model, decoder_learning_rate), None),
    )
    trainer.train()
    return [(int(entry["step"]), float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry]
