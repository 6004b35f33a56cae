"""Pre-training from a file of settings: the model, its sources, and what differs from the papers' recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from transformers import AutoProcessor

from mm1_hf.data.examples import ExampleEncoder
from mm1_hf.training.parts import freeze
from mm1_hf.training.recipes import Recipe, Stage, recipe
from mm1_hf.training.settings import (
    RunSettings,
    build_mixture,
    change_recipe,
    fit_tiles,
    load,
    load_model,
    split_images,
    train_and_save,
)
from mm1_hf.training.trainer import MM1Trainer


@dataclass(frozen=True)
class PretrainingSettings(RunSettings):
    """
    What `mm1 pretrain` reads from a YAML or JSON file: [`mm1_hf.training.settings.RunSettings`], and:

    Args:
        stage: `"pretrain"`, or `"continual"` on text-rich images.
    """

    stage: Stage = "pretrain"


def load_settings(path: str | Path) -> PretrainingSettings:
    """
    Reads a YAML or JSON file.

    Args:
        path: of entries as [`PretrainingSettings`] has fields.

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
    fit_tiles(model, processor)
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
    train_and_save(trainer, settings.output_dir)
    return trainer
