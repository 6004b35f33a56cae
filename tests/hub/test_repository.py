"""What may not reach the Hub, and what is said about it."""

import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import byte_tokenizer

from mm1_hf.hub.repository import read_repository


NORM = "model.language_model.norm.weight"


def edit(path, **changes):
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | changes), encoding="utf-8")


def other_code(folder):
    edit(folder / "config.json", auto_map={"AutoModel": "someone/else--modeling.Model"})


def code_of_a_part(folder):
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    edit(
        folder / "config.json", vision_config=values["vision_config"] | {"auto_map": {"AutoModel": "encoder.Encoder"}}
    )


def no_code(folder):
    edit(folder / "config.json", auto_map={})


def pickled_weights(folder):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def missing_shard(folder):
    next(folder.glob("*.safetensors")).unlink()


def cut_shard(folder):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def change_weights(folder, change):
    """Of the shard that has the decoder's last norm."""
    name = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"][NORM]
    weights = load_file(folder / name)
    change(weights)
    save_file(weights, folder / name, metadata={"format": "pt"})


def missing_tensor(folder):
    change_weights(folder, lambda weights: weights.pop(NORM))


def surplus_tensor(folder):
    change_weights(folder, lambda weights: weights.update(moments=torch.ones(3)))


def other_shape(folder):
    change_weights(folder, lambda weights: weights.update({NORM: torch.ones(3)}))


def other_model(folder):
    edit(folder / "config.json", model_type="llava")


def no_processor(folder):
    (folder / "processor_config.json").unlink()


def other_tokens(folder):
    edit(folder / "processor_config.json", num_image_tokens=9)


def other_tokenizer(folder):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(300)])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)


def broken_settings(folder):
    (folder / "config.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (other_code, "someone/else--modeling.Model"),
        (code_of_a_part, "encoder.Encoder"),
        (no_code, "AutoConfig"),
        (pickled_weights, "no safetensors"),
        (missing_shard, r"names files that .* does not hold: model-0000\d"),
        (cut_shard, "are broken"),
        (missing_tensor, r"lack the tensors model\.language_model\.norm\.weight"),
        (surplus_tensor, "contain tensors that the model does not have: moments"),
        (other_shape, r"model\.language_model\.norm\.weight \(3,\), not \(64,\)"),
        (other_model, "'llava'"),
        (other_tokens, "num_image_tokens is 9, but the model's connector_config.num_tokens is 4"),
        (other_tokenizer, "image_token_id|embeddings"),
        (broken_settings, "not valid JSON"),
    ],
)
def test_what_does_not_fit_is_named(spoil, told, saved):
    spoil(saved[0])
    with pytest.raises(ValueError, match=told):
        read_repository(saved[0])


def test_a_model_without_its_processor_is_refused(saved):
    no_processor(saved[0])
    with pytest.raises((ValueError, OSError), match="process"):
        read_repository(saved[0])


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither config\.json nor adapter_config\.json"):
        read_repository(tmp_path)


def test_what_training_leaves_is_left_out(saved):
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "pytorch_model.bin"):
        (saved[0] / name).write_bytes(b"")
    assert read_repository(saved[0]).left_out == (
        "optimizer.pt",
        "pytorch_model.bin",
        "rng_state.pth",
        "training_args.bin",
    )


@pytest.mark.parametrize(
    "name", ["LICENSE", "NOTICE", "README.md", "merges.txt", "tokenizer.model", "generation_config.json"]
)
@pytest.mark.parametrize("to_folder", [False, True])
def test_no_link_leads_outside(name, to_folder, saved, tmp_path):
    outside = tmp_path / "secret"
    if to_folder:
        outside.mkdir()
    else:
        outside.write_text("a secret", encoding="utf-8")
    (saved[0] / name).unlink(missing_ok=True)
    (saved[0] / name).symlink_to(outside)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is a link to .*secret, outside of the folder"):
        read_repository(saved[0])


def test_links_inside_are_followed_to_the_files_that_were_checked(saved):
    folder = saved[0]
    (folder / "licence.txt").write_text("A licence.", encoding="utf-8")
    (folder / "LICENSE").symlink_to("licence.txt")
    assert read_repository(folder).files["LICENSE"] == folder.resolve() / "licence.txt"


def test_the_hubs_cache_is_made_of_links(saved, tmp_path):
    snapshot, blobs = tmp_path / "models--user--name" / "snapshots" / "abc", tmp_path / "models--user--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(path for path in saved[0].iterdir() if path.is_file()):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    files = read_repository(snapshot).files
    assert files["config.json"].parent == blobs.resolve()
    # Another model's contents are none of this one's.
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "private").write_text("a secret", encoding="utf-8")
    (snapshot / "LICENSE").symlink_to("../../../blobs/private")
    with pytest.raises(ValueError, match="outside of the folder"):
        read_repository(snapshot)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["LICENSE", "notes", "additional_chat_templates/a.jinja"])
def test_what_never_ends_is_not_opened(name, saved):
    (saved[0] / name).parent.mkdir(exist_ok=True)
    os.mkfifo(saved[0] / name)
    with pytest.raises(ValueError, match=r"is neither a file nor a folder\. Remove it\."):
        read_repository(saved[0])


@pytest.mark.parametrize(
    ("shards", "reason"),
    [
        ({"a": "../x.safetensors"}, "weights must be"),
        ({"a": "/x.safetensors"}, "weights must be"),
        ({"a": "part/x.safetensors"}, "weights must be"),
        ({"a": "model.bin"}, "weights must be"),
        ({"a": 5}, "weights must be"),
        ({}, "names no weights"),
        (["x.safetensors"], "names no weights"),
    ],
)
def test_shards_lie_in_the_folder(shards, reason, saved):
    folder = saved[0]
    (folder.parent / "x.safetensors").write_bytes((folder / "model-00001-of-00003.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        read_repository(folder)


@pytest.mark.parametrize("content", ["[1]", "5", "[" * 100_000, "{", '{"model_type": []}'])
@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_configuration_is_an_object(content, name, saved):
    (saved[0] / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name}|holds a model of type"):
        read_repository(saved[0])
