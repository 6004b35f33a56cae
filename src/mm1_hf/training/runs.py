"""Runs of `mm1 pretrain` and `mm1 sft`: from settings to a trainer, trained, resumed and saved."""

import importlib.util
import os
from dataclasses import dataclass, replace
from typing import Any, cast

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.image_utils import SizeDict
from transformers.utils import logging

from mm1_hf.data.documents import merged_drops
from mm1_hf.data.drop_table import drop_table
from mm1_hf.data.examples import ChatEncoder, ExampleEncoder
from mm1_hf.data.locations import first_that_answers, is_local, local_copy
from mm1_hf.data.mixture import Mixture, Source
from mm1_hf.data.readers import read
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.training.checkpoints import last_complete_checkpoint
from mm1_hf.training.lora import lora_config
from mm1_hf.training.machine import Machine, this_machine
from mm1_hf.training.output_folder import hold, on_main_process
from mm1_hf.training.parallel import distributed_config
from mm1_hf.training.parts import freeze
from mm1_hf.training.recipes import DataSettings, Recipe
from mm1_hf.training.resolution import set_tile_size
from mm1_hf.training.resuming import unwritten
from mm1_hf.training.settings import RunSettings, SFTSettings, SourceSettings, build_recipe
from mm1_hf.training.trainer import MM1Trainer


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Run:
    """
    A run that is ready to be trained.

    Args:
        recipe: the recipe that the settings resolved to, with the precision that this machine uses.
        trainer: the trainer, with its model and its mixture.
    """

    recipe: Recipe
    trainer: MM1Trainer


def build_run(settings: RunSettings) -> Run:
    """
    Loads the model of a run, opens its mixture and builds its trainer.

    Args:
        settings: a [`PretrainingSettings`] or [`SFTSettings`].

    Raises:
        ValueError: settings that do not fit each other, the model or the data; TRL is needed and not installed.
    """
    if isinstance(settings, SFTSettings) and importlib.util.find_spec("trl") is None:
        raise ValueError("Fine-tuning uses TRL, which is not installed: pip install 'mm1_hf[sft]'")
    machine = this_machine(settings.arguments)
    config = AutoConfig.from_pretrained(settings.model)
    num_devices, split = _devices(settings, machine, config)
    # Before the weights are loaded: wrong settings are found at once.
    stage = build_recipe(settings, config)
    stage = replace(stage, arguments=stage.arguments | machine.arguments)
    arguments = stage.training_arguments(
        settings.output_dir, num_devices=num_devices, rows_per_device=settings.rows_per_device, **machine.arguments
    )
    processor = AutoProcessor.from_pretrained(settings.model)
    split_images(processor, stage.data)
    model: Any = AutoModelForImageTextToText.from_pretrained(settings.model, dtype="float32", **split)
    fit_tiles(model, processor)
    stage.configure(model)
    freeze(model, settings.frozen)
    options: dict[str, Any] = {
        "model": model,
        "args": arguments,
        "train_dataset": build_mixture(settings, stage, processor),
        "processing_class": processor,
        "learning_rates": settings.learning_rates,
        "peak_tflops": settings.peak_tflops,
    }
    if not isinstance(settings, SFTSettings):
        return Run(stage, MM1Trainer(**options))
    # Only fine-tuning needs TRL.
    from mm1_hf.training.sft import MM1SFTTrainer

    adapter = None if settings.lora is None else lora_config(model, settings.lora)
    return Run(stage, MM1SFTTrainer(**options, peft_config=adapter))


def train(settings: RunSettings) -> MM1Trainer:
    """
    Trains a run, or resumes it from its last complete checkpoint, and saves the model or its adapter, with the
    processor, to `output_dir`. Prints the recipe before, and a table of what was left out of each source after.

    Args:
        settings: a [`PretrainingSettings`] or [`SFTSettings`].

    Returns:
        The trainer, with the trained model.

    Raises:
        ValueError: settings that do not fit each other, the model, the data or the checkpoint, too many unusable
            records, a loss that is not finite, or an output folder that another run uses.
        OSError: the disk is full.
    """
    machine = this_machine(settings.arguments)
    # Decides the device of this process, before the first message between processes.
    PartialState(cpu=machine.arguments["use_cpu"])
    with hold(settings.output_dir):
        checkpoint = on_main_process(lambda: last_complete_checkpoint(settings.output_dir))
        run = build_run(settings)
        print(f"{run.recipe}\n")
        if checkpoint is not None:
            logger.warning(f"Resuming from {checkpoint}.")
        run.trainer.train(resume_from_checkpoint=checkpoint)
        try:
            run.trainer.save_model(settings.output_dir)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise OSError(unwritten("The trained model", run.trainer.args, error)) from error
    mixture = cast(Mixture, run.trainer.train_dataset)
    # Ranks of a tensor-parallel group read the same records, and share a number.
    by_rank = dict(gather_object([(mixture.rank, mixture.drops().state_dict())]))
    if run.trainer.is_world_process_zero():
        table = drop_table(merged_drops(by_rank.values()).report())
        print(table)
        logger.info(table)
    return run.trainer


def _devices(settings: RunSettings, machine: Machine, config: Any) -> tuple[int, dict[str, Any]]:
    """The number of ranks that read rows of their own, and how `from_pretrained` splits the weights over processes."""
    # Counted as TrainingArguments will count them: it does not exist yet.
    num_devices = PartialState(cpu=machine.arguments["use_cpu"]).num_processes
    if not settings.distributed:
        return num_devices, {}
    distributed = distributed_config(config, num_devices, **settings.distributed)
    return distributed.dp_size, {"distributed_config": distributed}


def split_images(processor: MM1Processor, data: DataSettings) -> None:
    """
    Sets how a processor cuts images into tiles to what a recipe says. Static splitting cuts `resolution` into a grid
    of tiles; otherwise `resolution` is the side of a tile.

    Args:
        processor: the model's processor, which is changed.
        data: data settings of the recipe.

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
    Interpolates a model's position embeddings for the processor's tile size, if they are for another size.

    Args:
        model: with whole weights, before parts are frozen or adapters are added.
        processor: as [`split_images`] left it.

    Raises:
        ValueError: see [`mm1_hf.training.resolution.set_tile_size`].
    """
    side = processor.image_processor.size["height"]
    if side != model.config.vision_config.image_size:
        set_tile_size(model, processor, side)


def build_mixture(settings: RunSettings, stage: Recipe, processor: MM1Processor) -> Mixture:
    """
    The stream of packed rows of a run.

    Args:
        settings: settings of the run.
        stage: recipe of the run.
        processor: the model's processor, as [`split_images`] left it.

    Raises:
        ValueError: sources that cannot be read, or weights that are not positive.
    """
    encoder = ChatEncoder if isinstance(settings, SFTSettings) else ExampleEncoder
    sources = []
    for name, source in settings.sources.items():
        path = first_that_answers(source.path)
        sources.append(
            Source(
                name,
                read_source(source, path),
                source.layout,
                stage.data.mixture[name],
                _origin(source, path),
                source.synthetic_share,
                source.separate_exchanges,
            )
        )
    return Mixture(
        sources,
        encoder(processor, stage.data.sequence_length, stage.data.max_images),
        unit=stage.data.unit,
        seed=settings.seed,
        lanes=settings.lanes,
        window=settings.window,
        max_dropped_share=settings.max_dropped_share,
    )


def read_source(source: SourceSettings, path: str) -> Dataset | IterableDataset:
    """
    The records of a source.

    Args:
        source: settings of the source.
        path: the one of its paths that is read, see [`mm1_hf.data.locations.first_that_answers`].

    Raises:
        ValueError: see [`mm1_hf.data.readers.read`].
    """
    return read(
        local_copy(path, source.config),
        source.layout,
        split=source.split,
        streaming=source.streaming,
        image_folder=source.image_folder,
        **{} if is_local(path) else _hub_options(source),
    )


def _hub_options(source: SourceSettings) -> dict[str, Any]:
    """What `datasets` is told of a data set on the Hub, in a form that JSON can hold."""
    files = [source.data_files] if isinstance(source.data_files, str) else source.data_files
    options = {"name": source.config, "data_files": files and list(files)}
    return {name: value for name, value in options.items() if value is not None}


def _origin(source: SourceSettings, path: str) -> dict[str, Any]:
    """
    Where a source's records come from. A stream does not know its records, so the length of its local file stands for
    them.
    """
    local = {
        name: os.path.abspath(os.path.expanduser(value)) if os.path.exists(os.path.expanduser(value)) else value
        for name, value in (("path", path), ("image_folder", source.image_folder))
        if value is not None
    }
    size = os.path.getsize(local["path"]) if source.streaming and os.path.isfile(local["path"]) else None
    hub = _hub_options(source)
    return {"image_folder": None, **local, "split": source.split, "streaming": source.streaming, "bytes": size, **hub}
