from collections.abc import Iterator

import huggingface_hub.constants as hub_constants
import pytest
from hub_server import HubServer, hub_server
from huggingface_hub import hf_api
from tiny import tiny_mm1


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[HubServer]:
    """A Hub of this process's own, empty, with an empty cache."""
    with hub_server() as server:
        monkeypatch.setattr(hub_constants, "ENDPOINT", server.url)
        # The one behind huggingface_hub's functions has read it already.
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        # transformers' own keeps the endpoint, and which commit a branch was, of its first call.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        # The server answers at once; nothing is gained by waiting before asking again.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield server


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory):
    model, processor = tiny_mm1()
    folder = tmp_path_factory.mktemp("hub") / "model"
    # In two shards or more.
    model.save_pretrained(folder, max_shard_size="300KB")
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture
def saved(saved_once, tmp_path):
    """A copy that a test may change, and what it holds."""
    folder, model, processor = saved_once
    copy = tmp_path / "saved"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy, model, processor
