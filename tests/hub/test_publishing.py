"""What `push` puts on a Hub, and what it leaves alone when something goes wrong."""

import json
import re

import huggingface_hub.constants as hub_constants
import pytest
from hub_server import Fault
from huggingface_hub.errors import HfHubHTTPError

from mm1_hf.cli import main
from mm1_hf.hub.card import CardDetails
from mm1_hf.hub.publishing import push
from mm1_hf.registration import MODEL_FILES


NAME = "someone/tiny"


def test_a_push_is_one_commit_with_all_that_loading_needs(hub, saved):
    folder, *_ = saved
    (folder / "optimizer.pt").write_bytes(b"moments")
    (folder / "checkpoint-1").mkdir()
    commit = push(folder, NAME)
    repository = hub.repositories[NAME]
    assert [oid for oid, _ in repository.commits[1:]] == [commit.oid]
    expected = {path.name for path in folder.iterdir()} - {"optimizer.pt", "checkpoint-1"} | {"README.md"}
    assert set(repository.files) == expected >= {*MODEL_FILES, "chat_template.jinja", "generation_config.json"}
    for name in expected - {"README.md"}:
        assert repository.files[name] == (folder / name).read_bytes(), name
    assert sum(name.endswith(".safetensors") for name in expected) > 1


def test_the_card_of_the_folder_is_kept(hub, saved):
    folder, *_ = saved
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is a finished card"):
        push(folder, NAME, details=CardDetails())
    assert not hub.requests
    push(folder, NAME)
    assert hub.repositories[NAME].files["README.md"].endswith(b"Mine.\n")


def test_pushing_again_sends_what_is_new_and_removes_old_shards(hub, saved):
    folder, model, _ = saved
    push(folder, NAME)
    shards = {path.name for path in folder.glob("*.safetensors")}
    for name in shards | {"model.safetensors.index.json"}:
        (folder / name).unlink()
    model.save_pretrained(folder)
    hub.requests.clear()
    push(folder, NAME)
    files = set(hub.repositories[NAME].files)
    assert not files & (shards | {"model.safetensors.index.json"}) and "model.safetensors" in files
    # One object: the tokenizer has not changed.
    assert sum(request.startswith("PUT") for request in hub.requests) == 1
    commits = len(hub.repositories[NAME].commits)
    push(folder, NAME)
    assert len(hub.repositories[NAME].commits) == commits


@pytest.mark.parametrize("private", [True, None])
def test_a_new_repository_is_as_private_as_asked(private, hub, saved):
    push(saved[0], NAME, private=private)
    assert hub.repositories[NAME].private is (private is True)


@pytest.mark.parametrize(
    ("pattern", "status"),
    [
        ("POST /api/repos/create", 403),
        ("preupload", 404),
        ("objects/batch", 401),
        ("PUT /lfs", 500),
        ("/commit/", 500),
    ],
)
def test_nothing_is_seen_of_a_push_that_failed_and_the_next_one_goes_on(pattern, status, hub, saved):
    fault = Fault(pattern, status=status, times=100)
    hub.faults.append(fault)
    with pytest.raises(OSError, match=str(status)):
        push(saved[0], NAME)
    assert all(not repository.files for repository in hub.repositories.values())
    fault.times, arrived = 0, len(hub.objects)
    hub.requests.clear()
    push(saved[0], NAME)
    assert len(hub.repositories[NAME].commits) == 2
    # What had arrived is not sent again.
    assert sum(request.startswith("PUT") for request in hub.requests) == len(hub.objects) - arrived


@pytest.mark.parametrize("fault", [Fault("PUT /lfs", status=503, times=2), Fault("preupload", break_after=5)])
def test_a_passing_failure_is_survived(fault, hub, saved):
    hub.faults.append(fault)
    push(saved[0], NAME)
    assert not fault.times and len(hub.repositories[NAME].commits) == 2


def test_a_commit_that_came_between_is_not_built_upon(hub, saved, monkeypatch):
    push(saved[0], NAME)
    other = ("f" * 40, {"other.txt": b""})
    upload = hub.RequestHandlerClass._preupload

    def meanwhile(handler, **kwargs):
        hub.repositories[NAME].commits.append(other)
        return upload(handler, **kwargs)

    monkeypatch.setattr(hub.RequestHandlerClass, "_preupload", meanwhile)
    (saved[0] / "generation_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(HfHubHTTPError, match="412"):
        push(saved[0], NAME)
    assert hub.repositories[NAME].commits[-1] == other


def test_the_command_prints_where_it_is_or_why_not(hub, saved, capsys, tmp_path):
    card = tmp_path / "card.yaml"
    card.write_text("summary: It is small.\n", encoding="utf-8")
    assert main(["push", str(saved[0]), NAME, "--card", str(card), "--private"]) == 0
    assert re.search(rf"{NAME}/commit/[0-9a-f]{{40}}\n$", capsys.readouterr().out)
    assert b"It is small." in hub.repositories[NAME].files["README.md"]
    assert hub.repositories[NAME].private
    (saved[0] / "config.json").unlink()
    assert main(["push", str(saved[0]), NAME]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_hub_out_of_reach_is_said_in_one_line(hub, saved, capsys, monkeypatch):
    # Nobody listens at port 9.
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    capsys.readouterr()
    assert main(["push", str(saved[0]), NAME]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("mm1 push: http://127.0.0.1:9 cannot be reached: ")


def test_models_and_processors_push_themselves(hub, saved):
    """transformers' own way, from Python: two commits, the same files."""
    _, model, processor = saved
    model.push_to_hub(NAME, max_shard_size="300KB")
    processor.push_to_hub(NAME)
    files = hub.repositories[NAME].files
    assert set(MODEL_FILES) <= set(files) and "chat_template.jinja" in files
    assert "AutoModel" in json.loads(files["config.json"])["auto_map"]
