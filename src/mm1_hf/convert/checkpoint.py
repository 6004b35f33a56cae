"""Reads foreign checkpoints one tensor at a time: safetensors files, NumPy archives and, if allowed, pickles."""

import json
import math
import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers.modeling_utils import str_to_torch_dtype


_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Keys of the weights in a pickle that holds the state of a whole training run.
_WEIGHTS_KEYS = ("state_dict", "model")
# File names, without suffix, under which a folder's weights are looked for, in order of preference.
WEIGHT_NAMES = ("model", "pytorch_model")


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
        # The index is only used for the names of the shards; the names of the tensors are read from the shards.
        files = _shards(weights) if weights.name.endswith(".index.json") else [weights]
        self._files: dict[str, Path] = {}
        self._metas: dict[str, torch.Tensor] = {}
        self._pickled: dict[str, torch.Tensor] = {}
        for file in files:
            for name, meta in self._open(file, allow_pickle):
                self._files[name], self._metas[name] = file, meta

    def _open(self, file: Path, allow_pickle: bool) -> Iterator[tuple[str, torch.Tensor]]:
        if file.suffix == ".safetensors":
            with _open_safetensors(file) as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dictionary
                    entry = opened.get_slice(name)
                    yield name, _meta(entry.get_shape(), str_to_torch_dtype[entry.get_dtype()])
        elif file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    with archive.open(name) as member:
                        shape, _, dtype = _array_header(member)
                    yield name.removesuffix(".npy"), _meta(shape, _to_torch(np.zeros(1, dtype)).dtype)
        elif file.suffix in _PICKLES:
            _require_pickle_allowed(file, allow_pickle)
            # Memory-mapped, so that a tensor takes memory only while it is read. Old pickles, which are not zip files,
            # cannot be mapped.
            try:
                loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
            except pickle.UnpicklingError as error:
                raise ValueError(
                    f"{file} holds more than weights, so it is not read. Give a file that holds only tensors. The "
                    f"error was: {error}"
                ) from error
            for key in _WEIGHTS_KEYS:
                loaded = loaded[key] if isinstance(loaded.get(key), dict) else loaded
            for name, tensor in loaded.items():
                if isinstance(tensor, torch.Tensor):
                    self._pickled[name] = tensor
                    yield name, tensor.to("meta")
        else:
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
        """
        if name in self._pickled:
            return self._pickled[name] if index is None else self._pickled[name][index]
        file = self._files[name]
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
        ValueError: the file is missing.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}, which describes the model. Put it beside the weights.")
    return json.loads(path.read_text(encoding="utf-8"))


def _open_safetensors(file: Path) -> Any:
    # Not memory-mapped: the pages of a mapped file stay in the process and would be counted as its memory.
    return cast(Any, safe_open)(file, framework="pt", backend="pread")


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


def _shards(index: Path) -> list[Path]:
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elsewhere = [name for name in names if Path(name).name != name]
    if elsewhere:
        raise ValueError(
            f"{index} names files that are not in its folder: {', '.join(elsewhere)}. Put all shards beside the index "
            "and name them without a folder."
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(
            f"{index} names shards that are missing: {', '.join(missing)}. Download the whole checkpoint."
        )
    return [index.parent / name for name in names]


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the array is in Fortran order, and dtype. Afterwards `member` stands at the first value."""
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
