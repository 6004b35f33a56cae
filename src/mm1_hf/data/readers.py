"""Reads data sets from local files or from the Hub, with `datasets`."""

import glob
import os
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from datasets import (
    Dataset,
    DatasetBuilder,
    Features,
    Image,
    IterableDataset,
    LargeList,
    List,
    ReadInstruction,
    Value,
    concatenate_datasets,
    load_dataset_builder,
)
from huggingface_hub.constants import HF_HUB_CACHE

from mm1_hf.data.archives import SAMPLE_FEATURES, read_archives
from mm1_hf.data.documents import Unusable
from mm1_hf.data.layouts import LAYOUTS, Layout, layout_named
from mm1_hf.data.raw_records import CORRUPT_ARCHIVE, CORRUPT_FILE, ERROR, FOLDER, READER_KEYS, WRONG_LAYOUT
from mm1_hf.data.tables import row_of, with_folder
from mm1_hf.data.text_files import LINE_FEATURES, TEXT_FEATURES, read_text_files


# Where a folder holds files of several formats, only the format that comes first in this list is read: images and
# notes often lie beside the data.
FORMATS = ("parquet", "arrow", "jsonl", "ndjson", "tar", "json", "csv", "tsv", "txt")

# Formats that are read as text, and the options of `read` for each of them.
_TEXT_FORMATS: dict[str, tuple[str, ...]] = {
    "jsonl": (),
    "ndjson": (),
    "json": ("field",),
    "csv": ("delimiter",),
    "tsv": ("delimiter",),
    "txt": ("sample_by",),
}
# Records that are written to the cache together. They may be as large as their limits allow.
_RECORDS_AT_ONCE = {"tar": 8, "text": 16}
# Rows of a stream that are checked together.
_ROWS_AT_ONCE = 16
_SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}


def read(
    path_or_id: str | os.PathLike[str],
    layout: str,
    *,
    split: str = "train",
    streaming: bool = False,
    image_folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Dataset | IterableDataset:
    """
    Reads the records of a data set, which the function `LAYOUTS[layout]` can turn into documents. Images are not
    decoded: they stay bytes, paths or URLs, and a column of the `Image` type of `datasets` gives `{"bytes", "path"}`.

    Args:
        path_or_id: a file (parquet, Arrow, JSON lines, JSON, CSV, TSV, WebDataset tar or plain text), a folder of such
            files, a glob pattern (`"shards/*.tar"`), or the id of a data set on the Hub. A local file belongs to a
            split if its path inside the folder contains the name of the split (`train`, `validation`, `test`, or a
            variant such as `val`) as a word. If no file names a split, all files belong to `train`; otherwise files
            that name none are not read. A plain-text file is one document, unless `sample_by="line"` or
            `sample_by="paragraph"` is given.
        layout: name of the layout of the records, a key of [`LAYOUTS`]. It is tried on the first ten records.
        split: the split to read. Without streaming, a slice of a split is possible too, for example `"train[:1%]"`.
        streaming: whether to yield the records in the order of the files, while these are being read. Otherwise, and
            always for JSON files, which may be one single list, all records are first written to the cache of
            `datasets` and can then be read in any order.
        image_folder: the folder where relative paths of images start. Unset, they start at the folder of the data
            files.
        options: keyword arguments of `datasets.load_dataset_builder`, for example `name`, `data_files`, `revision` or
            `cache_dir`. For local tar archives and text files, keyword arguments of `datasets.Dataset.from_generator`,
            which are ignored when streaming, and of [`mm1_hf.data.text_files.read_text_files`]: `field` for JSON,
            `delimiter` for tables, and `sample_by` for plain text.

    Returns:
        The records. A record holds under `__folder__` the folder where layouts let relative paths start: the
        `image_folder`, or the folder of the local files (the one that contains them all, if there are several), or for
        the Hub the folder of the data set in the Hub's cache. Columns of the data set with this name or another of
        [`mm1_hf.data.raw_records.READER_KEYS`] are removed.

        A record of JSON, JSON lines, CSV or TSV is kept as JSON text under `__line__`, with every value as it was
        written (cells of tables are texts), and a sample of an archive is kept as its files under `__files__`. What
        cannot be read, for example a corrupt line or sample, is a record with the reason under `__error__`, which the
        layout refuses; it does not end the reading.

    Raises:
        ValueError: the layout, the files, the split or the folder of the images do not exist, or the data cannot be
            read, have another layout or hold no records.
    """
    chosen = layout_named(layout)
    dataset, first = _read(path_or_id, split, streaming, image_folder, options)
    _try_layout(first, chosen, layout, str(path_or_id))
    return dataset


def read_records(
    path_or_id: str | os.PathLike[str],
    *,
    split: str = "train",
    streaming: bool = False,
    image_folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Dataset | IterableDataset:
    """
    Reads the records of a data set as [`read`] does, without checking them against a layout.

    Args:
        path_or_id: see [`read`].
        split: see [`read`].
        streaming: see [`read`].
        image_folder: see [`read`].
        options: see [`read`].

    Raises:
        ValueError: the files, the split or the folder of the images do not exist, or the data cannot be read or hold
            no records.
    """
    return _read(path_or_id, split, streaming, image_folder, options)[0]


def find_image_folder(folder: str | os.PathLike[str]) -> str:
    """
    The absolute path of a folder of images.

    Args:
        folder: the folder. A relative path starts at the current folder.

    Raises:
        ValueError: there is no such folder.
    """
    path = os.path.abspath(os.path.expanduser(folder))
    if not os.path.isdir(path):
        raise ValueError(
            f"image_folder is {os.fspath(folder)!r}, but there is no folder {path}. Give the folder where the images' "
            "paths in the records start."
        )
    return path


def _read(
    path_or_id: str | os.PathLike[str],
    split: str,
    streaming: bool,
    image_folder: str | os.PathLike[str] | None,
    options: dict[str, Any],
) -> tuple[Dataset | IterableDataset, list[dict[str, Any] | Unusable]]:
    """The records, and a list of the first ten of them, or of the reasons why they cannot be read."""
    source = os.fspath(path_or_id)
    root = None if image_folder is None else find_image_folder(image_folder)
    files = _local_files(source)
    try:
        if files is None:
            dataset = _without_reader_keys(_open(load_dataset_builder(source, **options), split, streaming))
            dataset = _with_folder(dataset, root or _hub_folder(source))
        else:
            dataset = _open_files(files, split, streaming, root, options)
        first = _first_of(dataset)
    # datasets raises these errors for an empty file.
    except (StopIteration, IndexError):
        first = []
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(f"{path_or_id} cannot be read: {type(cause).__name__}: {cause}") from error
    if not first:
        raise ValueError(f"{path_or_id} has no records in the split {split!r}. Give another split or other files.")
    return dataset, first


def _first_of(dataset: Dataset | IterableDataset) -> list[dict[str, Any] | Unusable]:
    if isinstance(dataset, IterableDataset):
        return list(islice(dataset, 10))
    first: list[dict[str, Any] | Unusable] = []
    for index in range(min(10, len(dataset))):
        try:
            first.append(row_of(dataset, index, f"record {index}"))
        except Unusable as reason:
            first.append(reason)
    return first


def _hub_folder(name: str) -> str:
    """The folder in which the Hub's cache keeps the files of a data set. Its records may name these files and no others."""
    return os.path.join(HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")


def _local_files(path: str) -> dict[str, list[str]] | None:
    """The data files of each split, or `None` if the path is an id on the Hub."""
    path = os.path.expanduser(path)
    root = path if os.path.isdir(path) else os.path.dirname(path)
    if os.path.isdir(path):
        found = sorted(str(file) for file in Path(path).rglob("*") if _format(str(file)) and file.is_file())
        formats = {_format(file) for file in found}
        chosen = next((name for name in FORMATS if name in formats), None)
        found = [file for file in found if _format(file) == chosen]
    elif glob.has_magic(path):
        found = sorted(glob.glob(path, recursive=True))
    else:
        found = [path] if os.path.isfile(path) else []
    if not found:
        # An id on the Hub is `name` or `user/name`.
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and not os.path.exists(path) and _format(path) is None:
            return None
        raise ValueError(f"There is no data file at {path}. Give files of these formats: {', '.join(FORMATS)}.")
    if unknown := [file for file in found if _format(file) is None]:
        raise ValueError(f"{unknown[0]} cannot be read. Give files of these formats: {', '.join(FORMATS)}.")
    if len(formats := {str(_format(file)) for file in found}) > 1:
        raise ValueError(
            f"{path} matches files of several formats: {', '.join(sorted(formats))}. Give a pattern "
            "that matches files of one format only."
        )
    splits: dict[str, list[str]] = {}
    for file in map(os.path.abspath, found):
        words = set(re.split(r"[^a-z]+", os.path.relpath(file, root or ".").lower()))
        named = next((split for split, names in _SPLITS.items() if names & words), "")
        splits.setdefault(named, []).append(file)
    rest = splits.pop("", [])
    return splits or {"train": rest}


def _format(file: str) -> str | None:
    """The format that a file's extension names, if any. A compression's extension, for example `.gz`, may follow."""
    match = re.search(r"\.(\w+)(\.(gz|bz2|xz|zst|lz4))?$", file.lower())
    return match[1] if match and match[1] in FORMATS else None


def _open_files(
    files: dict[str, list[str]], split: str, streaming: bool, root: str | None, options: dict[str, Any]
) -> Dataset | IterableDataset:
    """The records of local files. Relative paths start at `root`, or else at the folder that contains the files."""
    name = split.partition("[")[0]
    if name not in files:
        raise ValueError(f"there is no split {name!r}; the splits of the files are {', '.join(files)}")
    folder = os.path.commonpath([os.path.dirname(file) for file in files[name]])
    kind = _format(files[name][0])
    if kind == "tar":
        return _with_folder(_open_archives(files[name], split, streaming, options), root or folder)
    if kind in _TEXT_FORMATS:
        return _with_folder(_open_texts(files[name], kind, split, streaming, options), root or folder)
    options = {"data_files": files} | options
    builder = load_dataset_builder(folder, **options)
    # If the cache holds this data set already, the builder knows its features, and a stream of known features has one
    # more internal step. A position that was saved without that step could not be loaded.
    builder.info.features = options.get("features")
    return _with_folder(_without_reader_keys(_open(builder, split, streaming)), root or folder)


def _open(builder: DatasetBuilder, split: str, streaming: bool) -> Dataset | IterableDataset:
    """A split of a data set, with every image left as its bytes or path."""
    if streaming:
        stream = cast(IterableDataset, builder.as_streaming_dataset(split))
        # Features may be unknown (`None`), but only for formats that hold no images.
        without_pixels = undecoded(stream.features)
        return stream if without_pixels == stream.features else stream.cast(without_pixels)
    builder.download_and_prepare()
    # Changed before the data set is opened, because a cast afterwards would write lists of images to the cache again.
    builder.info.features = undecoded(builder.info.features)
    return cast(Dataset, builder.as_dataset(split))


def _open_archives(
    files: list[str], split: str, streaming: bool, options: dict[str, Any]
) -> Dataset | IterableDataset:
    archives = {"archives": _with_times(files)}
    if streaming:
        return IterableDataset.from_generator(read_archives, SAMPLE_FEATURES, archives)
    return _generated(read_archives, SAMPLE_FEATURES, archives, split, _RECORDS_AT_ONCE["tar"], options)


def _open_texts(
    files: list[str], kind: str, split: str, streaming: bool, options: dict[str, Any]
) -> Dataset | IterableDataset:
    own = {name: options[name] for name in _TEXT_FORMATS[kind] if name in options}
    rest = {name: value for name, value in options.items() if name not in own}
    arguments = {"files": _with_times(files), "form": "jsonl" if kind == "ndjson" else kind, **own}
    features = TEXT_FEATURES if kind == "txt" else LINE_FEATURES
    # A JSON file that is broken is found before any of its records is used.
    if streaming and kind != "json":
        return IterableDataset.from_generator(read_text_files, features, arguments)
    dataset = _generated(read_text_files, features, arguments, split, _RECORDS_AT_ONCE["text"], rest)
    return dataset.to_iterable_dataset() if streaming else dataset


def _with_times(files: list[str]) -> list[tuple[str, int]]:
    return [(file, os.stat(file).st_mtime_ns) for file in files]


def _generated(
    generator: Callable,
    features: Features,
    arguments: dict[str, Any],
    split: str,
    records_at_once: int,
    options: dict[str, Any],
) -> Dataset:
    """The records of a generator, or the slice of them that `split` names, from the cache of `datasets`."""
    options = {"writer_batch_size": records_at_once, **options}
    dataset = Dataset.from_generator(generator, features, gen_kwargs=arguments, **options)
    name = split.partition("[")[0]
    (part,) = ReadInstruction.from_spec(split).to_absolute({name: len(dataset)})
    return dataset.select(range(len(dataset))[part.from_ : part.to])


def _without_reader_keys(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Removes columns that only the reader may add: a data set must not choose the folder of its files, for example."""
    own = [name for name in dataset.column_names or () if name in READER_KEYS]
    return dataset.remove_columns(own) if own else dataset


def undecoded(feature: Any) -> Any:
    """
    Changes a feature of a data set so that its images are left as their bytes or paths.

    Args:
        feature: a feature, or a dictionary of features by their names.
    """
    if isinstance(feature, Image):
        return Image(mode=feature.mode, decode=False)
    if isinstance(feature, dict):
        return type(feature)({name: undecoded(inner) for name, inner in feature.items()})
    return replace(feature, feature=undecoded(feature.feature)) if isinstance(feature, List | LargeList) else feature


def _try_layout(records: list[dict[str, Any] | Unusable], layout: Layout, layout_name: str, name: str) -> None:
    errors = []
    for record in records:
        try:
            if isinstance(record, Unusable):
                raise record
            layout(record, name)
        except Unusable as error:
            errors.append(error)
    reasons = {error.reason for error in errors}
    if len(errors) < len(records):
        return
    if reasons <= {CORRUPT_ARCHIVE, CORRUPT_FILE}:
        raise ValueError(f"{name} cannot be read: {errors[0].detail}")
    if reasons == {WRONG_LAYOUT}:
        raise ValueError(
            f"{name} is not of the layout {layout_name!r}: {errors[0].detail}. Choose the "
            f"layout that fits; mm1_hf.data.layouts describes what each reads: {', '.join(LAYOUTS)}."
        )


def _with_folder(dataset: Dataset | IterableDataset, folder: str) -> Dataset | IterableDataset:
    if isinstance(dataset, IterableDataset):
        own = {ERROR: Value("string"), FOLDER: Value("string")}
        features = None if dataset.features is None else Features(dataset.features | own)
        if ERROR in (dataset.features or ()):
            return dataset.map(_add_folder, fn_kwargs={"folder": folder}, features=features)
        tables = dataset.with_format("arrow").map(
            with_folder, batched=True, batch_size=_ROWS_AT_ONCE, fn_kwargs={"folder": folder}, features=features
        )
        return tables.with_format(None)
    # The column repeats one chunk, so that the folder is not stored in memory for every record.
    chunk = pa.array([folder] * 1000)
    whole, rest = divmod(len(dataset), 1000)
    column = pa.chunked_array([chunk] * whole + [chunk.slice(0, rest)])
    return concatenate_datasets([dataset, Dataset(pa.table({FOLDER: column}))], axis=1)


def _add_folder(record: dict[str, Any], folder: str) -> dict[str, Any]:
    return {**record, FOLDER: folder}
