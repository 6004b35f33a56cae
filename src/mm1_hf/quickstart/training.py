"""The quickstart's fine-tuning: LoRA on the decoder and all weights of the connector. The frozen encoder computes its
features only once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import TrainingArguments
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mm1_hf.data.documents import Unusable
from mm1_hf.data.examples import ChatEncoder
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.packing import build_row
from mm1_hf.data.shared_images import SharedImages
from mm1_hf.evaluation.answering import question_messages
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.model.vision import encode
from mm1_hf.quickstart.easy_vqa import Picture, Question
from mm1_hf.training.machine import this_machine
from mm1_hf.training.trainer import MM1Trainer


Batch = list[tuple[Picture, list[Question]]]

# The connector is new, so its learning rate is high. The decoder's is the same: the connector has learned the pictures'
# words before, so the decoder need not wait until its tokens tell something about the image.
_CONNECTOR_LEARNING_RATE = 1e-3
_ANY_LENGTH = 1 << 20


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
    """
    Turns a batch of pictures into one packed row, with the pictures' features instead of their pixels. A picture is in the
    row once, followed by a branch for each of its questions.
    """

    processor: MM1Processor
    features: dict[int, torch.Tensor]

    def __post_init__(self) -> None:
        # Rows are as long as their pictures and questions; nothing is left out.
        self.encoder = ChatEncoder(self.processor, sequence_length=_ANY_LENGTH)

    def __call__(self, batches: list[Batch]) -> dict[str, torch.Tensor]:
        (batch,) = batches
        examples = []
        for encoded in self.encoder.encode([_document(picture, questions) for picture, questions in batch]):
            if isinstance(encoded, Unusable):
                raise encoded
            examples += encoded
        row = build_row(examples, sum(len(example.input_ids) for example in examples))
        inputs = {name: value.unsqueeze(0) for name, value in row.items()}
        inputs["picture_features"] = torch.stack([self.features[picture.image_id] for picture, _ in batch])
        return inputs


def _document(picture: Picture, questions: list[Question]) -> SharedImages:
    image, chat, name = picture.image(), LAYOUTS["chat"], f"picture {picture.image_id}"
    chats = [
        chat({"messages": question_messages(question.text, question.answer), "images": [image]}, name)
        for question in questions
    ]
    return SharedImages(chats[0].kind, chats[0].parts, name, tuple(chats))


class CachedFeaturesTrainer(MM1Trainer):
    """An [`MM1Trainer`] that skips the frozen encoder: the connector gets features that were computed beforehand."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        tokens = self._mm1().model.connector(inputs.pop("picture_features"))
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=tokens)}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def training_arguments(output_dir: str, steps: int, seed: int, learning_rate: float) -> TrainingArguments:
    """Settings of the fine-tuning: a short warm-up, a constant learning rate, and a decay to 0 in the last fifth."""
    machine = this_machine()
    return TrainingArguments(
        output_dir=output_dir,
        max_steps=steps,
        learning_rate=learning_rate,
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


def train(
    model: nn.Module,
    processor: MM1Processor,
    features: dict[int, torch.Tensor],
    batches: list[Batch],
    output_dir: str,
    seed: int,
    decoder_learning_rate: float = 1e-3,
) -> list[tuple[int, float]]:
    """
    Trains the trainable weights of an MM1, with or without PEFT adapters, for one step per batch.

    Returns:
        The training loss over time, as pairs of step and loss.
    """
    trainer = CachedFeaturesTrainer(
        model=model,
        args=training_arguments(output_dir, len(batches), seed, decoder_learning_rate),
        train_dataset=BatchDataset(batches),
        data_collator=CachedFeaturesCollator(processor, features),
        learning_rates={"connector": _CONNECTOR_LEARNING_RATE},
    )
    trainer.train()
    return [(int(entry["step"]), float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry]
