"""Pre-training from a file of settings: the model, its sources, and what differs from the papers' recipe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from transformers import AutoProcessor
from transformers.utils import logging

from mm1_hf.data.examples import ExampleEncoder
from mm1_hf.data.mixture import Mixture, Unit
from mm1_hf.training.parts import freeze
from mm1_hf.training.recipes import Recipe, Stage, recipe
from mm1_hf.training.settings import (
    SourceSettings,
    build_mixture,
    change_recipe,
    load,
    load_model,
    print_left_out,
    split_images,
)
from mm1_hf.training.streams import last_complete_checkpoint
from mm1_hf.training.trainer import MM1Trainer


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class PretrainingSettings:
    """
    What `mm1 pretrain` reads from a YAML or JSON file. What is unset is as the recipe has it.

    Args:
        model: a saved model's folder or Hub id, with its processor, as [`mm1_hf.assemble`] makes them.
        output_dir: where checkpoints and the trained model go. A run that was stopped goes on from its last checkpoint.
        sources: by name.
        stage: `"pretrain"`, or `"continual"` on text-rich images.
        sequence_length: positions of a row.
        max_images: images of a row at most.
        unit: what the weights count: `"rows"`, `"documents"` or `"tokens"`.
        image_splitting: `"none"`, `"static"` or `"dynamic"`.
        resolution: side in pixels of what static splitting cuts; otherwise of a tile.
        batch_size: rows of a step over all devices.
        rows_per_device: rows of one forward pass.
        frozen: parts that are not trained: `"encoder"`, `"connector"`, `"decoder"`.
        learning_rates: of parts that differ from the others.
        arguments: fields of `TrainingArguments`.
        distributed:
            how the weights are split over processes, such as `{"fsdp_size": 8}`: see
            [`mm1_hf.training.parallel.distributed_config`]. Unset, every process has all of them.
        peak_tflops: of one device; with it the share of it that is reached is logged.
        lanes, window, max_dropped_share: of the [`Mixture`].
        seed: of the data's order.
    """

    model: str
    output_dir: str
    sources: dict[str, SourceSettings]
    stage: Stage = "pretrain"
    sequence_length: int | None = None
    max_images: int | None = None
    unit: Unit | None = None
    image_splitting: str | None = None
    resolution: int | None = None
    batch_size: int | None = None
    rows_per_device: int = 1
    frozen: tuple[str, ...] = ()
    learning_rates: dict[str, float] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    distributed: dict[str, Any] = field(default_factory=dict)
    peak_tflops: float | None = None
    lanes: int = 8
    window: int = 512
    max_dropped_share: float = 0.05
    seed: int = 0


def load_settings(path: str | Path) -> PretrainingSettings:
    """
    Reads a YAML or JSON file.

    Args:
        path: of entries as [`PretrainingSettings`] has fields; the sources' are [`SourceSettings`]'.

    Raises:
        ValueError: it is neither, or has unknown, missing or wrong entries.
        OSError: it cannot be read.
    """
    settings = load(PretrainingSettings, path)
    if settings.stage == "sft" or settings.stage not in get_args(Stage):
        raise ValueError(f"{path}: stage is {settings.stage!r}; pre-training's are 'pretrain' and 'continual'.")
    return settings


def build_recipe(settings: PretrainingSettings, model: Any) -> Recipe:
    """
    The recipe of the model's size with the settings' changes.

    Args:
        settings: the run's.
        model: a model or configuration, whose decoder's size the learning rate follows from.

    Raises:
        ValueError: a source without a weight whose name the recipe does not know.
    """
    return change_recipe(recipe(model, settings.stage), settings)


def build_trainer(settings: PretrainingSettings) -> MM1Trainer:
    """
    The trainer of a run, with its model and its mixture.

    Args:
        settings: the run's.

    Raises:
        ValueError: settings that do not fit each other, the model or the data.
    """
    num_devices, model = load_model(settings.model, settings.arguments, settings.distributed)
    processor = AutoProcessor.from_pretrained(settings.model)
    stage = build_recipe(settings, model)
    split_images(processor, stage.data)
    stage.configure(model)
    freeze(model, settings.frozen)
    encoder = ExampleEncoder(processor, stage.data.sequence_length, stage.data.max_images)
    mixture = build_mixture(settings, stage, encoder)
    arguments = stage.training_arguments(
        settings.output_dir, num_devices=num_devices, rows_per_device=settings.rows_per_device
    )
    return MM1Trainer(
        model=model,
        args=arguments,
        train_dataset=mixture,
        processing_class=processor,
        learning_rates=settings.learning_rates,
        peak_tflops=settings.peak_tflops,
    )


def pretrain(settings: PretrainingSettings) -> MM1Trainer:
    """
    Runs a pre-training, or goes on with one, and saves the model and its processor to `output_dir`.

    Args:
        settings: the run's.

    Returns:
        The trainer, with the trained model.

    Raises:
        ValueError: settings that do not fit each other, the model or the data, or too many unusable records.
    """
    trainer = build_trainer(settings)
    print(f"{build_recipe(settings, trainer.model)}\n")
    checkpoint = last_complete_checkpoint(settings.output_dir)
    if checkpoint is not None:
        logger.warning(f"Going on from {checkpoint}.")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(settings.output_dir)
    print_left_out(cast(Mixture, trainer.train_dataset))
    return trainer
