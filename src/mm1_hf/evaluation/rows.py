"""Opens the data of a task, from the Hub or from a local copy of the same layout. Images stay undecoded."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, DatasetDict, DatasetInfo, load_dataset_builder, load_from_disk
from huggingface_hub import metadata_load
from huggingface_hub.constants import HF_HUB_CACHE
from yaml import YAMLError

from mm1_hf.data.documents import Unusable
from mm1_hf.data.media import local_file
from mm1_hf.data.raw_records import FOLDER, LINE, READER_KEYS, unwrapped
from mm1_hf.data.readers import undecoded
from mm1_hf.data.tables import row_of
from mm1_hf.data.text_files import LINE_FEATURES, read_text_files
from mm1_hf.evaluation.sources import SOURCES
from mm1_hf.evaluation.tasks import Task


Record = dict[str, Any]

_FORMATS = ("parquet", "arrow", "jsonl", "json")
_TEXTS = ("jsonl", "json")


@dataclass(frozen=True)
class _Table:
    """
    Records with the folder where their paths start.

    Args:
        records: the records.
        folder: the folder; empty if their records may name no file.
    """

    records: Dataset | list[Record]
    folder: str

    @cached_property
    def names(self) -> list[str]:
        if isinstance(self.records, Dataset) and LINE not in self.records.column_names:
            return list(self.records.column_names)
        names: dict[str, None] = {}
        for index in range(min(10, len(self.records))):
            try:
                names.update(dict.fromkeys(self.read(index, "")))
            except Unusable:
                continue
        return [name for name in names if name not in READER_KEYS]

    def read(self, index: int, name: str) -> Record:
        if not isinstance(self.records, Dataset):
            return self.records[index]
        row = row_of(self.records, index, name)
        return dict(unwrapped({**row, FOLDER: self.folder}, name))

    def column(self, name: str) -> list[Any]:
        if isinstance(self.records, Dataset) and LINE not in self.records.column_names:
            if name not in self.records.column_names:
                return [None] * len(self.records)
            return list(self.records.select_columns([name])[name])
        values = []
        for index in range(len(self.records)):
            try:
                values.append(self.read(index, "").get(name))
            except Unusable:
                values.append(None)
        return values


class Rows:
    """
    The records of a split, which are read when they are asked for.

    Args:
        tables: the tables, one for each configuration.
        source: where the data come from: an id of the Hub or a path.
        revision: the commit of the Hub's data set, if it is known.
    """

    def __init__(self, tables: Sequence[_Table], source: str, revision: str | None = None) -> None:
        self.tables = tables
        self.source = source
        self.revision = revision

    def __len__(self) -> int:
        return sum(len(table.records) for table in self.tables)

    @property
    def names(self) -> list[str]:
        """The names of all columns. Of files of JSON those of their first records."""
        return list(dict.fromkeys(name for table in self.tables for name in table.names))

    def read(self, index: int) -> Record:
        """
        A record, with the folder of its files under `__folder__`.

        Args:
            index: its place, counted from 0 over all tables.

        Raises:
            Unusable: it cannot be read.
        """
        name = f"{self.source}, record {index}"
        for table in self.tables:
            if index < len(table.records):
                return table.read(index, name)
            index -= len(table.records)
        raise IndexError(index)

    def column(self, name: str) -> list[Any]:
        """
        A column of all records, `None` where it is missing. The images of other columns are not read.

        Args:
            name: the column.
        """
        return [value for table in self.tables for value in table.column(name)]


def open_rows(task: Task, split: str, data: str | os.PathLike[str] | None, configs: Sequence[str]) -> Rows:
    """
    Opens a split of a task's data.

    Args:
        task: the task.
        split: the split.
        data: path of a local copy; `None` for the Hub.
        configs: names of configurations, an empty one for the only one.

    Raises:
        ValueError: the data are not there, or cannot be read.
    """
    if task.source:
        return Rows([_of_source(task, split, data, config) for config in configs], str(data or task.source))
    return _from_hub(task, split, configs) if data is None else _from_copy(task, split, Path(data), configs)


def _of_source(task: Task, split: str, data: str | os.PathLike[str] | None, config: str) -> _Table:
    try:
        folder = None if data is None else next(place for place in _places(task, Path(data)) if place.exists())
        return _Table(SOURCES[task.source](folder, config, split), "")
    except StopIteration:
        raise ValueError(f"The data of the task {task.name} are not there: there is no {data}.") from None
    except ValueError as error:
        raise ValueError(f"The data of the task {task.name} are not there. {error}.") from error
    # ElementTree's ParseError is a SyntaxError.
    except (LookupError, TypeError, AttributeError, SyntaxError) as error:
        raise ValueError(
            f"The data of the task {task.name} in {data} do not have their published form: {type(error).__name__}: {error}. "
            "Download them again."
        ) from error


def _places(task: Task, data: Path) -> list[Path]:
    """Where the data of a task may be in a folder, which may hold those of other tasks beside them."""
    data = data.expanduser().absolute()
    return [data / task.name.partition("@")[0], *(data / name for name in task.data), data]


def _from_hub(task: Task, split: str, configs: Sequence[str]) -> Rows:
    reasons = []
    for name in task.data:
        try:
            opened = [_hub_table(name, config, split) for config in configs]
        # Whatever is wrong with one copy, another one may do.
        except Exception as error:
            reasons.append(f"{name}: {type(error).__name__}: {error!s:.300}")
            continue
        return Rows([table for table, _ in opened], name, opened[0][1])
    raise ValueError(
        f"The data of the task {task.name} (split {split}{_of_configs(configs)}) cannot be loaded from the Hub. "
        f"{_how_to_get(task)} Tried: {'; '.join(reasons)}"
    )


def _hub_table(name: str, config: str, split: str) -> tuple[_Table, str | None]:
    builder = load_dataset_builder(name, config or None)
    files = getattr(builder.config, "data_files", None)
    if files and split not in files:
        raise ValueError(f"there is no split {split!r}; the splits are {', '.join(files)}")
    revision = None
    if files:
        origin = files[split].origin_metadata
        revision = next((each[1] for each in origin if len(each) == 2 and each[0] == name), None)
        # The builder would download all splits, which for VQAv2 are 45 GB.
        builder = load_dataset_builder(
            builder.name, data_files={split: list(files[split])}, features=builder.info.features
        )
    builder.download_and_prepare()
    builder.info.features = undecoded(builder.info.features)
    dataset = cast(Dataset, builder.as_dataset(split))
    folder = os.path.join(HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")
    return _Table(_without_reader_keys(dataset), folder), revision


def _from_copy(task: Task, split: str, data: Path, configs: Sequence[str]) -> Rows:
    *inner, data = _places(task, data)
    if data.is_file():
        return Rows([_of_files([data], data.parent)], str(data))
    for place in [*inner, data]:
        tables = [_of_folder(place, config, split) for config in configs] if place.is_dir() else [None]
        if all(table is not None for table in tables):
            return Rows(cast(list[_Table], tables), str(place))
    raise ValueError(
        f"The data of the task {task.name} (split {split}{_of_configs(configs)}) are not in {data}. {_how_to_get(task)} "
        f"A folder is read if it is a copy of the Hub's, if it was written by save_to_disk, or if it has a file or "
        f"folder for the split, such as {split}.parquet; each configuration may have a folder of its own."
    )


def _of_configs(configs: Sequence[str]) -> str:
    given = [config for config in configs if config]
    return f", configuration {', '.join(given)}" if given else ""


def _how_to_get(task: Task) -> str:
    name = task.data[0]
    return (
        f"Download them with `hf download {name} --repo-type dataset --local-dir FOLDER/{task.name}` and give FOLDER as the "
        f"data (one of {', '.join(task.data)} is enough)."
    )


def _of_folder(folder: Path, config: str, split: str) -> _Table | None:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        saved = load_from_disk(str(folder))
        if isinstance(saved, DatasetDict):
            return _saved(saved[split], folder) if split in saved else None
        return _saved(saved, folder)
    if config and (folder / config).is_dir() and (found := _of_folder(folder / config, "", split)):
        return found
    files = _of_card(folder, config, split) if (folder / "README.md").is_file() else []
    if not files and not config:
        files = _named_by(folder, split)
    return _of_files(files, folder) if files else None


def _saved(dataset: Dataset, folder: Path) -> _Table:
    # `cast` would write lists of images to the cache again.
    opened = Dataset(dataset.data, info=DatasetInfo(features=undecoded(dataset.features)))
    return _Table(_without_reader_keys(opened), str(folder))


def _of_card(folder: Path, config: str, split: str) -> list[Path]:
    """
    The files that the data card of a copy names for a split. `datasets` would also read files elsewhere and open addresses
    that a card names, so only patterns inside of the copy are followed.
    """
    try:
        cards = (metadata_load(folder / "README.md") or {}).get("configs") or []
        named = {each["config_name"]: each for each in cards}
        default = next((each for each in cards if each.get("default") or len(cards) == 1), {})
        entries = (named.get(config or "default") or ({} if config else default)).get("data_files", [])
        paths = [entry["path"] for entry in entries if entry["split"] == split]
        patterns = [pattern for path in paths for pattern in ([path] if isinstance(path, str) else path)]
    # A card of another form says nothing about the splits.
    except (LookupError, TypeError, AttributeError, ValueError, YAMLError):
        return []
    try:
        files = sorted(file for each in patterns for file in glob.glob(os.path.join(folder, each), recursive=True))
        return [Path(local_file(file, str(folder))) for file in files]
    except Unusable as error:
        raise ValueError(f"{folder / 'README.md'} names a file outside of the data's folder: {error}") from error


def _named_by(folder: Path, split: str) -> list[Path]:
    pattern = re.compile(rf"{re.escape(split)}(-\d+-of-\d+(-[0-9a-f]+)?|-\d+)?\.({'|'.join(_FORMATS)})")
    for place in (folder, folder / "data"):
        if place.is_dir():
            if files := sorted(file for file in place.iterdir() if pattern.fullmatch(file.name)):
                return files
            inner = place / split
            if inner.is_dir() and (files := sorted(each for each in inner.iterdir() if _format(each) in _FORMATS)):
                return files
    return []


def _format(file: Path) -> str:
    return file.suffix.removeprefix(".")


def _of_files(files: Sequence[Path], folder: Path) -> _Table:
    formats = sorted({_format(file) for file in files})
    if len(formats) > 1 or formats[0] not in _FORMATS:
        raise ValueError(f"{files[0]} and the files beside it are {', '.join(formats)}. Give {', '.join(_FORMATS)}.")
    form = formats[0]
    try:
        if form in _TEXTS:
            arguments = {"files": [(str(file), file.stat().st_mtime_ns) for file in files], "form": form}
            dataset = Dataset.from_generator(read_text_files, LINE_FEATURES, gen_kwargs=arguments)
            return _Table(dataset, str(folder))
        builder = load_dataset_builder(form, data_files={"train": [str(file) for file in files]})
        builder.download_and_prepare()
        builder.info.features = undecoded(builder.info.features)
        return _Table(_without_reader_keys(cast(Dataset, builder.as_dataset("train"))), str(folder))
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(f"{files[0]} cannot be read: {type(cause).__name__}: {cause}") from error


def _without_reader_keys(dataset: Dataset) -> Dataset:
    """Without columns that only the reader may add: data must not choose the folder of their files, for example."""
    own = [name for name in dataset.column_names if name in READER_KEYS]
    return dataset.remove_columns(own) if own else dataset
