"""Converts Honeybee's C-Abstractor, whose blocks are timm's RegNet stages, to MM1's `c_abstractor` connector."""

from os import PathLike
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.modeling_utils import PreTrainedModel

from mm1_hf.convert.checkpoint import Checkpoint, naming, source_folder
from mm1_hf.convert.engine import Made, empty_model, expand, new_folder, target_names, write_model
from mm1_hf.model.configuration_mm1 import MM1ConnectorConfig
from mm1_hf.model.connectors import build_connector
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration, MM1Model


_PREFIX = "abstractor."
_POSITIONS = f"{_PREFIX}pos_emb"
_READOUT = f"{_PREFIX}readout.2.weight"
# Parts of tensor names that only the D-Abstractor has, which uses deformable attention.
_DEFORMABLE = ("sampling_offsets", "reference_points")


class _Connector(PreTrainedModel):
    """A connector without the rest of the model, used for the names and shapes of its weights."""

    config: MM1ConnectorConfig

    def __init__(self, config: MM1ConnectorConfig):
        super().__init__(config)
        self.connector = build_connector(config)
        self.post_init()


def _blocks(stage: str, net: int) -> dict[str, str]:
    ours, theirs = f"connector.{stage}.#", f"{_PREFIX}net.{net}.b#"
    table = {
        f"{ours}.squeeze_excite.{name}.{kind}": f"{theirs}.se.{layer}.{kind}"
        for name, layer in (("reduce", "fc1"), ("expand", "fc2"))
        for kind in ("weight", "bias")
    }
    for name, layer in (("conv1", "conv1"), ("conv2", "conv2"), ("conv3", "conv3"), ("shortcut", "downsample")):
        table[f"{ours}.{name}.conv.weight"] = f"{theirs}.{layer}.conv.weight"
        table[f"{ours}.{name}.norm.weight"] = f"{theirs}.{layer}.bn.weight"
        table[f"{ours}.{name}.norm.bias"] = f"{theirs}.{layer}.bn.bias"
    return table


_TABLE = {
    **_blocks("stage1", 0),
    **_blocks("stage2", 2),
    **{f"connector.readout.#.{kind}": f"{_PREFIX}readout.#.{kind}" for kind in ("weight", "bias")},
}


def convert_honeybee(
    source: str | PathLike,
    output: str | PathLike,
    *,
    num_tokens: int = 144,
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
) -> None:
    """
    Converts the C-Abstractor of a Honeybee model to a connector, which [`load_connector`] loads into an MM1.

    Args:
        source: file, folder or Hub id of the whole Honeybee model, or of its abstractor alone.
        output: folder to write. It must not exist yet, or be empty.
        num_tokens: number of tokens that the connector makes of a tile, which cannot be read from the weights.
        dtype: dtype of the written weights; unset, the dtype in the checkpoint.
        allow_pickle: whether to read pickled weights.

    Raises:
        ValueError: the checkpoint holds another kind of abstractor, or a C-Abstractor with parts that MM1's connector
            does not have.
    """
    checkpoint = Checkpoint(source_folder(source, ["*.bin"] if allow_pickle else []), allow_pickle=allow_pickle)
    with naming(checkpoint.path):
        config = _configuration(checkpoint, num_tokens)
        model = empty_model(_Connector, config)
    targets = target_names(model)
    plan = expand(_TABLE, [name for name in targets if name != "connector.position_embedding"])
    # timm numbers its blocks from 1, MM1 from 0.
    plan = {name: Made(tuple(map(_from_one, made.sources)), made.make) for name, made in plan.items()}
    # Early versions of Honeybee have a first position for the class token, which is not part of the grid.
    plan["connector.position_embedding"] = Made((_POSITIONS,), lambda table: table[:, -(config.grid_size**2) :])
    with new_folder(output) as partial:
        write_model(partial, model, plan, checkpoint, unused=[rf"^(?!{_PREFIX})"], dtype=dtype)


def load_connector(model: MM1Model | MM1ForConditionalGeneration, folder: str | PathLike) -> None:
    """
    Loads a converted connector into a model.

    Args:
        model: model whose connector has the same sizes as the converted one.
        folder: folder or Hub id of a connector that [`convert_honeybee`] wrote.

    Raises:
        ValueError: the sizes of the two connectors differ, or the folder does not hold a connector.
    """
    path = source_folder(folder)
    with naming(path / "config.json"):
        given = MM1ConnectorConfig.from_pretrained(path)
    own = model.config.connector_config
    names = (
        "connector_type",
        "num_tokens",
        "depth",
        "hidden_size",
        "vision_hidden_size",
        "text_hidden_size",
        "grid_size",
    )
    differing = [name for name in names if getattr(own, name) != getattr(given, name)]
    if differing:
        said = ", ".join(
            f"{name} is {getattr(given, name)} in the checkpoint and {getattr(own, name)} in the model"
            for name in differing
        )
        raise ValueError(
            f"The connector in {folder} does not fit this model: {said}. Assemble the model with the connector's "
            "sizes."
        )
    connector = model.get_submodule("connector" if isinstance(model, MM1Model) else "model.connector")
    with naming(path / "model.safetensors"):
        weights = load_file(path / "model.safetensors")
        connector.load_state_dict({name.removeprefix("connector."): weight for name, weight in weights.items()})


def _from_one(name: str) -> str:
    before, found, after = name.partition(".b")
    number, dot, rest = after.partition(".")
    return f"{before}.b{int(number) + 1}.{rest}" if found and dot and number.isdigit() else name


def _configuration(checkpoint: Checkpoint, num_tokens: int) -> MM1ConnectorConfig:
    if any(part in name for name in checkpoint for part in _DEFORMABLE):
        raise ValueError(
            f"{checkpoint.path} holds Honeybee's D-Abstractor (deformable attention), which MM1 does not have. Use a "
            "model with a C-Abstractor."
        )
    for part in ("eos_tokens", "prenorm"):
        if any(name.startswith(f"{_PREFIX}{part}") for name in checkpoint):
            raise ValueError(f"{checkpoint.path}: this abstractor has {part}, which MM1's connector does not support.")
    for name in (_POSITIONS, _READOUT):
        if name not in checkpoint:
            raise ValueError(
                f"{checkpoint.path} does not hold a C-Abstractor of Honeybee: it has no {name}. Give a Honeybee model "
                "with a C-Abstractor."
            )
    positions, width = checkpoint.meta(_POSITIONS).shape[1:]
    first = f"{_PREFIX}net.0.b1.conv1.conv.weight"
    blocks = {name.split(".")[3] for name in checkpoint if name.startswith(f"{_PREFIX}net.0.")}
    # A connector of depth 0 has no convolutions, and so no hidden size.
    sizes: dict[str, Any] = {"hidden_size": checkpoint.meta(first).shape[0]} if first in checkpoint else {}
    return MM1ConnectorConfig(
        connector_type="c_abstractor",
        num_tokens=num_tokens,
        depth=len(blocks),
        vision_hidden_size=width,
        text_hidden_size=checkpoint.meta(_READOUT).shape[0],
        grid_size=int(positions**0.5),
        **sizes,
    )
