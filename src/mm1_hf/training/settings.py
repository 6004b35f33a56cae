"""The settings file of `mm1 pretrain` and `mm1 sft`: its entries, checked as they are read, and the recipe they lead to."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from transformers import TrainingArguments

from mm1_hf.data.layouts import layout_named
from mm1_hf.data.mixture import Unit
from mm1_hf.data.readers import find_image_folder
from mm1_hf.training.entries import convert, from_entries, read_entries, refuse_unknown, type_hints
from mm1_hf.training.lora import LoraPreset
from mm1_hf.training.parts import known_parts
from mm1_hf.training.recipes import SYNTHETIC_SHARE, Recipe, Stage, recipe


Settings = TypeVar("Settings", bound="RunSettings")

# The layout whose records hold an alt text and a synthetic caption.
TWO_CAPTIONS = "two_captions"

# Fields of TrainingArguments that would have no effect or spoil the run, and what to do instead.
_REFUSED_ARGUMENTS = {
    "output_dir": "it is an entry of its own, beside arguments",
    "per_device_train_batch_size": "it follows from rows_per_device, an entry beside arguments",
    "gradient_accumulation_steps": "it follows from batch_size and rows_per_device, entries beside arguments",
    "num_train_epochs": "a mixture has no end: set max_steps",
    "resume_from_checkpoint": "a run resumes from the last complete checkpoint in output_dir",
    "hub_token": "settings are printed and published: log in with `hf auth login`",
}
# The data stream needs these values.
_FIXED_ARGUMENTS = {"ignore_data_skip": True, "remove_unused_columns": False}


@dataclass(frozen=True)
class SourceSettings:
    """
    One data set of a run's mixture.

    Args:
        path: folder, file or Hub id of the data set, or a list of them: the first that answers is read, see
            [`mm1_hf.data.locations.first_that_answers`].
        layout: form of its records, a name in [`mm1_hf.data.layouts.LAYOUTS`].
        weight: share of the mixture, relative to the other sources; unset, the weight of the recipe's source of the
            same name.
        split: split of the data set.
        streaming: whether records are read one by one, instead of loading the data set first.
        image_folder: folder where the relative paths of the images start, as in LLaVA's data, whose JSON lies apart
            from the images. Unset, they start at the folder of the data files.
        synthetic_share: for the layout `"two_captions"`, the probability with which a record's synthetic caption is drawn
            in place of its alt text, anew in every epoch; unset, the paper's 0.07.
        separate_exchanges: whether the exchanges of a conversation are separate examples, which do not see each other and
            share the conversation's images in a row. For data that lists independent questions about an image as one
            conversation, such as The Cauldron.
        config: configuration of a data set on the Hub. Of a local copy, the folder of this name is read, if there is
            one.
        data_files: the files of a data set on the Hub that are read, by names or patterns, where it has no
            configurations.

    Raises:
        ValueError: there is no such layout or `image_folder`, `path` is empty, the weight is not positive, or
            `synthetic_share` is not between 0 and 1 or is given for another layout.
    """

    path: tuple[str, ...] | str
    layout: str
    weight: float | None = None
    split: str = "train"
    streaming: bool = False
    image_folder: str | None = None
    synthetic_share: float | None = None
    separate_exchanges: bool = False
    config: str | None = None
    data_files: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        # Checked here so that a run fails before it loads its model.
        layout_named(self.layout)
        _require_positive(self, "weight")
        if not self.path:
            raise ValueError("path is empty; give a folder, a file, an id on the Hub, or a list of them.")
        if self.layout == TWO_CAPTIONS:
            share = SYNTHETIC_SHARE if self.synthetic_share is None else self.synthetic_share
            if not 0 <= share <= 1:
                raise ValueError(f"synthetic_share is {share}, but a share lies between 0 and 1.")
            object.__setattr__(self, "synthetic_share", share)
        elif self.synthetic_share is not None:
            raise ValueError(
                f"synthetic_share is {self.synthetic_share}, but records of the layout {self.layout!r} have one caption. "
                f"Leave it out, or choose the layout {TWO_CAPTIONS!r}."
            )
        if self.image_folder is not None:
            find_image_folder(self.image_folder)


@dataclass(frozen=True)
class RunSettings:
    """
    The entries that pre-training and fine-tuning share. What is unset is taken from the recipe.

    Args:
        model: folder or Hub id of a saved model with its processor, as [`mm1_hf.assemble`] makes them.
        output_dir: where checkpoints and the trained model are saved. A stopped run resumes from its last checkpoint
            there.
        sources: the data sets, by name.
        sequence_length: positions of a packed row.
        max_images: largest number of images in a row.
        unit: what the sources' weights count: `"rows"`, `"documents"` or `"tokens"`.
        image_splitting: `"none"`, `"static"` or `"dynamic"`.
        resolution: side in pixels of the square that static splitting cuts into tiles; otherwise the side of a tile.
        batch_size: rows of one optimizer step, over all devices.
        rows_per_device: rows of one forward pass on one device.
        frozen: parts that are not trained: `"encoder"`, `"connector"`, `"decoder"`.
        learning_rates: learning rates by part, for the parts that differ from the recipe's rate.
        arguments: fields of `TrainingArguments` that replace the recipe's.
        distributed:
            how the weights are split over processes, such as `{"fsdp_size": 8}`: see
            [`mm1_hf.training.parallel.distributed_config`]. Unset, every process holds all weights.
        peak_tflops: peak of one device in TFLOP/s; where it is given, the share of it that training reaches is logged.
        lanes, window, max_dropped_share: see [`mm1_hf.data.mixture.Mixture`].
        seed: seed of the order in which records are read.

    Raises:
        ValueError: there is no source, a number is out of its range, there is no such part, or `arguments` are not
            those of `TrainingArguments` or have no effect in a run.
    """

    model: str
    output_dir: str
    sources: dict[str, SourceSettings]
    sequence_length: int | None = None
    max_images: int | None = None
    unit: Unit | None = None
    image_splitting: Literal["none", "static", "dynamic"] | None = None
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

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources names no data set; give at least one.")
        _require_positive(self, "sequence_length", "max_images", "resolution", "batch_size", "rows_per_device")
        _require_positive(self, "lanes", "window", "peak_tflops")
        if not 0 <= self.max_dropped_share <= 1:
            raise ValueError(f"max_dropped_share is {self.max_dropped_share}, but a share lies between 0 and 1.")
        known_parts(self.frozen)
        known_parts(self.learning_rates)
        if negative := {name: rate for name, rate in self.learning_rates.items() if rate < 0}:
            raise ValueError(f"learning_rates has negative rates: {negative}.")
        object.__setattr__(self, "arguments", _training_arguments(self.arguments))


@dataclass(frozen=True)
class PretrainingSettings(RunSettings):
    """
    What `mm1 pretrain` reads: the entries of [`RunSettings`], and `stage`.

    Args:
        stage: `"pretrain"`, or `"continual"` for the stage on text-rich images (MM1.5).

    Raises:
        ValueError: another stage.
    """

    stage: Stage = "pretrain"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage == "sft":
            raise ValueError(f"stage is {self.stage!r}; the stages of pre-training are 'pretrain' and 'continual'.")


@dataclass(frozen=True)
class SFTSettings(RunSettings):
    """
    What `mm1 sft` reads: the entries of [`RunSettings`], and two of its own. The layouts that hold conversations are
    `"chat"` and `"llava_chat"`.

    Args:
        recipe:
            name of the preset whose mixture and image settings are used, such as `"mm1.5-3b"`. A model does not tell
            whether it is an MM1 or an MM1.5. Unset, the recipe follows from the model's size.
        lora: a preset of [`mm1_hf.training.lora.lora_config`]; then only its adapter is trained and saved.

    Raises:
        ValueError: both `lora` and `frozen` say what is trained.
    """

    recipe: str | None = None
    lora: LoraPreset | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora is not None and self.frozen:
            raise ValueError(f"lora={self.lora!r} already says which parts are trained: leave out frozen.")


def load_settings(kind: type[Settings], path: str | Path) -> Settings:
    """
    Reads the settings of a run from a YAML or JSON file.

    Args:
        kind: [`PretrainingSettings`] or [`SFTSettings`].
        path: the file.

    Raises:
        ValueError: the file is neither YAML nor JSON, or has unknown, missing or wrong entries.
        OSError: the file cannot be read.
    """
    return from_entries(kind, read_entries(path), str(path))


def _require_positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}, but must be positive.")


def _training_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of TrainingArguments, each checked by its type."""
    hints = type_hints(TrainingArguments)
    refuse_unknown(arguments, [each.name for each in fields(TrainingArguments) if each.init], "arguments has ")
    converted = {name: convert(value, hints[name], f"arguments.{name}") for name, value in arguments.items()}
    for name, value in converted.items():
        if name in _REFUSED_ARGUMENTS:
            raise ValueError(f"arguments.{name} cannot be set: {_REFUSED_ARGUMENTS[name]}.")
        if value != _FIXED_ARGUMENTS.get(name, value):
            raise ValueError(f"arguments.{name} is {value}, but a run needs {_FIXED_ARGUMENTS[name]}. Leave it out.")
    if converted.get("max_steps", 1) < 1:
        raise ValueError(
            f"arguments.max_steps is {converted['max_steps']}, but must be positive: a mixture has no end."
        )
    return converted


def build_recipe(settings: RunSettings, model: Any) -> Recipe:
    """
    The papers' recipe with what the settings change.

    Args:
        settings: settings of the run.
        model: a model or configuration; the learning rate of pre-training follows from its decoder's size.

    Raises:
        ValueError: a source has no weight and the recipe knows none of its name, or there is no such preset.
    """
    if isinstance(settings, SFTSettings):
        paper = recipe(settings.recipe or model, "sft")
    else:
        assert isinstance(settings, PretrainingSettings)
        paper = recipe(model, settings.stage)
    names = ("sequence_length", "max_images", "unit", "image_splitting", "resolution")
    data = {name: value for name in names if (value := getattr(settings, name)) is not None}
    weights = {
        name: paper.data.mixture.get(name) if source.weight is None else source.weight
        for name, source in settings.sources.items()
    }
    if unknown := [name for name, weight in weights.items() if weight is None]:
        raise ValueError(
            f"The sources {', '.join(unknown)} have no weight, and the recipe only knows {', '.join(paper.data.mixture)}. "
            "Give each source a weight, or a name that the recipe knows."
        )
    return replace(
        paper,
        batch_size=settings.batch_size or paper.batch_size,
        arguments=paper.arguments | settings.arguments,
        data=replace(paper.data, mixture=weights, **data),
    )
