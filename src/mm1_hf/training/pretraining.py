"""Pre-training from a file of settings: the model, its sources, and what differs from the papers' recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import yaml
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from mm1_hf.data.examples import ExampleEncoder
from mm1_hf.data.mixture import Mixture, Source, Unit
from mm1_hf.data.readers import read
from mm1_hf.processing_mm1 import MM1Processor
from mm1_hf.training.parallel import distributed_config
from mm1_hf.training.parts import freeze
from mm1_hf.training.recipes import Recipe, Stage, recipe
from mm1_hf.training.streams import last_complete_checkpoint
from mm1_hf.training.trainer import MM1Trainer


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class SourceSettings:
    """
    Args:
        path: a data set's folder, file or Hub id.
        layout: what its records look like, a name in [`mm1_hf.data.layouts.LAYOUTS`].
        weight: its share of the mixture; unset, that of the recipe's source of the same name.
        split: of the data set.
        streaming: whether it is read record by record, without being loaded before.
    """

    path: str
    layout: str
    weight: float | None = None
    split: str = "train"
    streaming: bool = False


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
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    settings = _from_mapping(PretrainingSettings, values, str(path))
    if not isinstance(settings.sources, Mapping) or not settings.sources:
        raise ValueError(f"{path}: sources maps names to data sets; got {settings.sources!r:.100}.")
    sources = {
        name: _from_mapping(SourceSettings, value, f"{path}, source {name}")
        for name, value in settings.sources.items()
    }
    if settings.stage == "sft" or settings.stage not in get_args(Stage):
        raise ValueError(f"{path}: stage is {settings.stage!r}; pre-training's are 'pretrain' and 'continual'.")
    return replace(settings, sources=sources, frozen=tuple(settings.frozen))


def _from_mapping(kind: type[PretrainingSettings | SourceSettings], values: Any, where: str) -> Any:
    names = {each.name for each in fields(kind)}
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} holds {type(values).__name__}, not entries; they are {', '.join(sorted(names))}.")
    if unknown := set(values) - names:
        raise ValueError(
            f"{where} has unknown entries: {', '.join(map(str, unknown))}. They are {', '.join(sorted(names))}."
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def build_recipe(settings: PretrainingSettings, model: Any) -> Recipe:
    """
    The recipe of the model's size with the settings' changes.

    Args:
        settings: the run's.
        model: a model or configuration, whose decoder's size the learning rate follows from.

    Raises:
        ValueError: a source without a weight whose name the recipe does not know.
    """
    paper = recipe(model, settings.stage)
    data = {
        name: value
        for name in ("sequence_length", "max_images", "unit")
        if (value := getattr(settings, name)) is not None
    }
    weights = {
        name: paper.data.mixture.get(name) if source.weight is None else source.weight
        for name, source in settings.sources.items()
    }
    if unknown := [name for name, weight in weights.items() if weight is None]:
        raise ValueError(
            f"The sources {', '.join(unknown)} have no weight, and the recipe knows {', '.join(paper.data.mixture)}: give "
            "weights, or the recipe's names."
        )
    return replace(
        paper,
        batch_size=settings.batch_size or paper.batch_size,
        arguments=paper.arguments | settings.arguments,
        data=replace(paper.data, mixture=weights, **data),
    )


def build_mixture(settings: PretrainingSettings, stage: Recipe, processor: MM1Processor) -> Mixture:
    """
    The data of a run, not yet split among devices.

    Args:
        settings: the run's.
        stage: its recipe, as [`build_recipe`] makes it.
        processor: the model's own; it is set to split images as the recipe does.

    Raises:
        ValueError: settings that do not fit each other or the data.
    """
    processor.image_processor.image_splitting = stage.data.image_splitting
    return Mixture(
        [
            Source(
                name,
                read(source.path, source.layout, split=source.split, streaming=source.streaming),
                source.layout,
                stage.data.mixture[name],
            )
            for name, source in settings.sources.items()
        ],
        ExampleEncoder(processor, stage.data.sequence_length, stage.data.max_images),
        unit=stage.data.unit,
        seed=settings.seed,
        lanes=settings.lanes,
        window=settings.window,
        max_dropped_share=settings.max_dropped_share,
    )


def build_trainer(settings: PretrainingSettings) -> MM1Trainer:
    """
    The trainer of a run, with its model and its mixture.

    Args:
        settings: the run's.

    Raises:
        ValueError: settings that do not fit each other, the model or the data.
    """
    # As TrainingArguments count them, which come later.
    cpu = bool(settings.arguments.get("use_cpu"))
    num_devices, split = PartialState(cpu=cpu).num_processes, {}
    if settings.distributed:
        config = AutoConfig.from_pretrained(settings.model)
        distributed = distributed_config(config, num_devices, **settings.distributed)
        num_devices, split = distributed.dp_size, {"distributed_config": distributed}
    model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype="float32", **split)
    processor = AutoProcessor.from_pretrained(settings.model)
    stage = build_recipe(settings, model)
    stage.configure(model)
    freeze(model, settings.frozen)
    mixture = build_mixture(settings, stage, processor)
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
    mixture = trainer.train_dataset
    assert isinstance(mixture, Mixture)
    for source, counts in mixture.drops().report().items():
        if counts["dropped"]:
            print(f"{source}: of {counts['seen']} records, left out: {counts['dropped']}")
    return trainer
