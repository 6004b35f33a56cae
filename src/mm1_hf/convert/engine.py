"""Writes a model's weights out of a foreign checkpoint, shard by shard: never more than one shard is in memory, nothing is
written before everything fits, and nothing that looks complete is left by a conversion that breaks off."""

import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tqdm import tqdm
from transformers.configuration_utils import PreTrainedConfig
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_utils import PreTrainedModel

from mm1_hf.convert.checkpoint import Checkpoint


MAX_SHARD_SIZE = "1GB"
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
    "*.tiktoken",
)

# How many names an error lists.
_LISTED = 8


@dataclass(frozen=True)
class Made:
    """
    How one tensor is made.

    Args:
        sources: names in the checkpoint. In a table, `#` stands for the numbers of the target's name, in order.
        make: gives the tensor out of the sources; only shapes are asked of it first, with tensors on the meta device.
        index: which entry of the sources' first dimension is read, where they are stacks of layers.
    """

    sources: tuple[str, ...]
    make: Callable[..., torch.Tensor]
    index: int | None = None


Table = Mapping[str, str | Made]


def expand(table: Table, targets: Iterable[str]) -> dict[str, Made]:
    """
    What every tensor of a model is made of.

    Args:
        table: of patterns of names, in which `#` stands for a number, to what they are made of; a name alone is taken as
            it is.
        targets: the names of the model's tensors.

    Raises:
        ValueError: the table says nothing of a tensor.
    """
    plan, untold = {}, []
    for target in targets:
        numbers = re.findall(r"(?<=\.)\d+(?=\.)", target)
        entry = table.get(re.sub(r"(?<=\.)\d+(?=\.)", "#", target))
        if entry is None:
            untold.append(target)
            continue
        made = entry if isinstance(entry, Made) else Made((entry,), _as_it_is)
        plan[target] = replace(made, sources=tuple(_fill(name, numbers) for name in made.sources))
    if untold:
        raise ValueError(f"This kind of checkpoint has no weights for {_listed(untold)}. Check the configuration.")
    return plan


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _fill(pattern: str, numbers: Sequence[str]) -> str:
    first, *rest = pattern.split("#")
    return first + "".join(number + part for number, part in zip(numbers, rest, strict=False))


def part_of(index: int, parts: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    Gives one of the equal parts that fused projections hold along their first dimension.

    Args:
        index: which part, from 0.
        parts: how many there are.
    """
    return lambda fused: fused.chunk(parts)[index]


def rows_of(start: int, stop: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    Gives some of a tensor's rows.

    Args:
        start: the first row.
        stop: the row after the last.
    """
    return lambda fused: fused[start:stop]


def empty_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """
    A model without its weights, for their names and shapes.

    Args:
        model_class: of the model.
        config: of the model.
    """
    with torch.device("meta"):
        return model_class(config)


def target_names(model: PreTrainedModel) -> list[str]:
    """
    The tensors that a checkpoint of the model holds; those that are tied to another one are not among them.

    Args:
        model: with or without weights.
    """
    return [name for name in model.state_dict() if name not in model.all_tied_weights_keys]


@contextmanager
def new_folder(output: str | PathLike) -> Generator[Path]:
    """
    A folder that appears under its name only when everything in it is written.

    Args:
        output: the folder, which must not exist or be empty.

    Raises:
        ValueError: there is something already.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists already. Give a folder that does not, or remove it.")
    # Beside it, because a move to another disk would not be of one piece.
    partial = output.absolute().with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_model(
    folder: Path,
    model: PreTrainedModel,
    plan: Mapping[str, Made],
    checkpoint: Checkpoint,
    *,
    unused: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """
    Writes a model as `save_pretrained` would, with weights out of a checkpoint.

    Args:
        folder: where to.
        model: one of [`empty_model`].
        plan: what its tensors are made of, as from [`expand`].
        checkpoint: where the tensors come from.
        unused: regular expressions of the names in the checkpoint that are left out on purpose.
        dtype: of the written weights; unset, the checkpoint's.
        max_shard_size: bounds the files that are written, and the memory; in bytes or like `"1GB"`.

    Raises:
        ValueError: tensors are missing, left over or of another shape.
    """
    metas = check_plan(model, plan, checkpoint, unused)
    if dtype is not None:
        metas = {name: meta.to(dtype) for name, meta in metas.items()}
    split = split_torch_state_dict_into_shards(metas, max_shard_size=max_shard_size)
    with tqdm(total=len(metas), unit="tensor", disable=None) as progress:
        for file, names in split.filename_to_tensors.items():
            shard = {}
            for name in names:
                made = plan[name]
                tensor = made.make(*(checkpoint.read(source, made.index) for source in made.sources)).to(
                    metas[name].dtype
                )
                # A part of a larger tensor would keep all of it in memory.
                if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() > tensor.nbytes:
                    tensor = tensor.clone(memory_format=torch.contiguous_format)
                shard[name] = tensor
                progress.update()
            save_file(shard, folder / file, metadata={"format": "pt"})
            del shard, tensor
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    write_configuration(folder, model, next(meta.dtype for meta in metas.values()))


def write_configuration(folder: Path, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """
    Writes what stands beside a model's weights: its configurations, and the code that travels with the package's own.

    Args:
        folder: where to.
        model: with or without weights.
        dtype: of the weights.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    if model.is_remote_code():
        custom_object_save(model, folder, config=cast(Any, config))
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def check_plan(
    model: PreTrainedModel, plan: Mapping[str, Made], checkpoint: Checkpoint, unused: Sequence[str] = ()
) -> dict[str, torch.Tensor]:
    """
    Compares a checkpoint with what a model needs, by names and shapes alone.

    Args:
        model: one of [`empty_model`].
        plan: what its tensors are made of.
        checkpoint: where the tensors come from.
        unused: regular expressions of the names in the checkpoint that are left out on purpose.

    Returns:
        The tensors that would be written, on the meta device.

    Raises:
        ValueError: tensors are missing, left over or of another shape.
    """
    used = dict.fromkeys(name for made in plan.values() for name in made.sources)
    missing = [name for name in used if name not in checkpoint]
    skipped = re.compile("|".join(unused)) if unused else None
    surplus = [name for name in checkpoint if name not in used and not (skipped and skipped.search(name))]
    problems = [f"{kind} {_listed(names)}" for kind, names in (("missing", missing), ("not used", surplus)) if names]
    if problems:
        raise ValueError(
            f"{checkpoint.path} does not hold the tensors of this model: {'; '.join(problems)}. Check that the "
            "configuration beside it is its own."
        )
    metas, expected = {}, model.state_dict()
    for name, made in plan.items():
        sources = [checkpoint.meta(source) for source in made.sources]
        try:
            metas[name] = made.make(*(meta if made.index is None else meta[made.index] for meta in sources))
        except (RuntimeError, IndexError) as error:
            shapes = ", ".join(
                f"{source} {tuple(meta.shape)}" for source, meta in zip(made.sources, sources, strict=True)
            )
            raise ValueError(f"{checkpoint.path}: {name} cannot be made of {shapes}: {error}") from error
        if metas[name].shape != expected[name].shape:
            raise ValueError(_shape_problem(model, name, tuple(metas[name].shape), made, checkpoint))
    return metas


def _shape_problem(
    model: PreTrainedModel, name: str, shape: tuple[int, ...], made: Made, checkpoint: Checkpoint
) -> str:
    expected = tuple(model.state_dict()[name].shape)
    wrong = [dim for dim in range(len(expected)) if len(shape) != len(expected) or shape[dim] != expected[dim]]
    fields = sorted({field for dim in wrong for field in fields_behind(model, name, dim)})
    said = ", ".join(f"{field}={value}" for field, value in ((field, _get(model.config, field)) for field in fields))
    return (
        f"{checkpoint.path}: {', '.join(made.sources)} gives {name} the shape {shape}, but the configuration makes it "
        f"{expected}, by {said or 'its architecture'}. Check that the configuration is this checkpoint's own."
    )


def fields_behind(model: PreTrainedModel, name: str, dim: int) -> list[str]:
    """
    The fields of a configuration that decide one size of one tensor, found by changing each and looking.

    Args:
        model: one of [`empty_model`].
        name: of the tensor.
        dim: which of its dimensions.

    Returns:
        The fields' names, those of a part as `"text_config.hidden_size"`.
    """
    size = model.state_dict()[name].shape[dim]
    found = []
    for field in _sizes(model.config):
        for factor in (2, 0.5):
            config = copy.deepcopy(model.config)
            _set(config, field, int(_get(config, field) * factor))
            try:
                other = empty_model(type(model), config).state_dict()
            except (ValueError, RuntimeError, ZeroDivisionError):
                # Not every size goes with the others.
                continue
            if name in other and other[name].dim() > dim and other[name].shape[dim] != size:
                found.append(field)
            break
    return found


def _sizes(config: PreTrainedConfig, prefix: str = "") -> Iterator[str]:
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _sizes(value, f"{prefix}{name}.")
        elif type(value) is int and value > 1 and re.search(r"size|heads|dim|experts$|width|num_tokens", name):
            yield prefix + name


def _get(config: PreTrainedConfig, field: str) -> int:
    value: Any = config
    for name in field.split("."):
        value = getattr(value, name)
    return value


def _set(config: PreTrainedConfig, field: str, value: int) -> None:
    *parents, name = field.split(".")
    for parent in parents:
        config = getattr(config, parent)
    setattr(config, name, value)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def copy_files(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    """
    Takes files along that need no conversion, such as a tokenizer's.

    Args:
        source: the checkpoint's folder; of a file, nothing is taken.
        folder: where to.
        patterns: of the files' names.
    """
    for pattern in patterns:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
