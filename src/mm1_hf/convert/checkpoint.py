"""
Reads foreign checkpoints one tensor at a time: safetensors files, NumPy archives and, if allowed, pickles. Nothing in a
checkpoint is trusted: whatever is wrong with a file is a `ValueError` that names it, and sizes are checked before they
are believed.
"""

import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import str_to_torch_dtype


_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Keys of the weights in a pickle that holds the state of a whole training run.
_WEIGHTS_KEYS = ("state_dict", "model")
# File names, without suffix, under which a folder's weights are looked for, in order of preference.
WEIGHT_NAMES = ("model", "pytorch_model")
# A shard of a thousand experts' matrices has a header of about 1 MB.
_MAX_HEADER_BYTES = 1 << 24
_MAX_JSON_BYTES = 1 << 26
# An array's header holds its shape and dtype.
_MAX_ARRAY_HEADER_BYTES = 1 << 16
# Weights hardly compress. An array of more bytes than `_SMALL`, which is this many times larger than its compressed
# form, is refused.
_MAX_EXPANSION, _SMALL = 100, 1 << 26
# Number of characters that an error message quotes from another library's error.
_QUOTED = 1000


@contextmanager
def naming(path: str | PathLike) -> Generator[None]:
    """
    Context manager for all that reads a file of a checkpoint, or computes with what it says: any error becomes a
    `ValueError` that names the file.

    Args:
        path: path of the file, or of the folder if it is not known which file is at fault.

    Raises:
        ValueError: an error was raised inside.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    # Libraries that are written in Rust panic with an exception that is not an `Exception`.
    except BaseException as error:
        said = " ".join(str(error).split())
        if isinstance(error, ValueError) and str(path) in said:
            raise
        said = said if len(said) <= _QUOTED else f"{said[:_QUOTED]}..."
        if isinstance(error, ValueError):
            raise ValueError(f"{path}: {said}") from error
        raise ValueError(
            f"{path} cannot be used, because it is damaged or of another kind than expected. The error was "
            f"{type(error).__name__}: {said}"
        ) from error


class Checkpoint:
    """
    The tensors of a checkpoint, by name.

    Args:
        path: a file with weights, or a folder that holds such a file, or shards with their index, under one of
            `names`.
        names: possible names of the file with the weights, without suffix, in order of preference.
        allow_pickle: whether to read pickled weights; they are read with `weights_only=True`.

    Raises:
        ValueError: there are no weights that can be read, the weights are pickled although `allow_pickle` is not set,
            or an index names shards that are missing or in another folder.
    """

    def __init__(
        self, path: str | PathLike, *, names: Sequence[str] = WEIGHT_NAMES, allow_pickle: bool = False
    ) -> None:
        self.path = Path(path)
        weights = _find_weights(self.path, names, allow_pickle) if self.path.is_dir() else self.path
        shard_of = _shards(weights) if weights.name.endswith(".index.json") else {}
        # The names of the tensors are read from the shards.
        files = sorted(set(shard_of.values())) or [weights.name]
        self._files: dict[str, Path] = {}
        self._metas: dict[str, torch.Tensor] = {}
        self._pickled: dict[str, torch.Tensor] = {}
        for file in (weights.parent / name for name in files):
            with naming(file):
                for name, meta in self._open(file, allow_pickle):
                    # Of two shards with this tensor, the one that the index names.
                    if shard_of.get(name, file.name) != file.name:
                        continue
                    if name in self._files:
                        raise ValueError(f"{file} holds the tensor {name}, which {self._files[name].name} holds too.")
                    self._files[name], self._metas[name] = file, meta

    def _open(self, file: Path, allow_pickle: bool) -> Iterator[tuple[str, torch.Tensor]]:
        if file.suffix == ".safetensors":
            return _safetensors_metas(file)
        if file.suffix == ".npz":
            return _array_metas(file)
        if file.suffix in _PICKLES:
            _require_pickle_allowed(file, allow_pickle)
            loaded = _load_pickle(file)
            self._pickled |= loaded
            return ((name, tensor.to("meta")) for name, tensor in loaded.items())
        raise ValueError(
            f"{file} is not a checkpoint that can be read. Give a .safetensors or .npz file, or the folder of a "
            "checkpoint."
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._metas)

    def __contains__(self, name: str) -> bool:
        return name in self._metas

    def meta(self, name: str) -> torch.Tensor:
        """
        A tensor on the meta device, which has the shape and dtype of the tensor in the checkpoint, but no values.

        Args:
            name: name of the tensor.
        """
        return self._metas[name]

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """
        Reads a tensor from its file.

        Args:
            name: name of the tensor.
            index: index into the first dimension, to read only this entry; unset, the whole tensor is read.

        Raises:
            ValueError: the file is damaged.
        """
        if name in self._pickled:
            return self._pickled[name] if index is None else self._pickled[name][index]
        file = self._files[name]
        with naming(file):
            if file.suffix == ".npz":
                return _read_array(file, name, index)
            with _open_safetensors(file) as opened:
                return opened.get_tensor(name) if index is None else opened.get_slice(name)[index]


def source_folder(source: str | PathLike, patterns: Sequence[str] = ()) -> Path:
    """
    Local path of a checkpoint. A local path is returned unchanged; a Hub id is downloaded to the cache.

    Args:
        source: file, folder or Hub id of the checkpoint.
        patterns: glob patterns of files to download from the Hub in addition to `*.json`, `*.jinja`, `*.model` and
            `*.safetensors`.

    Raises:
        ValueError: `source` is not an existing path, and cannot be a Hub id either.
    """
    path = Path(source)
    if path.exists():
        return path
    if str(source).count("/") != 1 or path.is_absolute() or str(source).startswith("."):
        raise ValueError(f"{source} does not exist. Give a checkpoint's file, its folder or a Hub id.")
    found = snapshot_download(str(source), allow_patterns=["*.json", "*.jinja", "*.model", "*.safetensors", *patterns])
    return Path(found)


def read_json(path: Path) -> dict[str, Any]:
    """
    Reads a JSON file that a checkpoint must have.

    Args:
        path: path of the file.

    Raises:
        ValueError: the file is missing, is too large, or does not hold a JSON object.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}, which describes the model. Put it beside the weights.")
    size = path.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise ValueError(f"{path} has {size:,} bytes. A file that describes a model has at most {_MAX_JSON_BYTES:,}.")
    with naming(path):
        read = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise ValueError(f"the file holds a {type(read).__name__}, but must hold a JSON object.")
        return read


def read_configuration(folder: Path, translate: Callable[[PreTrainedConfig], Any]) -> tuple[PreTrainedConfig, Any]:
    """
    Reads the configuration of a model of transformers, and translates it.

    Args:
        folder: folder of the model.
        translate: function that returns the configuration of the converted model.

    Returns:
        The configuration that was read, and its translation.

    Raises:
        ValueError: there is no `config.json`, it is not a configuration of a model of transformers, or the model cannot
            be converted.
    """
    path = folder / "config.json"
    read_json(path)
    with naming(path):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return config, translate(config)


def _open_safetensors(file: Path) -> Any:
    # Not memory-mapped: the pages of a mapped file stay in the process and would be counted as its memory.
    return cast(Any, safe_open)(file, framework="pt", backend="pread")


def _safetensors_metas(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(
                f"its header would have {length:,} bytes; at most {_MAX_HEADER_BYTES:,} are read. It is not a "
                "safetensors file, or the file is damaged."
            )
        # Of two entries with one name, the library would take one without a word.
        json.loads(opened.read(length), object_pairs_hook=_without_repetition)
    with _open_safetensors(file) as opened:
        for name in opened.keys():  # noqa: SIM118 - not a dictionary
            entry = opened.get_slice(name)
            dtype = str_to_torch_dtype.get(entry.get_dtype())
            if dtype is None:
                raise ValueError(f"the tensor {name} has the dtype {entry.get_dtype()}, which torch does not have.")
            yield name, _meta(entry.get_shape(), dtype)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in its header.")
    return found


def _load_pickle(file: Path) -> dict[str, torch.Tensor]:
    # Memory-mapped, so that a tensor takes memory only while it is read. Old pickles, which are not zip files, cannot be
    # mapped.
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower():
            raise
        raise ValueError(
            f"{file} holds more than weights, so it is not read. Give a file that holds only tensors. The error was: "
            f"{error}"
        ) from error
    for key in _WEIGHTS_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise ValueError(f"the pickle holds a {type(loaded).__name__}, but must hold a dictionary of tensors.")
    weights = {name: tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}
    for name, tensor in weights.items():
        stored = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        # A tensor may repeat one stored value along a dimension, and then would take far more memory than the file.
        if not isinstance(name, str) or not stored or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name!r} is not a plain tensor with all of its values in the file.")
    return weights


def _array_metas(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            name = entry.filename
            if not name.endswith(".npy"):
                raise ValueError(
                    f"{name} is not an array. An .npz file holds only arrays, with names that end in .npy."
                )
            if entry.compress_size > file.stat().st_size:
                raise ValueError(f"{name} would have {entry.compress_size:,} bytes, more than the file has.")
            if entry.file_size > max(_SMALL, _MAX_EXPANSION * entry.compress_size):
                raise ValueError(
                    f"{name} would be {entry.file_size:,} bytes, more than {_MAX_EXPANSION} times its compressed size."
                )
            with archive.open(entry) as member:
                shape, _, dtype = _array_header(member)
                expected = member.tell() + math.prod(shape) * dtype.itemsize
            if dtype.hasobject or dtype.fields is not None:
                raise ValueError(f"{name} is not an array of numbers, but of dtype {dtype}.")
            if expected != entry.file_size:
                raise ValueError(
                    f"{name} has {entry.file_size:,} bytes, but its shape {shape} needs {expected:,}. The file is damaged."
                )
            yield name.removesuffix(".npy"), _meta(shape, _to_torch(np.zeros(1, dtype)).dtype)


def _meta(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _find_weights(folder: Path, names: Sequence[str], allow_pickle: bool) -> Path:
    endings = (".safetensors.index.json", ".safetensors", ".npz")
    for name in names:
        for ending in endings:
            if (folder / f"{name}{ending}").is_file():
                return folder / f"{name}{ending}"
    single = [*folder.glob("*.safetensors"), *folder.glob("*.npz")]
    if len(single) == 1:
        return single[0]
    pickles = [folder / f"{name}{ending}" for name in names for ending in (".bin.index.json", *_PICKLES)]
    pickles = [path for path in pickles if path.is_file()]
    if pickles:
        _require_pickle_allowed(pickles[0], allow_pickle)
        return pickles[0]
    raise ValueError(
        f"{folder} holds no weights that can be read: there is no .safetensors or .npz file named {' or '.join(names)}"
        + (f", but several others ({', '.join(sorted(path.name for path in single))})" if single else "")
        + ". Give the path of the file itself."
    )


def _require_pickle_allowed(path: Path, allow_pickle: bool) -> None:
    if not allow_pickle:
        raise ValueError(
            f"{path} is a pickle, which can run code when it is read. Use the safetensors version of the checkpoint. "
            "If there is none and you trust its source, give allow_pickle=True or --allow-pickle; the pickle is then "
            "read with weights_only=True."
        )


def _shards(index: Path) -> dict[str, str]:
    """The file name of the shard of each tensor."""
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise ValueError(
            f"{index} is not the index of a checkpoint: its weight_map must be an object that gives each tensor's name "
            "the name of a file."
        )
    names = sorted(set(shard_of.values()))
    elsewhere = [name for name in names if Path(name).name != name]
    if elsewhere:
        raise ValueError(
            f"{index} names files that are not in its folder: {', '.join(elsewhere)}. Put all shards beside the index "
            "and name them without a folder."
        )
    with naming(index):
        missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(
            f"{index} names shards that are missing: {', '.join(missing)}. Download the whole checkpoint."
        )
    return shard_of


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the array is in Fortran order, and dtype. Afterwards `member` stands at the first value."""
    start = member.read(12)
    # NumPy reads the whole header before it finds it too long.
    length = int.from_bytes(start[8:10] if start[6:7] == b"\x01" else start[8:12], "little")
    if length > _MAX_ARRAY_HEADER_BYTES:
        raise ValueError(
            f"the header of an array would have {length:,} bytes; at most {_MAX_ARRAY_HEADER_BYTES:,} are read."
        )
    member.seek(0)
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)


def _read_array(file: Path, name: str, index: int | None) -> torch.Tensor:
    with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as member:
        shape, is_fortran, dtype = _array_header(member)
        if index is not None and not is_fortran:
            count = math.prod(shape[1:])
            member.seek(index * count * dtype.itemsize, os.SEEK_CUR)
            return _to_torch(np.frombuffer(bytearray(member.read(count * dtype.itemsize)), dtype).reshape(shape[1:]))
    with np.load(file, allow_pickle=False) as arrays:
        return _to_torch(arrays[name] if index is None else arrays[name][index])


def _to_torch(array: np.ndarray) -> torch.Tensor:
    # NumPy has no bfloat16: it saves JAX's bfloat16 arrays as untyped values of two bytes.
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))
