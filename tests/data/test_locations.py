"""Sources that may be in several places."""

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from mm1_hf.data import locations
from mm1_hf.data.locations import first_that_answers, is_local, local_copy


def failing(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind("no", response=httpx.Response(status, request=httpx.Request("GET", "https://a.example")))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub's answer to each id: an exception, or `None` where it has the data set."""
    answers, asked = {}, []

    class Hub:
        def dataset_info(self, name, timeout):
            asked.append(name)
            answer = answers.get(name, failing(RepositoryNotFoundError, 404))
            if answer is not None:
                raise answer

    monkeypatch.setattr(locations, "HfApi", Hub)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return answers, asked


def test_the_first_that_answers_is_taken(hub, tmp_path):
    answers, asked = hub
    answers["new/id"] = answers["old/id"] = None
    assert first_that_answers(["gone/id", "new/id", "old/id"]) == "new/id"
    assert asked == ["gone/id", "new/id"]
    (tmp_path / "0.parquet").touch()
    for local in (str(tmp_path), str(tmp_path / "0.parquet"), str(tmp_path / "*.parquet")):
        assert first_that_answers(["gone/id", local, "new/id"]) == local and is_local(local)


def test_a_single_place_is_not_asked(hub):
    assert first_that_answers("any/id") == first_that_answers(("any/id",)) == "any/id"
    assert hub[1] == []


def test_without_a_network_the_cache_answers(hub, tmp_path):
    answers, _ = hub
    answers["new/id"] = answers["old/id"] = httpx.ConnectError("no network")
    (tmp_path / "cache" / "old___id").mkdir(parents=True)
    assert first_that_answers(["new/id", "old/id"]) == "old/id"


def test_where_nothing_answers_each_answer_is_said(hub, monkeypatch):
    answers, _ = hub
    monkeypatch.setattr(locations, "is_offline_mode", lambda: False)
    answers["b/b"], answers["c/c"] = httpx.ConnectError("no network"), failing(HfHubHTTPError, 503)
    with pytest.raises(ValueError, match="None of the 3 places") as error:
        first_that_answers(["a/a", "b/b", "c/c"])
    said = str(error.value)
    assert "a/a: the Hub has no public data set of this name" in said
    assert "b/b: the Hub cannot be reached (ConnectError)" in said and "c/c: the Hub answers 503" in said
    with pytest.raises(ValueError, match="give at least one path"):
        first_that_answers([])


def test_what_is_neither_a_file_nor_an_id_is_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"no/such/folder: there is no such file or folder"):
        first_that_answers(["no/such/folder", "no/such/other"])


def test_a_configuration_of_a_local_copy_is_a_folder(tmp_path):
    (tmp_path / "docvqa").mkdir()
    assert local_copy(str(tmp_path), "docvqa") == str(tmp_path / "docvqa")
    assert local_copy(str(tmp_path), "chartqa") == str(tmp_path)
    assert local_copy("user/name", "docvqa") == "user/name" and not is_local("user/name")
