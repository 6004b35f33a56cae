"""Runs from files: the sources of their data, and their entries checked by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.image_utils import SizeDict
from transformers.utils import logging

from mm1_hf.data.examples import ExampleEncoder
from mm1_hf.data.mixture import Mixture, Source, Unit
from mm1_hf.data.readers import read
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.training.parallel import distributed_config
from mm1_hf.training.recipes import DataSettings, Recipe
from mm1_hf.training.resolution import set_tile_size
from mm1_hf.training.streams import last_complete_checkpoint
from mm1_hf.training.trainer import MM1Trainer


logger = logging.get_logger(__name__)

Settings = TypeVar("Settings", bound="RunSettings")


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
class RunSettings:
    """
    What every run's file may say. What is unset is as the recipe has it.

    Args:
        model: a saved model's folder or Hub id, with its processor, as [`mm1_hf.assemble`] makes them.
        output_dir: where checkpoints and the trained model go. A run that was stopped goes on from its last checkpoint.
        sources: by name.
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


def load(kind: type[Settings], path: str | Path) -> Settings:
    """
    Reads a YAML or JSON file.

    Args:
        kind: of [`RunSettings`].
        path: of entries as it has fields.

    Raises:
        ValueError: it is neither, or has unknown, missing or wrong entries.
        OSError: it cannot be read.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    settings: Any = _from_mapping(kind, values, str(path))
    if not isinstance(settings.sources, Mapping) or not settings.sources:
        raise ValueError(f"{path}: sources maps names to data sets; got {settings.sources!r:.100}.")
    sources = {
        name: _from_mapping(SourceSettings, value, f"{path}, source {name}")
        for name, value in settings.sources.items()
    }
    return replace(settings, sources=sources, frozen=tuple(settings.frozen))


def _from_mapping(kind: Any, values: Any, where: str) -> Any:
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


def change_recipe(paper: Recipe, settings: RunSettings) -> Recipe:
    """
    A recipe with what the settings change.

    Args:
        paper: the recipe of the model's size.
        settings: the run's.

    Raises:
        ValueError: a source without a weight whose name the recipe does not know.
    """
    names = ("sequence_length", "max_images", "unit", "image_splitting", "resolution")
    data = {name: value for name in names if (value := getattr(settings, name)) is not None}
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


def load_model(path: str, arguments: Mapping[str, Any], distributed: Mapping[str, Any]) -> tuple[int, Any]:
    """
    The model of a run in float32, split over the processes that were started where the settings say so.

    Args:
        path: its folder or Hub id.
        arguments: the run's fields of `TrainingArguments`.
        distributed: see [`mm1_hf.training.parallel.distributed_config`].

    Returns:
        How many ranks have data of their own, and the model.

    Raises:
        ValueError: the split does not fit the model or the processes.
    """
    # As TrainingArguments count them, which come later.
    num_devices, split = PartialState(cpu=bool(arguments.get("use_cpu"))).num_processes, {}
    if distributed:
        config = distributed_config(AutoConfig.from_pretrained(path), num_devices, **distributed)
        num_devices, split = config.dp_size, {"distributed_config": config}
    return num_devices, AutoModelForImageTextToText.from_pretrained(path, dtype="float32", **split)


def split_images(processor: MM1Processor, data: DataSettings) -> None:
    """
    Sets a processor's tiles as a recipe has them: static splitting cuts `resolution` into a grid of tiles, the others make
    tiles of `resolution`.

    Args:
        processor: the model's.
        data: the recipe's.

    Raises:
        ValueError: the resolution is not a whole number of tiles.
    """
    images = processor.image_processor
    grid = images.static_grid if data.image_splitting == "static" else 1
    if data.resolution % grid:
        raise ValueError(
            f"A resolution of {data.resolution} pixels does not divide into {grid} x {grid} tiles: give a multiple of "
            f"{grid}."
        )
    side = data.resolution // grid
    images.size = SizeDict(height=side, width=side)
    images.image_splitting = data.image_splitting


def fit_tiles(model: MM1ForConditionalGeneration, processor: MM1Processor) -> None:
    """
    Makes a model one for its processor's tiles, its position embeddings interpolated, if it is for others.

    Args:
        model: with whole weights, before parts are frozen or adapters are added.
        processor: set by [`split_images`].

    Raises:
        ValueError: see [`mm1_hf.training.resolution.set_tile_size`].
    """
    side = processor.image_processor.size["height"]
    if side != model.config.vision_config.image_size:
        set_tile_size(model, processor, side)


def build_mixture(settings: RunSettings, stage: Recipe, encoder: ExampleEncoder) -> Mixture:
    """
    The stream of a run's sources.

    Args:
        settings: the run's.
        stage: its recipe.
        encoder: makes examples of their documents.

    Raises:
        ValueError: sources that cannot be read, or weights that are not positive.
    """
    sources = [
        Source(
            name,
            read(source.path, source.layout, split=source.split, streaming=source.streaming),
            source.layout,
            stage.data.mixture[name],
        )
        for name, source in settings.sources.items()
    ]
    return Mixture(
        sources,
        encoder,
        unit=stage.data.unit,
        seed=settings.seed,
        lanes=settings.lanes,
        window=settings.window,
        max_dropped_share=settings.max_dropped_share,
    )


def train_and_save(trainer: MM1Trainer, output_dir: str) -> None:
    """
    Trains from the last complete checkpoint, if there is one, saves what was trained, and tells how many records of each
    source were left out, and why.

    Args:
        trainer: over a [`Mixture`].
        output_dir: the run's.
    """
    checkpoint = last_complete_checkpoint(output_dir)
    if checkpoint is not None:
        logger.warning(f"Going on from {checkpoint}.")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(output_dir)
    for source, counts in cast(Mixture, trainer.train_dataset).drops().report().items():
        if counts["dropped"]:
            print(f"{source}: of {counts['seen']} records, left out: {counts['dropped']}")
