"""Writes a model with the weights of a foreign checkpoint, shard by shard. At most one shard is in memory. Nothing is
written before all names and shapes have been checked, and a conversion that fails leaves no folder that looks
complete."""

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

# Maximum number of tensor names that an error message lists.
_LISTED = 8
# What a configuration may ask for. Every layer is an object, so that a wrong number would take hours. The deepest
# published decoder has 126 layers.
MAX_LAYERS = 512
_MAX_COUNTS = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "depth"), MAX_LAYERS),
    **dict.fromkeys(("num_experts", "num_local_experts"), 4096),
}
# For models with more tensors, an error does not say which fields of the configuration decide the shape of a tensor.
# To find them, the model is built anew for each field.
_MAX_PROBED_TENSORS = 1500


@dataclass(frozen=True)
class Made:
    """
    How one tensor of the model is made from tensors of the checkpoint.

    Args:
        sources: names of the tensors in the checkpoint. In a table for [`expand`], each `#` stands for a number in the
            target's name, in order.
        make: function that computes the target tensor from the source tensors. It is first called with tensors on the
            meta device, to check the shapes.
        index: index into the first dimension of the sources, if they hold all layers stacked; unset, the sources are
            read whole.
    """

    sources: tuple[str, ...]
    make: Callable[..., torch.Tensor]
    index: int | None = None


Table = Mapping[str, str | Made]


def expand(table: Table, targets: Iterable[str]) -> dict[str, Made]:
    """
    Maps the name of every tensor of a model to how the tensor is made.

    Args:
        table: maps patterns of target names, in which `#` stands for a number, to how these tensors are made. A plain
            name means that the tensor of this name in the checkpoint is used unchanged.
        targets: names of the model's tensors.

    Raises:
        ValueError: the table has no entry for a tensor.
    """
    plan, unmatched = {}, []
    for target in targets:
        numbers = re.findall(r"(?<=\.)\d+(?=\.)", target)
        entry = table.get(re.sub(r"(?<=\.)\d+(?=\.)", "#", target))
        if entry is None:
            unmatched.append(target)
            continue
        made = entry if isinstance(entry, Made) else Made((entry,), _unchanged)
        plan[target] = replace(made, sources=tuple(_fill(name, numbers) for name in made.sources))
    if unmatched:
        raise ValueError(
            f"This kind of checkpoint has no weights for the tensors {_listed(unmatched)} of the model. Check the "
            "configuration."
        )
    return plan


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _fill(pattern: str, numbers: Sequence[str]) -> str:
    first, *rest = pattern.split("#")
    return first + "".join(number + part for number, part in zip(numbers, rest, strict=False))


def part_of(index: int, parts: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    Returns a function that extracts one part of a fused projection, which holds equal parts along its first dimension.

    Args:
        index: index of the part, counted from 0.
        parts: number of parts in the projection.
    """
    return lambda fused: fused.chunk(parts)[index]


def rows_of(start: int, stop: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    Returns a function that extracts a range of a tensor's rows.

    Args:
        start: index of the first row.
        stop: index of the row after the last one.
    """
    return lambda fused: fused[start:stop]


def empty_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """
    Builds a model on the meta device: its tensors have names and shapes, but no values.

    Args:
        model_class: class of the model.
        config: configuration of the model.

    Raises:
        ValueError: the configuration describes a model with implausibly many layers or experts, or none that can be
            built.
    """
    for field, count in _counts(config):
        name = field.rpartition(".")[2]
        if count > _MAX_COUNTS[name]:
            raise ValueError(
                f"The configuration describes a model with {field}={count}; at most {_MAX_COUNTS[name]} can be "
                "converted. Check that it is the configuration of this checkpoint."
            )
    try:
        with torch.device("meta"):
            return model_class(config)
    except Exception as error:
        raise ValueError(
            f"The configuration does not describe a {model_class.__name__} that can be built. The error was "
            f"{type(error).__name__}: {error}"
        ) from error


def _counts(config: PreTrainedConfig, prefix: str = "") -> Iterator[tuple[str, int]]:
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _counts(value, f"{prefix}{name}.")
        elif name in _MAX_COUNTS and isinstance(value, int):
            yield prefix + name, value


def target_names(model: PreTrainedModel) -> list[str]:
    """
    Names of the tensors that a checkpoint of the model holds. Tensors that are tied to another one are not listed.

    Args:
        model: a model with or without weights.
    """
    return [name for name in model.state_dict() if name not in model.all_tied_weights_keys]


@contextmanager
def new_folder(output: str | PathLike) -> Generator[Path]:
    """
    Context manager for writing a folder that appears under its name only after everything in it has been written.

    Args:
        output: folder to write. It must not exist yet, or be empty.

    Raises:
        ValueError: `output` is a file or a folder with files in it.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists already. Give a folder that does not exist yet, or remove this one.")
    # In the same parent folder, because moving it from another disk would not be atomic.
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
    Writes a model in the format of `save_pretrained`, with the weights of a checkpoint.

    Args:
        folder: folder to write to, which must exist.
        model: the model, from [`empty_model`].
        plan: how each tensor of the model is made, for example from [`expand`].
        checkpoint: checkpoint from which the tensors are read.
        unused: regular expressions for names in the checkpoint that are deliberately not converted.
        dtype: dtype of the written weights; unset, the dtype in the checkpoint.
        max_shard_size: maximum size of a written file, in bytes or as in `"1GB"`. It also bounds the memory that is
            needed. A larger tensor gets a file to itself.

    Raises:
        ValueError: the checkpoint lacks tensors, has tensors that nothing uses, or has tensors of the wrong shape.
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
                # A view of a larger tensor would keep the whole larger tensor in memory.
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
    Writes the files that belong beside a model's weights: its configuration, its generation configuration and, for a
    model class of this package, its source code.

    Args:
        folder: folder to write to, which must exist.
        model: a model with or without weights.
        dtype: dtype of the weights.
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
    Checks whether a checkpoint has the tensors that a model needs. Only names and shapes are compared.

    Args:
        model: the model, from [`empty_model`].
        plan: how each tensor of the model is made.
        checkpoint: checkpoint from which the tensors would be read.
        unused: regular expressions for names in the checkpoint that are deliberately not converted.

    Returns:
        The tensors that would be written, by name, on the meta device.

    Raises:
        ValueError: the checkpoint lacks tensors, has tensors that nothing uses, or has tensors of the wrong shape.
    """
    used = dict.fromkeys(name for made in plan.values() for name in made.sources)
    missing = [name for name in used if name not in checkpoint]
    skipped = re.compile("|".join(unused)) if unused else None
    surplus = [name for name in checkpoint if name not in used and not (skipped and skipped.search(name))]
    problems = [f"{kind} {_listed(names)}" for kind, names in (("missing", missing), ("not used", surplus)) if names]
    if problems:
        raise ValueError(
            f"{checkpoint.path} does not hold exactly the tensors of this model: {'; '.join(problems)}. Check that "
            "the configuration beside the checkpoint belongs to it."
        )
    metas, expected = {}, model.state_dict()
    for name, made in plan.items():
        sources = [checkpoint.meta(source) for source in made.sources]
        try:
            metas[name] = made.make(*(meta if made.index is None else meta[made.index] for meta in sources))
        except Exception as error:
            shapes = ", ".join(
                f"{source} {tuple(meta.shape)}" for source, meta in zip(made.sources, sources, strict=True)
            )
            raise ValueError(f"{checkpoint.path}: {name} cannot be made from {shapes}: {error}") from error
        if expected[name].is_floating_point() and not metas[name].is_floating_point():
            raise ValueError(
                f"{checkpoint.path}: {', '.join(made.sources)} has the dtype {metas[name].dtype}, but weights are "
                "floating-point numbers. Use a checkpoint that is not quantised."
            )
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
        f"{checkpoint.path}: {', '.join(made.sources)} gives {name} the shape {shape}, but the configuration requires "
        f"{expected}, because of {said or 'its architecture'}. Check that the configuration belongs to this "
        "checkpoint."
    )


def fields_behind(model: PreTrainedModel, name: str, dim: int) -> list[str]:
    """
    Finds the fields of a configuration that decide the size of one dimension of one tensor. Each field is changed in
    turn, to see whether the size changes.

    Args:
        model: the model, from [`empty_model`].
        name: name of the tensor.
        dim: index of the dimension.

    Returns:
        The names of the fields, none for very large models. A field of a part's configuration is named as in
        `"text_config.hidden_size"`.
    """
    weights = model.state_dict()
    size = weights[name].shape[dim]
    found: list[str] = []
    if len(weights) > _MAX_PROBED_TENSORS:
        return found
    for field in _sizes(model.config):
        for factor in (2, 0.5):
            config = copy.deepcopy(model.config)
            _set(config, field, int(_get(config, field) * factor))
            try:
                other = empty_model(type(model), config).state_dict()
            except Exception:
                # The changed value may not be compatible with the other fields.
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
    Copies files that need no conversion, such as those of a tokenizer.

    Args:
        source: folder of the checkpoint; if it is a file, nothing is copied.
        folder: folder to copy to.
        patterns: glob patterns of the names of the files.
    """
    for pattern in patterns:
        for file in filter(Path.is_file, source.glob(pattern)):
            shutil.copyfile(file, folder / file.name)
