"""
Open recipes: settings of runs over public data sets, by the papers' categories and weights. The files are those of the
folder `recipes` of the repository, which travels in the package.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from mm1_hf.model.configuration_mm1 import MM1Config, MM1ConnectorConfig
from mm1_hf.training.entries import from_entries, read_entries
from mm1_hf.training.recipes import (
    MM1_5_MIXTURE,
    MM1_5_SFT_MIXTURE,
    MM1_MIXTURE,
    MM1_SFT_MIXTURE,
    OCR_MIXTURE,
    Recipe,
    Stage,
)
from mm1_hf.training.settings import PretrainingSettings, RunSettings, SFTSettings, SourceSettings, build_recipe


Family = Literal["mm1", "mm1.5"]

_MODELS = "models"
_MIXTURES: dict[tuple[str, str], dict[str, float]] = {
    ("mm1", "pretrain"): MM1_MIXTURE,
    ("mm1", "sft"): dict(MM1_SFT_MIXTURE),
    ("mm1.5", "pretrain"): MM1_5_MIXTURE,
    ("mm1.5", "continual"): OCR_MIXTURE,
    ("mm1.5", "sft"): MM1_5_SFT_MIXTURE,
}
# The stage whose model a stage starts from.
_BEFORE = {("mm1", "sft"): "pretrain", ("mm1.5", "continual"): "pretrain", ("mm1.5", "sft"): "continual"}


@dataclass(frozen=True)
class RecipeSource:
    """
    A public data set of a recipe.

    Args:
        category: the paper's category that it stands for, whose weight it shares with the other sources of the category.
        ids: its ids on the Hub: the first that answers is read.
        layout: form of its records, a name in [`mm1_hf.data.layouts.LAYOUTS`].
        licence: licence of the data set.
        size: how large it is, in words.
        records: number of its records, estimated.
        tokens: text tokens of a record, estimated.
        images: images of a record, estimated.
        share: its share of the category, relative to the other sources of the category.
        config: its configuration on the Hub.
        data_files: the files that are read of it, where it has no configurations.
        split: its split.
        streaming: whether its records are read one by one, in place of loading the data set first.
        note: what else one should know of it.
    """

    category: str
    ids: tuple[str, ...]
    layout: str
    licence: str
    size: str
    records: int
    tokens: float
    images: float = 1
    share: float = 1
    config: str | None = None
    data_files: str | None = None
    split: str = "train"
    streaming: bool = False
    note: str | None = None


@dataclass(frozen=True)
class Uncertain:
    """
    A value that is reported in several ways, or not at all.

    Args:
        what: what it is.
        used: the value that the recipe uses, and how sure it is.
        others: what else is reported, if anything.
    """

    what: str
    used: str
    others: str | None = None


@dataclass(frozen=True)
class Part:
    """
    An encoder or a decoder on the Hub.

    Args:
        id: its id.
        licence: its licence.
        config: its model type and sizes, as in its own configuration.
    """

    id: str
    licence: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """
    What a model is assembled from.

    Args:
        vision: the image encoder.
        text: the decoder.
        others: alternatives, in words.
    """

    vision: Part
    text: Part
    others: tuple[str, ...] = ()

    def model_config(self) -> MM1Config:
        """The configuration of the assembled model, with MM1's connector, without reading anything from the Hub."""
        return MM1Config(
            vision_config=AutoConfig.for_model(**self.vision.config),
            text_config=AutoConfig.for_model(**self.text.config),
            connector_config=MM1ConnectorConfig(),
        )


@dataclass(frozen=True)
class StageFile:
    """
    What a file of a stage holds, for models of any size.

    Args:
        summary: the stage in a line.
        stage: name of the stage.
        family: whose recipe it is.
        settings: entries of the settings file besides the model, the output folder and the sources.
        sources: the data sets, by name.
        uncertain: values that are reported in several ways, or not at all.
    """

    summary: str
    stage: Stage
    family: Family
    settings: dict[str, Any]
    sources: dict[str, RecipeSource]
    uncertain: tuple[Uncertain, ...] = ()


@dataclass(frozen=True)
class OpenRecipe:
    """
    One stage of a model's training on public data.

    Args:
        name: its name, such as `"mm1.5-3b-sft"`.
        size: size of the model, such as `"3b"`.
        parts: what the model is assembled from.
        file: what is the same for models of all sizes.
    """

    name: str
    size: str
    parts: Parts
    file: StageFile

    @property
    def command(self) -> str:
        """The verb of `mm1` that runs the recipe."""
        return "sft" if self.file.stage == "sft" else "pretrain"

    @property
    def model(self) -> str:
        """The folder of the model that the stage starts from: the assembled one, or what the stage before saves."""
        before = _BEFORE.get((self.file.family, self.file.stage))
        return f"models/{self.file.family}-{self.size}" if before is None else self._output(before)

    def _output(self, stage: str) -> str:
        return f"runs/{self.file.family}-{self.size}-{stage}"

    def weights(self) -> dict[str, float]:
        """The weight of each source: its share of the weight of its category. They add up to 1."""
        mixture = _MIXTURES[self.file.family, self.file.stage]
        total = sum(mixture.values())
        shares: dict[str, float] = dict.fromkeys(mixture, 0)
        for source in self.file.sources.values():
            shares[source.category] += source.share
        return {
            name: mixture[source.category] / total * source.share / shares[source.category]
            for name, source in self.file.sources.items()
        }

    def entries(self, data: str | Path | None = None) -> dict[str, Any]:
        """
        The entries of a settings file of [`command`].

        Args:
            data: a folder with local copies of the sources, each in a folder of the source's name; unset, the sources are
                read from the Hub.
        """
        weights = self.weights()
        entries: dict[str, Any] = {"model": self.model, "output_dir": self._output(self.file.stage)}
        if self.command == "pretrain":
            entries["stage"] = self.file.stage
        elif self.file.family == "mm1.5":
            entries["recipe"] = f"mm1.5-{self.size}"
        entries |= self.file.settings
        entries["sources"] = {
            name: _source_entries(source, weights[name], None if data is None else str(Path(data) / name))
            for name, source in self.file.sources.items()
        }
        return entries

    def settings(self, data: str | Path | None = None) -> RunSettings:
        """
        The settings of the run.

        Args:
            data: see [`entries`].

        Raises:
            ValueError: there is no such layout, or a package that it needs is not installed.
        """
        kind = SFTSettings if self.command == "sft" else PretrainingSettings
        return from_entries(kind, self.entries(data), self.name)

    def recipe(self) -> tuple[Recipe, MM1Config]:
        """The recipe that the settings resolve to for the assembled model, and the configuration of that model."""
        config = self.parts.model_config()
        return build_recipe(self.settings(), config), config


def recipe_names() -> list[str]:
    """The names of the open recipes."""
    sizes, stages = _models(), [name for name in _files() if name != _MODELS]
    return [_named(stage, size) for stage in stages for size in sizes]


def open_recipe(name: str) -> OpenRecipe:
    """
    The open recipe of a name.

    Args:
        name: one of [`recipe_names`], such as `"mm1.5-3b-sft"`.

    Raises:
        ValueError: there is no such recipe.

    Example:

    ```python
    >>> from mm1_hf.training.open_recipes import open_recipe

    >>> recipe = open_recipe("mm1.5-3b-continual")
    >>> recipe.command, recipe.model, recipe.weights()["idl"]
    ('pretrain', 'runs/mm1.5-3b-pretrain', 0.25)

    ```
    """
    sizes = _models()
    for stage, path in _files().items():
        for size, parts in sizes.items():
            if stage != _MODELS and name == _named(stage, size):
                return OpenRecipe(name, size, parts, _stage_file(path))
    raise ValueError(f"There is no recipe {name!r}. The recipes are: {', '.join(recipe_names())}.")


def _named(stage: str, size: str) -> str:
    family, _, own = stage.rpartition("-")
    return f"{family}-{size}-{own}"


def _files() -> dict[str, Path]:
    """The files of the recipes by their names: in the installed package, or in the repository."""
    packaged = Path(str(files("mm1_hf.training") / "open_recipes"))
    folder = packaged if packaged.is_dir() else Path(__file__).parents[3] / "recipes"
    return {path.name.removesuffix(".yaml"): path for path in sorted(folder.glob("*.yaml"))}


def _models() -> dict[str, Parts]:
    path = _files()[_MODELS]
    return {size: from_entries(Parts, entries, f"{path}: {size}") for size, entries in read_entries(path).items()}


def _stage_file(path: Path) -> StageFile:
    found = from_entries(StageFile, read_entries(path), str(path))
    known = _MIXTURES[found.family, found.stage]
    wrong = {name: source.category for name, source in found.sources.items() if source.category not in known}
    if wrong or (missing := known.keys() - {source.category for source in found.sources.values()}):
        raise ValueError(
            f"{path}: the categories are {', '.join(known)}, but "
            + (
                f"the sources have others: {wrong}."
                if wrong
                else f"no source stands for {', '.join(sorted(missing))}."
            )
        )
    return found


def _source_entries(source: RecipeSource, weight: float, local: str | None) -> dict[str, Any]:
    place: str | list[str] = local or (source.ids[0] if len(source.ids) == 1 else list(source.ids))
    entries: Mapping[str, Any] = {
        "path": place,
        "config": None if local else source.config,
        "data_files": None if local else source.data_files,
        "split": source.split if source.split != SourceSettings.split else None,
        "layout": source.layout,
        "weight": float(f"{weight:.6g}"),
        "streaming": source.streaming or None,
    }
    return {name: value for name, value in entries.items() if value is not None}
