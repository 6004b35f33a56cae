"""What `mm1 serve --engine vllm` starts. That it serves is tested by `make test-vllm`, where vLLM is installed."""

import os
import sys
from importlib.util import find_spec

import pytest
from tiny import tiny_mm1

from mm1_command import main


@pytest.fixture
def folder(tmp_path):
    model, processor = tiny_mm1()
    model.config.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def started(monkeypatch):
    """The commands that take the place of this process."""
    commands = []
    monkeypatch.setattr("mm1_hf.hub.vllm_engine.find_spec", lambda name: True)

    def execv(path, arguments):
        commands.append(arguments)
        raise SystemExit

    monkeypatch.setattr(os, "execv", execv)
    return commands


WITHOUT_REUSE = ["--mm-processor-cache-gb", "0", "--no-enable-prefix-caching"]


@pytest.mark.parametrize(("splitting", "added"), [("none", []), ("dynamic", WITHOUT_REUSE), ("static", WITHOUT_REUSE)])
def test_images_are_not_reused_where_they_are_split(splitting, added, folder, started):
    _, processor = tiny_mm1()
    processor.image_processor.image_splitting = splitting
    processor.save_pretrained(folder)
    with pytest.raises(SystemExit):
        main(["serve", str(folder), "--port", "8123", "--engine", "vllm", "--enforce-eager"])
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder)]
    guards = ["--host", "localhost", "--allowed-media-domains", "none.invalid"]
    assert started == [[*command, *added, *guards, "--port", "8123", "--enforce-eager"]]


@pytest.mark.parametrize(
    ("option", "default"),
    [
        (["--host", "0.0.0.0"], "localhost"),
        (["--host=0.0.0.0"], "localhost"),
        (["--allowed-media-domains", "example.org"], "none.invalid"),
    ],
)
def test_only_who_asks_for_it_serves_others(option, default, folder, started):
    with pytest.raises(SystemExit):
        main(["serve", str(folder), "--engine", "vllm", *option])
    assert started[0][-len(option) :] == option and default not in started[0]


def test_it_needs_a_model(started, capsys):
    assert main(["serve", "--engine", "vllm", "--port", "8123"]) == 2
    assert "vLLM serves one model. Name it first" in capsys.readouterr().err
    assert not started


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_it_says_how_to_install_vllm(folder, capsys):
    assert main(["serve", str(folder), "--engine", "vllm"]) == 2
    assert "vLLM is not installed. Install it beside this package" in capsys.readouterr().err


def test_there_is_no_other_engine(folder, capsys):
    with pytest.raises(SystemExit):
        main(["serve", str(folder), "--engine", "sglang"])
    assert "invalid choice: 'sglang'" in capsys.readouterr().err
