"""The quickstart's fine-tuning: LoRA on the decoder and the connector whole, on features that the frozen encoder computes
once."""

import time
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
from mm1_hf.training.parts import parameter_groups


Batch = list[tuple[Picture, list[Question]]]

# The connector starts from nothing. At its rate the decoder would learn to guess before there is anything to see.
_CONNECTOR_LEARNING_RATE = 1e-3


@torch.no_grad()
def encode_pictures(
    model: MM1ForConditionalGeneration, processor: MM1Processor, pictures: Sequence[Picture], batch_size: int = 64
) -> dict[int, torch.Tensor]:
    """
    The frozen encoder's patches of every picture, `(patches, width)`, by the picture's id. One tile per picture: the
    quickstart's are small.
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
    Begins the connector's position embedding, which is added to the patches, at minus their mean. What all pictures share
    is several times larger than what tells two colours apart, and would hide it for hundreds of steps.
    """
    cast(torch.Tensor, connector.position_embedding).sub_(torch.stack(list(features.values())).mean((0, 1)))


class BatchDataset(Dataset):
    """Ready batches of pictures with their questions, one per training step."""

    def __init__(self, batches: list[Batch]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]


@dataclass
class CachedFeaturesCollator:
    """Turns a batch of pictures into folded rows of questions, with the pictures' features in place of their pixels."""

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
    """`Trainer` that starts at the connector: what comes before it is frozen and was computed once."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        inputs = dict(inputs)
        mm1 = self.accelerator.unwrap_model(model)
        if isinstance(mm1, PeftModel):
            mm1 = mm1.get_base_model()
        tokens = mm1.model.connector(inputs.pop("picture_features"))
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=tokens)}
        return super().compute_loss(model, inputs, *args, **kwargs)


def faster_dtype(device: torch.device) -> torch.dtype:
    """
    bfloat16 or float32, whichever multiplies matrices faster. GPUs and newer CPUs have units for bfloat16; CPUs without
    them emulate it, at a tenth of float32's speed.
    """
    if device.type != "cpu":
        return torch.bfloat16

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(512, 512, dtype=dtype)
        matrix @ matrix
        start = time.perf_counter()
        for _ in range(5):
            matrix @ matrix
        return time.perf_counter() - start

    return min((torch.bfloat16, torch.float32), key=seconds)


def training_arguments(output_dir: str, steps: int, seed: int, dtype: torch.dtype) -> TrainingArguments:
    """The quickstart's recipe: AdamW, a short warm-up, and a fall to 0 over the last fifth of `steps`."""
    return TrainingArguments(
        output_dir=output_dir,
        max_steps=steps,
        per_device_train_batch_size=1,
        # The last lesson needs its rate as much as the first one.
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": steps // 5},
        warmup_steps=min(20, steps // 4),
        max_grad_norm=1.0,
        bf16=dtype is torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=max(1, min(10, steps // 10)),
        save_strategy="no",
        report_to="none",
        # Quiet logging would take the bar away too.
        disable_tqdm=False,
        # The batches come in an order of their own.
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        accelerator_config={"dispatch_batches": False, "split_batches": False},
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
    )


def optimizer(model: nn.Module, decoder_learning_rate: float) -> torch.optim.Optimizer:
    """AdamW over what is trained, with a rate for the connector and one for the decoder."""
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
    dtype: torch.dtype,
    decoder_learning_rate: float = 5e-4,
) -> list[tuple[int, float]]:
    """
    Trains what is not frozen of an MM1, or of what PEFT made of one, one step per batch, computing in `dtype`.

    Returns:
        The training loss over time, as steps and losses.
    """
    trainer = CachedFeaturesTrainer(
        model=model,
        args=training_arguments(output_dir, len(batches), seed, dtype),
        train_dataset=BatchDataset(batches),
        data_collator=CachedFeaturesCollator(processor, features),
        optimizers=(optimizer(model, decoder_learning_rate), None),
    )
    trainer.train()
    return [(int(entry["step"]), float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry]
