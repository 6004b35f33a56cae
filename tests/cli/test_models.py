"""Models are found in folders, on the Hub and, where it is out of reach, in its cache; or their absence is said at once."""

import time

import huggingface_hub.constants as hub_constants
import pytest
from hub_server import Fault, Repository, hub_server
from huggingface_hub import snapshot_download

from mm1_hf.cli.models import find_model


NAME = "someone/model"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of this process's own with one model, and an empty cache."""
    with hub_server() as server:
        server.repositories[NAME] = Repository(commits=[("1" * 40, {"config.json": b"{}", "more.txt": b""})])
        monkeypatch.setattr(hub_constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits before asking again"))
        yield server


@pytest.fixture(params=["offline mode", "no network"])
def unreachable(request, monkeypatch):
    """Puts the Hub out of reach, and returns the reason that users read."""

    def cut() -> str:
        if request.param == "offline mode":
            monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
            return "HF_HUB_OFFLINE is set"
        # Nobody listens at port 9.
        monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
        return "refused"

    return cut


def test_folders_and_files_are_taken_without_asking(hub, tmp_path):
    (tmp_path / "weights.gguf").touch()
    for path in (tmp_path, tmp_path / "weights.gguf"):
        assert find_model(str(path)) == str(path)
    assert not hub.requests


def test_a_model_of_the_hub_keeps_its_name(hub):
    assert find_model(NAME) == NAME
    assert [request for request in hub.requests if NAME in request] == [f"GET /api/models/{NAME}"]


def test_a_model_that_the_hub_does_not_have_is_refused(hub):
    with pytest.raises(ValueError, match="neither a folder someone/else nor a model of this name on the Hub"):
        find_model("someone/else")


def test_what_cannot_be_a_hub_id_is_refused(hub):
    with pytest.raises(ValueError, match=r"There is no folder \./no/where\. Give an existing folder"):
        find_model("./no/where")
    assert not hub.requests


def test_a_hub_that_answers_with_an_error_is_left_to_the_loading(hub):
    hub.faults.append(Fault("GET /api/models", status=501))
    assert find_model(NAME) == NAME


def test_without_a_network_the_cache_is_read(hub, unreachable):
    folder = snapshot_download(NAME)
    unreachable()
    assert find_model(NAME) == folder


def test_without_a_network_a_model_that_is_not_cached_is_refused_at_once(hub, unreachable):
    reason = unreachable()
    with pytest.raises(
        ValueError, match=f"no folder {NAME}, the Hub cannot be reached .*{reason}.* not in its"
    ) as error:
        find_model(NAME)
    assert len(str(error.value).splitlines()) == 1
