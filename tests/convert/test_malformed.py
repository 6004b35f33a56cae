"""Checkpoints that are damaged, or made to do harm: a `ValueError` that names the file, soon, and in little memory."""

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from safetensors.torch import load_file, save_file
from tiny import byte_tokenizer, tiny_decoder
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mm1_hf.cli import main
from mm1_hf.convert import (
    convert_aim,
    convert_axlearn,
    convert_decoder,
    convert_gguf,
    convert_honeybee,
    convert_open_clip,
)
from mm1_hf.convert.checkpoint import Checkpoint, read_json
from mm1_hf.convert.gguf_header import read_header


@pytest.fixture
def source(tmp_path):
    tiny_decoder().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def safetensors_bytes(entries: dict | str, data: bytes = b"") -> bytes:
    header = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(shape=(2,), dtype="F32", offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


EIGHT = bytes(8)
SAFETENSORS = {
    "empty": b"",
    "cut in its length": b"\x08\0",
    "cut in its header": safetensors_bytes({"a": entry()}, EIGHT)[:20],
    "cut in its values": safetensors_bytes({"a": entry()}, EIGHT[:4]),
    "more values than named": safetensors_bytes({"a": entry()}, 2 * EIGHT),
    "endless header": struct.pack("<Q", 1 << 60) + b"{}",
    "no JSON": safetensors_bytes("{", EIGHT),
    "a list": safetensors_bytes("[]", EIGHT),
    "nested": safetensors_bytes("[" * 100_000),
    "no UTF-8": struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
    "overlapping": safetensors_bytes({"a": entry(), "b": entry()}, EIGHT),
    "a gap": safetensors_bytes({"a": entry(), "b": entry(offsets=(16, 24))}, 3 * EIGHT),
    "backwards": safetensors_bytes({"a": entry(offsets=(8, 0))}, EIGHT),
    "shape for more": safetensors_bytes({"a": entry(shape=(3,))}, EIGHT),
    "endless shape": safetensors_bytes({"a": entry(shape=(1 << 62, 1 << 62))}, EIGHT),
    "negative shape": safetensors_bytes({"a": entry(shape=(-2,))}, EIGHT),
    "unknown dtype": safetensors_bytes({"a": entry(dtype="F33")}, EIGHT),
    "dtype of no torch": safetensors_bytes({"a": entry(dtype="F4", shape=(16,))}, EIGHT),
    "no dtype": safetensors_bytes({"a": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT),
    "twice": safetensors_bytes('{"a": %s, "a": %s}' % (2 * (json.dumps(entry()),)), EIGHT),
    "metadata of numbers": safetensors_bytes({"__metadata__": {"a": 1}, "a": entry()}, EIGHT),
    "metadata a list": safetensors_bytes({"__metadata__": [], "a": entry()}, EIGHT),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_malformed_safetensors(kind, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFETENSORS[kind])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Checkpoint(path)


def test_a_scalar_is_a_tensor(tmp_path):
    save_file({"a": torch.tensor(1.5)}, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).read("a").item() == 1.5


def npz(path, members: dict[str, bytes], **options) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def array(shape="(2,)", kind="<f4", data=EIGHT, order="False") -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + data


ARRAYS = {
    "no array": b"no array",
    "empty": b"",
    "cut in its header": array()[:30],
    "cut in its values": array(data=EIGHT[:4]),
    "more values than its shape": array(data=2 * EIGHT),
    "endless shape": array(shape="(1 << 62,)"),
    "large shape": array(shape="(4611686018427387904,)"),
    "negative shape": array(shape="(-2,)"),
    "a call in its header": array(shape="__import__('os').getcwd()"),
    "pickled": array(kind="|O"),
    "texts": array(kind="<U1"),
    "fields": array(kind=[("a", "<u2")], shape="(4,)"),
    "of bytes in another order": array(kind=">f4"),
    "endless header": b"\x93NUMPY\x02\0" + struct.pack("<I", 1 << 31),
    "nested header": array(shape="(" * 9000),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_malformed_arrays(kind, tmp_path):
    npz(tmp_path / "weights.npz", {"a.npy": ARRAYS[kind]})
    with pytest.raises(ValueError, match=r"weights\.npz"):
        Checkpoint(tmp_path / "weights.npz").read("a")


def test_malformed_archives(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, a=np.arange(100.0))
    whole = path.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    damaged = {
        "empty": b"",
        "no archive": b"PK no archive",
        "cut": whole[:-30],
        "damaged values": whole[:200] + bytes(40) + whole[240:],
        "encrypted": whole[: directory + 8] + b"\1" + whole[directory + 9 :],
    }
    for data in damaged.values():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"weights\.npz"):
            Checkpoint(path).read("a")
    npz(path, {"a.npy": array(), "notes.txt": b"hello"})
    with pytest.raises(ValueError, match=r"weights\.npz: notes\.txt is not an array"):
        Checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.npy", array())
        archive.writestr("a.npy", array())
    with pytest.raises(ValueError, match=r"weights\.npz holds the tensor a, which weights\.npz holds too"):
        Checkpoint(path)


def test_a_bomb_is_not_unpacked(tmp_path):
    """200 MB of zeros in 200 kB."""
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, a=np.zeros(50_000_000, np.float32))
    assert path.stat().st_size < 1 << 18
    with pytest.raises(ValueError, match=r"weights\.npz: a\.npy would be 200,000,128 bytes, more than 100 times"):
        Checkpoint(path)


def test_malformed_pickles(tmp_path):
    path = tmp_path / "weights.bin"
    weights = {"a": torch.ones(100)}
    for new in (True, False):
        torch.save(weights, path, _use_new_zipfile_serialization=new)
        whole = path.read_bytes()
        for data in (b"", b"no pickle", whole[: len(whole) // 2], whole[:100] + bytes(60) + whole[160:]):
            path.write_bytes(data)
            with pytest.raises(ValueError, match=r"weights\.bin"):
                Checkpoint(path, allow_pickle=True).read("a")
    for value in (
        [torch.ones(2)],
        torch.ones(2),
        5,
        {1: torch.ones(2)},
        {"a": torch.ones(2).to_sparse()},
        {"a": torch.ones(2, device="meta")},
        # 4 bytes that would be 4 TB.
        {"a": torch.ones(1).expand(1 << 40)},
    ):
        torch.save(value, path)
        with pytest.raises(ValueError, match=r"weights\.bin"):
            Checkpoint(path, allow_pickle=True).read("a")


INDEXES = {
    "no JSON": "{",
    "a list": "[]",
    "nested": "[" * 100_000,
    "empty": "{}",
    "no names": '{"weight_map": {}}',
    "a list of names": '{"weight_map": ["a.safetensors"]}',
    "numbers": '{"weight_map": {"a": 1}}',
    "nothing": '{"weight_map": null}',
    "elsewhere": '{"weight_map": {"a": "../model.safetensors"}}',
    "absolute": '{"weight_map": {"a": "/etc/hostname"}}',
    "the folder above": '{"weight_map": {"a": ".."}}',
    "no name": '{"weight_map": {"a": ""}}',
    "no name of a file": '{"weight_map": {"a": "a\\u0000b.safetensors"}}',
    "endless name": json.dumps({"weight_map": {"a": "a" * 5000}}),
    "itself": '{"weight_map": {"a": "model.safetensors.index.json"}}',
    "missing": '{"weight_map": {"a": "b.safetensors"}}',
    "no UTF-8": b'{"weight_map": {"\xff": 1}}',
    "endless number": '{"weight_map": {"a": ' + "9" * 10_000 + "}}",
}


@pytest.mark.parametrize("kind", INDEXES)
def test_malformed_indexes(kind, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(INDEXES[kind] if isinstance(INDEXES[kind], bytes) else INDEXES[kind].encode())
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        Checkpoint(tmp_path)


def test_of_two_shards_with_a_tensor_the_index_chooses(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "1.safetensors")
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    assert Checkpoint(tmp_path).read("a").item() == 0
    index.write_text(json.dumps({"weight_map": {"c": "1.safetensors", "b": "2.safetensors"}}))
    with pytest.raises(ValueError, match=r"2\.safetensors holds the tensor a, which 1\.safetensors holds too"):
        Checkpoint(tmp_path)


def test_a_description_has_a_size(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match=r"config\.json has 1,073,741,824 bytes"):
        read_json(tmp_path / "config.json")


CONFIGURATIONS = {
    "a list": [],
    "a text": "llama",
    "no kind": {"model_type": None},
    "a kind of another type": {"model_type": ["llama"]},
    "an unknown kind": {"model_type": "nothing"},
    "a text for a number": {"hidden_size": "64"},
    "a negative size": {"hidden_size": -64},
    "no size": {"hidden_size": 0},
    "an endless size": {"hidden_size": 1 << 60},
    "no heads": {"num_attention_heads": 0},
    "no vocabulary": {"vocab_size": None},
    "endlessly many layers": {"num_hidden_layers": 1 << 40},
    "too many layers": {"num_hidden_layers": 5000},
    "half a layer": {"num_hidden_layers": 1.5},
    "an unknown activation": {"hidden_act": "nothing"},
    "positions of a list": {"rope_parameters": [1]},
    "unknown positions": {"rope_parameters": {"rope_type": "nothing", "rope_theta": 1.0}},
    "layers of a number": {"layer_types": 5},
    "a padding token elsewhere": {"pad_token_id": 1 << 30},
    "an unknown dtype": {"dtype": "nothing"},
    "not a number": {"rms_norm_eps": "a"},
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_malformed_configurations(kind, source, tmp_path, capsys):
    path = source / "config.json"
    change = CONFIGURATIONS[kind]
    path.write_text(json.dumps({**json.loads(path.read_text()), **change} if isinstance(change, dict) else change))
    assert main(["convert", "decoder", str(source), str(tmp_path / "converted")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("mm1 convert: ") and "config.json" in said[0], said
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_weights_of_whole_numbers_are_refused(source, tmp_path):
    path = source / "model.safetensors"
    save_file({name: weight.to(torch.int32) for name, weight in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"source: model\.\S+ has the dtype torch\.int32, but weights are"):
        convert_decoder(source, tmp_path / "converted")


def test_a_configuration_of_a_deep_model_is_refused_soon(source, tmp_path):
    """The fields behind a wrong shape are not looked for in a model that takes seconds to build."""
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 300}))
    with pytest.raises(ValueError, match=r"missing model\.layers\.2\."):
        convert_decoder(source, tmp_path / "converted")


PATCHES, WIDENING = "preprocessor.patchifier.proj.weight", "trunk.blocks.0.mlp.fc1.weight"
EMBEDDING, LAYERS = "decoder/emb/token_emb/weight", "decoder/transformer"
SHAPES = {
    "aim flat": (convert_aim, {PATCHES: (2,), WIDENING: (2,)}),
    "aim without a number": (convert_aim, {PATCHES: (1, 1, 1, 1), WIDENING: (1,), "trunk.blocks.x.a": (1,)}),
    "aim without layers": (convert_aim, {PATCHES: (1, 0, 0, 0), WIDENING: (0,)}),
    "axlearn flat": (convert_axlearn, {EMBEDDING: (2,), f"{LAYERS}/layer0/self_attention/norm/scale": (1,)}),
    "axlearn scalar": (convert_axlearn, {EMBEDDING: (2, 2), f"{LAYERS}/repeat/layer/self_attention/norm/scale": ()}),
    # Layers without values take no place in the file.
    "axlearn endless": (
        convert_axlearn,
        {EMBEDDING: (2, 0), f"{LAYERS}/repeat/layer/self_attention/norm/scale": (1 << 40, 0)},
    ),
    "honeybee flat": (convert_honeybee, {"abstractor.pos_emb": (2,), "abstractor.readout.2.weight": (2,)}),
    "honeybee empty": (convert_honeybee, {"abstractor.pos_emb": (1, 0, 0), "abstractor.readout.2.weight": (0, 0)}),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_malformed_shapes(kind, tmp_path):
    convert, shapes = SHAPES[kind]
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors"):
        convert(tmp_path / "weights.safetensors", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_malformed_descriptions_of_open_clip(tmp_path):
    save_file({"visual.conv1.weight": torch.ones(1)}, tmp_path / "open_clip_model.safetensors")
    for described in (
        [],
        {},
        {"model_cfg": []},
        {"model_cfg": {"vision_cfg": None}},
        {"model_cfg": {"embed_dim": 4, "vision_cfg": {"width": "a"}}},
    ):
        (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
        with pytest.raises(ValueError, match=r"open_clip_config\.json"):
            convert_open_clip(tmp_path, tmp_path / "converted")


def gguf_bytes(entries=(), tensors=(), data=b"", counts=None, version=3) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    names = [text(name) + struct.pack("<I", kind) + value for name, kind, value in entries]
    infos = [
        text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        for name, shape, kind, offset in tensors
    ]
    tensor_count, entry_count = counts or (len(infos), len(names))
    header = b"GGUF" + struct.pack("<IQQ", version, tensor_count, entry_count) + b"".join(names + infos)
    return header + bytes(-len(header) % 32) + data


def counted(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


GGUF = {
    "empty": b"",
    "another magic": b"GGML" + bytes(20),
    "an old version": gguf_bytes(version=1),
    "other bytes' order": b"GGUF\0\0\0\3" + bytes(16),
    "endlessly many values": gguf_bytes(counts=(0, 1 << 60)),
    "endlessly many tensors": gguf_bytes(counts=(1 << 60, 0)),
    "more values than there are": gguf_bytes(counts=(0, 3)),
    "an endless text": gguf_bytes([("a", 8, struct.pack("<Q", 1 << 60))]),
    "no UTF-8": gguf_bytes([("a", 8, struct.pack("<Q", 1) + b"\xff")]),
    "an endless array": gguf_bytes([("a", 9, counted(4, 1 << 60))]),
    "an array of more than the file": gguf_bytes([("a", 9, counted(4, 1 << 20))]),
    "arrays of arrays": gguf_bytes([("a", 9, counted(9, 1, counted(9, 1, counted(4, 0))))]),
    "an unknown type of value": gguf_bytes([("a", 77, b"")]),
    "a value twice": gguf_bytes([("a", 4, bytes(4)), ("a", 4, bytes(4))]),
    "no alignment": gguf_bytes([("general.alignment", 4, bytes(4))]),
    "an alignment of text": gguf_bytes([("general.alignment", 8, bytes(8))]),
    "no dimensions": gguf_bytes(tensors=[("a", (), 0, 0)], data=bytes(32)),
    "many dimensions": gguf_bytes(tensors=[("a", (1,) * 60, 0, 0)], data=bytes(32)),
    "a shape of nothing": gguf_bytes(tensors=[("a", (0,), 0, 0)], data=bytes(32)),
    "an endless shape": gguf_bytes(tensors=[("a", (1 << 62, 1 << 62), 0, 0)], data=bytes(32)),
    "a shape for more": gguf_bytes(tensors=[("a", (9,), 0, 0)], data=bytes(32)),
    "half a block": gguf_bytes(tensors=[("a", (8,), 8, 0)], data=bytes(32)),
    "an unknown type of tensor": gguf_bytes(tensors=[("a", (8,), 99, 0)], data=bytes(32)),
    "outside the file": gguf_bytes(tensors=[("a", (8,), 0, 1 << 40)], data=bytes(32)),
    "at an odd place": gguf_bytes(tensors=[("a", (2,), 0, 4)], data=bytes(32)),
    "overlapping": gguf_bytes(tensors=[("a", (8,), 0, 0), ("b", (8,), 0, 0)], data=bytes(32)),
    "a tensor twice": gguf_bytes(tensors=[("a", (8,), 0, 0), ("a", (8,), 0, 32)], data=bytes(64)),
    "no kind of decoder": gguf_bytes(tensors=[("a", (8,), 0, 0)], data=bytes(32)),
    "an unknown kind of decoder": gguf_bytes([("general.architecture", 8, struct.pack("<Q", 1) + b"x")]),
    "endlessly many layers": gguf_bytes([("llama.block_count", 4, b"\xff\xff\xff\xff")]),
    "layers of text": gguf_bytes([("llama.block_count", 8, bytes(8))]),
}  # fmt: skip


@pytest.mark.parametrize("kind", GGUF)
def test_malformed_gguf_files(kind, tmp_path):
    path = tmp_path / "weights.gguf"
    path.write_bytes(GGUF[kind])
    with pytest.raises(ValueError, match=r"weights\.gguf"):
        convert_gguf(path, tmp_path / "converted")
    assert [each.name for each in tmp_path.iterdir()] == ["weights.gguf"]


def test_the_header_of_a_gguf_file(tmp_path):
    tensors = write_gguf(tmp_path / "weights.gguf", "Q8_0")
    header = read_header(tmp_path / "weights.gguf")
    assert header.values["llama.block_count"] == 1 and header.values["general.architecture"] == "llama"
    assert header.elements == sum(tensor.size for tensor in tensors.values())


@pytest.mark.parametrize("name", ["feed_forward_length", "embedding_length", "vocab_size", "block_count"])
def test_a_gguf_file_holds_the_weights_that_it_describes(name, tmp_path):
    """transformers would make up what is missing, in any size."""
    path = tmp_path / "weights.gguf"
    write_gguf(path, "F32")
    data = bytearray(path.read_bytes())
    place = data.index(f"llama.{name}".encode()) + len(f"llama.{name}") + 4
    data[place : place + 4] = struct.pack("<I", 400 if name == "block_count" else 1 << 30)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"weights\.gguf.*(describe a decoder of|cannot be|does not describe)"):
        convert_gguf(path, tmp_path / "converted")


def llava_folder(folder):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=28, patch_size=14)
    text = LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=258)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=257)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "name, change",
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": [[1]]}}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"tokenizer_class": 5}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": 5}'),
        ("preprocessor_config.json", "[]"),
        ("preprocessor_config.json", '{"image_processor_type": "CLIPImageProcessorPil", "image_mean": "a"}'),
        ("generation_config.json", "[]"),
        ("generation_config.json", "nothing"),
        ("chat_template.jinja", b"\xff\xff"),
        ("config.json", '{"model_type": "llava", "vision_config": 5}'),
        ("config.json", '{"model_type": "llava", "text_config": {"model_type": "nothing"}}'),
    ],
)
def test_malformed_files_beside_the_weights(name, change, tmp_path, capsys):
    folder = llava_folder(tmp_path / "llava")
    capsys.readouterr()
    (folder / name).write_bytes(change if isinstance(change, bytes) else change.encode())
    assert main(["convert", "llava", str(folder), str(tmp_path / "converted")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("mm1 convert: ") and (name in said or "tokenizer_config.json" in said)
    assert [each.name for each in tmp_path.iterdir()] == ["llava"]
