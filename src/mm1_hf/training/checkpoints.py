"""
Which checkpoints of a run are complete. A run that was killed, or that ran out of disk space, may have left an
incomplete one.
"""

import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging


# What decides the result of a run, beside its weights: see mm1_hf.training.resuming.
RUN_NAME = "mm1_run.json"

_ADAPTER = "adapter_model.safetensors"
# The shards that each process writes of a model whose weights were split when it was loaded.
_SHARD = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
# Files and folders that accelerate's FSDP and DeepSpeed write instead of the weights and the optimizer's state.
_FOREIGN_WEIGHTS = ("pytorch_model_fsdp", "global_step")
_FOREIGN_OPTIMIZER = ("optimizer_", "global_step")
# The limit of the safetensors format, in bytes.
_LONGEST_HEADER = 100_000_000
_MIXTURE_KEYS = {"batches", "lanes", "mixture"}

logger = logging.get_logger(__name__)


def stream_name(process: int) -> str:
    """
    Name of the file of a checkpoint that holds the position of a process in the data stream.

    Args:
        process: index of the process, counted from 0.
    """
    return f"mixture_{process}.json"


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The newest complete checkpoint of a run, to resume from. Newer ones that are incomplete are logged with what is
    wrong with them. See [`checkpoint_fault`] for what makes a checkpoint complete.

    Args:
        output_dir: output folder of the run.

    Returns:
        The checkpoint's folder, or `None` if the run has no checkpoint at all.

    Raises:
        ValueError: the run has checkpoints, but none of them is complete.
    """
    found = _by_step(output_dir)
    faults = {}
    for step in sorted(found, reverse=True):
        fault = checkpoint_fault(found[step])
        if fault is None:
            for other, reason in faults.items():
                logger.warning(f"{other} cannot be resumed: {reason}. The last complete checkpoint is {found[step]}.")
            return str(found[step])
        faults[found[step]] = fault
    # Trainer writes its state last, so a checkpoint without it is that of a run that was killed while it saved. If it
    # was the first one, the run begins again.
    ended = {folder: reason for folder, reason in faults.items() if _has_state(folder)}
    if ended:
        reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in ended.items())
        raise ValueError(
            f"No checkpoint in {output_dir} can be resumed ({reasons}). Repair one of them, or start a new run in another "
            "output_dir: its model may be a folder with whole weights, such as a checkpoint."
        )
    for folder, reason in faults.items():
        logger.warning(f"{folder} cannot be resumed: {reason}. There is no other checkpoint, so the run begins again.")
    return None


def delete_oldest(output_dir: str | os.PathLike, newest: int, limit: int, best: str | None) -> None:
    """
    Deletes the oldest complete checkpoints of a run. Incomplete ones, and those of later steps, do not count and stay:
    Trainer would keep them in place of complete ones.

    Args:
        output_dir: output folder of the run.
        newest: step of the newest checkpoint, which is kept.
        limit: number of checkpoints to keep.
        best: folder of the best checkpoint, which is kept too.
    """
    found = _by_step(output_dir)
    complete = [step for step in sorted(found) if step <= newest and checkpoint_fault(found[step]) is None]
    kept = [
        step for step in complete if step == newest or (best and os.path.realpath(best) == str(found[step].resolve()))
    ]
    others = [step for step in complete if step not in kept]
    for step in others[: max(0, len(complete) - max(limit, len(kept)))]:
        shutil.rmtree(found[step], ignore_errors=True)


def checkpoint_fault(folder: str | os.PathLike) -> str | None:
    """
    What makes a checkpoint incomplete. Looked at are the names, lengths and headers of its files, not every byte:
    Trainer's state, the weights, the states of the optimizer and the scheduler, the state of the random numbers of
    each process, and what [`mm1_hf.training.resuming.ResumableTrainer`] and [`mm1_hf.training.streams.MixtureTrainer`]
    save.

    Args:
        folder: the checkpoint's folder.

    Returns:
        The fault, or `None` if the checkpoint is complete.
    """
    return next(_faults(Path(folder)), None)


def read_json(file: Path) -> dict[str, Any]:
    """
    The object in a JSON file of a checkpoint.

    Args:
        file: path of the file.

    Raises:
        ValueError: the file is missing, cannot be read or holds something else; its name is part of the message.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} holds {value!r:.50} in place of an object")
    return value


def saved_shapes(folder: str | os.PathLike) -> dict[str, tuple[int, ...]] | None:
    """
    Names and shapes of a checkpoint's weights.

    Args:
        folder: the folder of a complete checkpoint.

    Returns:
        The shapes by name, or `None` if the weights are those of an adapter, or split over processes.
    """
    shapes = {}
    for file in _whole_weights(Path(folder)):
        with safe_open(file, "pt") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118 -- not a dict
    return shapes or None


def _by_step(output_dir: str | os.PathLike) -> dict[int, Path]:
    return {
        int(folder.name.rpartition("-")[2]): folder
        for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if re.fullmatch(r"\d+", folder.name.rpartition("-")[2], re.ASCII) and folder.is_dir()
    }


def _has_state(folder: Path) -> bool:
    try:
        read_json(folder / TRAINER_STATE_NAME)
    except ValueError:
        return False
    return True


def _faults(folder: Path) -> Iterator[str]:
    try:
        state = read_json(folder / TRAINER_STATE_NAME)
        run = read_json(folder / RUN_NAME)
    except ValueError as error:
        yield str(error)
        return
    named = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name, re.ASCII)
    if not isinstance(state.get("global_step"), int) or (named and state["global_step"] != int(named[1])):
        yield f"{TRAINER_STATE_NAME} is not that of this checkpoint: its global_step is {state.get('global_step')!r:.50}"
    processes = run.get("processes")
    if not isinstance(processes, int) or not isinstance(run.get("settings"), dict):
        yield f"{RUN_NAME} lacks the number of processes or the settings of the run"
        return
    names = sorted(os.listdir(folder))
    yield from _weights_faults(folder, names)
    yield from _optimizer_faults(folder, names)
    for process in range(processes):
        yield from _archive_faults(folder / ("rng_state.pth" if processes == 1 else f"rng_state_{process}.pth"))
    if run.get("stream"):
        for process in range(processes):
            yield from _stream_faults(folder / stream_name(process))


def _stream_faults(file: Path) -> Iterator[str]:
    try:
        if _MIXTURE_KEYS - read_json(file).keys():
            yield f"{file.name} does not hold a position of the data stream"
    except ValueError as error:
        yield str(error)


def _whole_weights(folder: Path) -> list[Path]:
    """The files that hold the weights of a whole model."""
    if (folder / SAFE_WEIGHTS_NAME).exists():
        return [folder / SAFE_WEIGHTS_NAME]
    if (folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        shards = read_json(folder / SAFE_WEIGHTS_INDEX_NAME).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} holds no weight_map")
        return [folder / name for name in sorted(set(shards.values()))]
    return []


def _weights_faults(folder: Path, names: list[str]) -> Iterator[str]:
    try:
        files = _whole_weights(folder)
    except ValueError as error:
        yield str(error)
        return
    files = files or [folder / name for name in names if name == _ADAPTER or _SHARD.fullmatch(name)]
    # PEFT saves an adapter that is not named "default" in a folder of its own.
    files = files or [folder / name / _ADAPTER for name in names if (folder / name / _ADAPTER).exists()]
    if not files and not any(name.startswith(_FOREIGN_WEIGHTS) for name in names):
        yield "its weights are missing"
    for file in files:
        yield from _safetensors_faults(file)


def _safetensors_faults(file: Path) -> Iterator[str]:
    """A file is whole if it is as long as its header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header: Any = json.loads(opened.read(min(length, _LONGEST_HEADER)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except FileNotFoundError:
        yield f"{file.name} is missing"
        return
    except (OSError, ValueError, RecursionError, struct.error, TypeError, LookupError, AttributeError):
        yield f"{file.name} is cut off or is not a safetensors file"
        return
    if 8 + length + max(ends, default=0) != size:
        yield f"{file.name} has {size} bytes, but its header tells of {8 + length + max(ends, default=0)}"


def _optimizer_faults(folder: Path, names: list[str]) -> Iterator[str]:
    if any(name.startswith(_FOREIGN_OPTIMIZER) and (folder / name).is_dir() for name in names):
        return
    if not (folder / "optimizer" / ".metadata").exists():
        yield from _archive_faults(folder / OPTIMIZER_NAME)
    yield from _archive_faults(folder / SCHEDULER_NAME)


def _archive_faults(file: Path) -> Iterator[str]:
    """torch.save writes a ZIP archive, whose table of contents comes last."""
    if not file.exists():
        yield f"{file.name} is missing"
        return
    try:
        with zipfile.ZipFile(file):
            pass
    except (OSError, zipfile.BadZipFile):
        yield f"{file.name} is cut off or was not written by torch.save"
