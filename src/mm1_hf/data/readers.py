"""Data sets here and on the Hub, read by `datasets`."""

import glob
import os
import re
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
    List,
    ReadInstruction,
    Value,
    concatenate_datasets,
    load_dataset_builder,
)

from mm1_hf.data.archives import SAMPLE_FEATURES, read_archives
from mm1_hf.data.documents import Unusable
from mm1_hf.data.layouts import CORRUPT_ARCHIVE, FOLDER, LAYOUTS, LINE, WRONG_LAYOUT


# Of a folder with files of several formats, the first of these is read: pictures and notes lie beside data.
FORMATS = ("parquet", "arrow", "jsonl", "ndjson", "tar", "json", "csv", "tsv", "txt")

# What is not UTF-8 becomes an escape that JSON does not know, and so a broken line.
_LINES: dict[str, Any] = {
    "sample_by": "line",
    "encoding_errors": "backslashreplace",
    "features": Features({"text": Value("string")}),
}
_SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}


def read(
    path_or_id: str | os.PathLike[str], layout: str, *, split: str = "train", streaming: bool = False, **options: Any
) -> Dataset | IterableDataset:
    """
    A data set's records, for the layout `LAYOUTS[layout]` to make documents of. Images are not decoded: they stay bytes,
    paths or URLs, and datasets' Image gives `{"bytes", "path"}`.

    Args:
        path_or_id: a file of parquet, Arrow, JSON lines, JSON, CSV, WebDataset tar or plain text, a folder of such files, a
            pattern (`"shards/*.tar"`), or a data set's id on the Hub. Files whose path from there names a split (`train`,
            `validation`, `test` or a short form of it as a word) belong to it, and with any such file only they are read;
            otherwise all files are `train`. A plain-text file is one document, unless `sample_by="line"` or `"paragraph"`.
        layout: what the records are, a name in [`LAYOUTS`]. The first records are tried.
        split: one of the data set's splits. Without streaming, also a slice such as `"train[:1%]"`.
        streaming: records in their order, as they come. Otherwise, and for a JSON file that is one list, they are first
            written to `datasets`' cache, and can be read in any order.
        options: for `datasets.load_dataset_builder`, such as `name`, `data_files`, `revision`, `cache_dir`.

    Returns:
        The records. Those of local files have their folder (if there are several, the one that holds them all) under
        `__folder__`, from which layouts take relative paths. Those of JSON lines are whole lines under `__line__`, and those
        of archives their files under `__files__`, so that a broken one is a record that its layout refuses.

    Raises:
        ValueError: there is no such layout, file or split, the data cannot be read, are of another layout or empty.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"There is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
    dataset, first = _read(path_or_id, split, streaming, options)
    _try_layout(first, layout, str(path_or_id))
    return dataset


def read_records(
    path_or_id: str | os.PathLike[str], *, split: str = "train", streaming: bool = False, **options: Any
) -> Dataset | IterableDataset:
    """
    A data set's records whatever they are, as [`read`] gives those of a layout.

    Args:
        path_or_id: see [`read`].
        split: see [`read`].
        streaming: see [`read`].
        options: see [`read`].

    Raises:
        ValueError: there is no such file or split, or the data cannot be read or are empty.
    """
    return _read(path_or_id, split, streaming, options)[0]


def _read(
    path_or_id: str | os.PathLike[str], split: str, streaming: bool, options: dict[str, Any]
) -> tuple[Dataset | IterableDataset, list[dict[str, Any]]]:
    """The records, and the first of them once more."""
    source = os.fspath(path_or_id)
    files = _local_files(source)
    try:
        if files is None:
            dataset = _open(load_dataset_builder(source, **options), split, streaming)
        else:
            dataset = _open_files(files, split, streaming, options)
        first = list(islice(dataset, 10))
    # What datasets raises for an empty file.
    except (StopIteration, IndexError):
        first = []
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(f"{path_or_id} cannot be read: {type(cause).__name__}: {cause}") from error
    if not first:
        raise ValueError(f"{path_or_id} has no records in {split!r}.")
    return dataset, first


def _local_files(path: str) -> dict[str, list[str]] | None:
    """The data files of each split, or `None` for what is an id on the Hub."""
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
        # An id is `name` or `user/name`.
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and not os.path.exists(path) and _format(path) is None:
            return None
        raise ValueError(f"There is no data file at {path}; give files of {', '.join(FORMATS)}.")
    if unknown := [file for file in found if _format(file) is None]:
        raise ValueError(f"{unknown[0]} is no file of {', '.join(FORMATS)}.")
    if len(formats := {str(_format(file)) for file in found}) > 1:
        raise ValueError(f"{path} matches files of several formats: {', '.join(sorted(formats))}. Name one.")
    splits: dict[str, list[str]] = {}
    for file in map(os.path.abspath, found):
        words = set(re.split(r"[^a-z]+", os.path.relpath(file, root or ".").lower()))
        named = next((split for split, names in _SPLITS.items() if names & words), "")
        splits.setdefault(named, []).append(file)
    rest = splits.pop("", [])
    return splits or {"train": rest}


def _format(file: str) -> str | None:
    """A file's format by its extensions, of which the last may be that of a compression."""
    match = re.search(r"\.(\w+)(\.(gz|bz2|xz|zst|lz4))?$", file.lower())
    return match[1] if match and match[1] in FORMATS else None


def _open_files(
    files: dict[str, list[str]], split: str, streaming: bool, options: dict[str, Any]
) -> Dataset | IterableDataset:
    name = split.partition("[")[0]
    if name not in files:
        raise ValueError(f"there is no split {name!r}; the files give {', '.join(files)}")
    folder = os.path.commonpath([os.path.dirname(file) for file in files[name]])
    kind = _format(files[name][0])
    if kind == "tar":
        return _with_folder(_open_archives(files[name], split, streaming, options), folder)
    source = folder
    options = {"data_files": files} | options
    if kind in ("jsonl", "ndjson"):
        source, options = "text", _LINES | options
    elif kind == "txt":
        options = {"sample_by": "document"} | options
    builder = load_dataset_builder(source, **options)
    # Those of an earlier reading, from the cache, would give a stream steps that its saved place does not know.
    builder.info.features = options.get("features")
    # JSON that is one list cannot be read in pieces.
    dataset = _open(builder, split, streaming and kind != "json")
    if kind in ("jsonl", "ndjson"):
        dataset = dataset.rename_column("text", LINE)
    if streaming and isinstance(dataset, Dataset):
        dataset = dataset.to_iterable_dataset()
    return _with_folder(dataset, folder)


def _open(builder: DatasetBuilder, split: str, streaming: bool) -> Dataset | IterableDataset:
    """With every image left as its bytes or path."""
    if streaming:
        stream = cast(IterableDataset, builder.as_streaming_dataset(split))
        # Unknown for formats that hold no images.
        without_pixels = undecoded(stream.features)
        return stream if without_pixels == stream.features else stream.cast(without_pixels)
    builder.download_and_prepare()
    # Not by a cast afterwards, which writes lists of images once more.
    builder.info.features = undecoded(builder.info.features)
    return cast(Dataset, builder.as_dataset(split))


def _open_archives(
    files: list[str], split: str, streaming: bool, options: dict[str, Any]
) -> Dataset | IterableDataset:
    archives = [(file, os.stat(file).st_mtime_ns) for file in files]
    if streaming:
        return IterableDataset.from_generator(read_archives, SAMPLE_FEATURES, {"archives": archives})
    dataset = Dataset.from_generator(read_archives, SAMPLE_FEATURES, gen_kwargs={"archives": archives}, **options)
    name = split.partition("[")[0]
    (part,) = ReadInstruction.from_spec(split).to_absolute({name: len(dataset)})
    return dataset.select(range(len(dataset))[part.from_ : part.to])


def undecoded(feature: Any) -> Any:
    """
    A data set's feature with every image left as its bytes or path.

    Args:
        feature: one, or features by their names.
    """
    if isinstance(feature, Image):
        return Image(mode=feature.mode, decode=False)
    if isinstance(feature, dict):
        return type(feature)({name: undecoded(inner) for name, inner in feature.items()})
    return List(undecoded(feature.feature)) if isinstance(feature, List) else feature


def _try_layout(records: list[dict[str, Any]], layout: str, name: str) -> None:
    errors = []
    for record in records:
        try:
            LAYOUTS[layout](record, name)
        except Unusable as error:
            errors.append(error)
    reasons = {error.reason for error in errors}
    if len(errors) < len(records):
        return
    if reasons == {CORRUPT_ARCHIVE}:
        raise ValueError(f"{name} cannot be read: {errors[0].detail}")
    if reasons == {WRONG_LAYOUT}:
        raise ValueError(
            f"{name} is not of the layout {layout!r}: {errors[0].detail}. See mm1_hf.data.layouts for what the layouts "
            f"{', '.join(LAYOUTS)} read."
        )


def _with_folder(dataset: Dataset | IterableDataset, folder: str) -> Dataset | IterableDataset:
    if isinstance(dataset, IterableDataset):
        features = None if dataset.features is None else Features(dataset.features | {FOLDER: Value("string")})
        return dataset.map(_add_folder, fn_kwargs={"folder": folder}, features=features)
    # One chunk, many times: the folder costs no memory for each record.
    chunk = pa.array([folder] * 1000)
    whole, rest = divmod(len(dataset), 1000)
    column = pa.chunked_array([chunk] * whole + [chunk.slice(0, rest)])
    return concatenate_datasets([dataset, Dataset(pa.table({FOLDER: column}))], axis=1)


def _add_folder(record: dict[str, Any], folder: str) -> dict[str, Any]:
    return {**record, FOLDER: folder}
