"""The engine, through decoders that it converts: memory, interruption, bad input."""

import json
import multiprocessing
import os
import re
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_decoder

from mm1_hf import MM1TextForCausalLM
from mm1_hf.convert import checkpoint as reading
from mm1_hf.convert import convert_decoder, convert_llava, engine


@pytest.fixture
def source(tmp_path):
    tiny_decoder().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def rewrite(folder, change):
    """Changes the tensors of a saved model."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def weights_of(folder):
    return MM1TextForCausalLM.from_pretrained(folder).state_dict()


def test_shards_in_shards_out(source, tmp_path):
    convert_decoder(source, tmp_path / "whole")
    tiny_decoder().save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    convert_decoder(tmp_path / "shards", tmp_path / "converted", max_shard_size="50KB")
    files = sorted((tmp_path / "converted").glob("*.safetensors"))
    index = json.loads((tmp_path / "converted" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [file.name for file in files] and len(files) > 3
    # No file is larger than asked for, but where one tensor is.
    assert all(len(load_file(file)) == 1 or file.stat().st_size < 60_000 for file in files)
    expected = weights_of(tmp_path / "whole")
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(tmp_path / "converted").items())


def test_one_shard_at_a_time_is_read(source, tmp_path, monkeypatch):
    alive, most = [0], [0]
    save = engine.save_file
    read = reading.Checkpoint.read

    def counting_read(self, name, index=None):
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return read(self, name, index)

    def counting_save(tensors, path, **kwargs):
        save(tensors, path, **kwargs)
        alive[0] = 0

    monkeypatch.setattr(reading.Checkpoint, "read", counting_read)
    monkeypatch.setattr(engine, "save_file", counting_save)
    convert_decoder(source, tmp_path / "converted", max_shard_size="50KB")
    assert most[0] < len(load_file(source / "model.safetensors")) / 2


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda weights: weights.pop("model.norm.weight"), r"missing model\.norm\.weight\."),
        (lambda weights: weights.update({"model.extra": torch.ones(1)}), r"not used model\.extra\."),
        (
            lambda weights: weights.update({"model.layers.0.mlp.up_proj.weight": torch.ones(96, 64)}),
            r"\(96, 64\), but the configuration requires \(128, 64\), because of intermediate_size=128\.",
        ),
        (
            lambda weights: weights.update({"model.layers.0.self_attn.k_proj.weight": torch.ones(64, 64)}),
            r"\(64, 64\), but the configuration requires \(32, 64\), because of head_dim=16, num_key_value_heads=2\.",
        ),
        (
            lambda weights: weights.update({"model.embed_tokens.weight": torch.ones(300, 64)}),
            r"because of vocab_size=257\.",
        ),
    ],
)
def test_what_does_not_fit_is_named(source, tmp_path, change, message):
    rewrite(source, change)
    with pytest.raises(ValueError, match=message):
        convert_decoder(source, tmp_path / "converted")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_many_missing_tensors_are_counted(source, tmp_path):
    rewrite(source, lambda weights: [weights.pop(name) for name in list(weights) if "layers" in name])
    with pytest.raises(ValueError, match=r"missing (\S+, ){7}\S+ and 10 more"):
        convert_decoder(source, tmp_path / "converted")


def test_a_failure_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(engine, "write_configuration", fail)
    with pytest.raises(OSError, match="No space left"):
        convert_decoder(source, tmp_path / "converted")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def killed_conversion(source, output):
    engine.write_configuration = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
    convert_decoder(source, output)


def test_a_killed_conversion_leaves_nothing_that_looks_complete_and_can_be_repeated(source, tmp_path):
    output = tmp_path / "converted"
    # Forked, so that it does not have to import everything again.
    process = multiprocessing.get_context("fork").Process(target=killed_conversion, args=(source, output))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not output.exists()
    (rest,) = (path for path in tmp_path.iterdir() if path.name != "source")
    assert rest.name == ".converted.partial" and not (rest / "config.json").exists()
    convert_decoder(source, output)
    assert not rest.exists() and weights_of(output)


def test_nothing_is_written_over(source, tmp_path):
    (tmp_path / "converted").mkdir()
    convert_decoder(source, tmp_path / "converted")
    before = (tmp_path / "converted" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(ValueError, match="converted exists already"):
        convert_decoder(source, tmp_path / "converted")
    assert (tmp_path / "converted" / "model.safetensors").stat().st_mtime_ns == before


def test_pickles_are_read_only_where_asked_for_and_run_nothing(source, tmp_path):
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(weights, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle, .* allow_pickle=True or --allow-pickle"):
        convert_decoder(source, tmp_path / "converted")
    convert_decoder(source, tmp_path / "converted", allow_pickle=True)
    assert torch.equal(weights_of(tmp_path / "converted")["model.norm.weight"], weights["model.norm.weight"])

    torch.save({**weights, "evil": re.compile("a")}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin holds more than weights"):
        convert_decoder(source, tmp_path / "again", allow_pickle=True)


@pytest.mark.parametrize("convert", [convert_decoder, convert_llava])
def test_a_checkpoint_s_own_code_is_not_run(convert, source, tmp_path):
    (source / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        convert(source, tmp_path / "converted")
    assert not (tmp_path / "ran").exists()


def test_an_index_names_no_files_elsewhere(source, tmp_path):
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../model-00001-of-00001.safetensors"}})
    )
    with pytest.raises(ValueError, match=r"not in its folder: \.\./model"):
        convert_decoder(source, tmp_path / "converted")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(ValueError, match=r"shards that are missing: model-2\.safetensors"):
        convert_decoder(source, tmp_path / "converted")


def test_a_path_that_is_not_there_is_no_hub_id(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist\. Give a checkpoint's file"):
        convert_decoder(tmp_path / "nowhere", tmp_path / "converted")


def test_numpy_archives_are_read_with_jax_s_bfloat16(tmp_path):
    halves = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    arrays = {"a/b": np.ones((4, 2), np.float32), "half": halves.view(torch.uint16).numpy().view("V2")}
    np.savez(tmp_path / "weights.npz", **arrays)
    found = reading.Checkpoint(tmp_path / "weights.npz")
    assert {name: (tuple(found.meta(name).shape), found.meta(name).dtype) for name in found} == {
        "a/b": ((4, 2), torch.float32),
        "half": ((2, 3), torch.bfloat16),
    }
    assert torch.equal(found.read("half"), halves) and torch.equal(found.read("half", 1), halves[1])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
def test_one_layer_of_a_stack_is_read_alone(suffix, tmp_path):
    stack = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    path = tmp_path / f"weights{suffix}"
    if suffix == ".npz":
        np.savez(path, stack=stack.numpy(), turned=np.asfortranarray(stack.numpy()))
    elif suffix == ".pt":
        torch.save({"stack": stack, "turned": stack}, path)
    else:
        save_file({"stack": stack, "turned": stack.clone()}, path)
    found = reading.Checkpoint(path, allow_pickle=True)
    for index in range(4):
        assert torch.equal(found.read("stack", index), stack[index])
        assert torch.equal(found.read("turned", index), stack[index])
