"""Broken checkpoints of every kind that `mm1 convert` reads: a whole model, or a `ValueError` that names the file."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import PARTS, Tally, mutate, mutate_json, number_of_cases
from gguf_files import write_gguf
from safetensors.torch import load_file, save_file
from tiny import tiny_decoder

from mm1_hf.convert import convert_axlearn, convert_decoder, convert_gguf
from mm1_hf.convert.checkpoint import Checkpoint


KIND = "checkpoints"
SIZES = {"vocab_size": 5, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1}
CONFIGURATION = "config.json"


def read_all(path: Path) -> None:
    checkpoint = Checkpoint(path, allow_pickle=True)
    for name in checkpoint:
        assert tuple(checkpoint.read(name).shape) == tuple(checkpoint.meta(name).shape)


def axlearn_arrays() -> dict[str, np.ndarray]:
    """A decoder of one layer, 4 wide, with 2 heads."""
    below = "decoder/transformer/layer0"
    shapes = {
        "decoder/emb/token_emb/weight": (5, 4),
        f"{below}/self_attention/norm/scale": (4,),
        f"{below}/feed_forward/norm/scale": (4,),
        **{f"{below}/self_attention/attention/i_proj/i_proj/{name}_proj/weight": (4, 2, 2) for name in "qkv"},
        f"{below}/self_attention/attention/o_proj/weight": (4, 2, 2),
        **{f"{below}/feed_forward/{name}/weight": (4, 4) for name in ("linear1_0", "linear1_1", "linear2")},
        "decoder/output_norm/scale": (4,),
    }
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A small whole checkpoint of every kind."""
    folder = tmp_path_factory.mktemp("whole")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "eos_token_id": None}
    tiny_decoder(**SIZES, **heads).save_pretrained(folder / "decoder")
    weights = load_file(folder / "decoder" / "model.safetensors")
    torch.save(weights, folder / "weights.bin")
    torch.save(weights, folder / "old.bin", _use_new_zipfile_serialization=False)
    np.savez(folder / "weights.npz", **axlearn_arrays())
    np.savez_compressed(folder / "compressed.npz", **axlearn_arrays())
    write_gguf(folder / "weights.gguf", "F32")
    (folder / "shards").mkdir()
    for number, name in enumerate(weights):
        save_file({name: weights[name]}, folder / "shards" / f"{number}.safetensors")
    index = {"metadata": {}, "weight_map": {name: f"{number}.safetensors" for number, name in enumerate(weights)}}
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def broken(draw: random.Random, kind: str, source: Path, folder: Path) -> Path:
    """Writes a broken copy; returns the file that is broken."""
    if kind in ("index", "config"):
        path = folder / ("model.safetensors.index.json" if kind == "index" else CONFIGURATION)
        value = json.loads((source / ("shards" if kind == "index" else "decoder") / path.name).read_text())
        for _ in range(draw.randint(1, 3)):
            value = mutate_json(value, draw)
        text = json.dumps(value).encode()
        path.write_bytes(mutate(text, draw) if draw.random() < 0.2 else text)
        others = (
            (source / "shards").glob("*.safetensors") if kind == "index" else [source / "decoder/model.safetensors"]
        )
        for other in others:
            (folder / other.name).symlink_to(other)
        return path
    path = folder / {"safetensors": "model.safetensors"}.get(kind, kind)
    origin = source / "decoder" / "model.safetensors" if kind == "safetensors" else source / kind
    data = origin.read_bytes()
    if kind == "safetensors" and draw.random() < 0.5:
        length = int.from_bytes(data[:8], "little")
        header = json.dumps(mutate_json(json.loads(data[8 : 8 + length]), draw)).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    else:
        path.write_bytes(mutate(data, draw))
    return path


CONVERT = {
    "safetensors": lambda path, output: convert_decoder(path.parent, output),
    "config": lambda path, output: convert_decoder(path.parent, output),
    "index": lambda path, output: read_all(path.parent),
    "weights.bin": lambda path, output: read_all(path),
    "old.bin": lambda path, output: read_all(path),
    "weights.npz": lambda path, output: convert_axlearn(path, output),
    "compressed.npz": lambda path, output: convert_axlearn(path, output),
    "weights.gguf": lambda path, output: convert_gguf(path, output),
}
# A broken GGUF file that passes the check of its header is read by transformers, which takes a tenth of a second.
WEIGHTS = {kind: 1 if kind == "weights.gguf" else 2 for kind in CONVERT}


@pytest.mark.parametrize("part", range(PARTS))
def test_broken_checkpoints(part, whole, tmp_path, tally: Tally):
    for case in range(part, number_of_cases(KIND), PARTS):
        draw = random.Random(case)
        (kind,) = draw.choices([*WEIGHTS], [*WEIGHTS.values()])
        folder = tmp_path / str(case)
        folder.mkdir()
        if kind == "safetensors":
            (folder / CONFIGURATION).symlink_to(whole / "decoder" / CONFIGURATION)
        path = broken(draw, kind, whole, folder)
        output = folder / "converted"
        tally.run(
            f"case {case}, {kind}", lambda k=kind, p=path, o=output: CONVERT[k](p, o), names=str(folder), seconds=30
        )
        assert not (folder / ".converted.partial").exists()
        if output.exists():
            assert list(output.glob("*.safetensors")) and (output / CONFIGURATION).is_file(), f"case {case}, {kind}"
    assert tally.outcomes["ValueError"] > 0
