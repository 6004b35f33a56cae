"""What a built package has beside its modules, and that the command runs where it is installed."""

import os
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import mm1_hf


PIP = [sys.executable, "-m", "pip"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> tuple[Path, Path]:
    """The root of the repository, and the package that is built from it."""
    root, folder = Path(mm1_hf.__file__).parents[2], tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(root)], check=True)
    (wheel,) = folder.glob("*.whl")
    return root, wheel


@pytest.mark.slow
def test_a_built_package_brings_the_card_and_the_plugin(wheel):
    root, wheel = wheel
    with zipfile.ZipFile(wheel) as package:
        assert package.read("mm1_hf/hub/MODEL_CARD.md") == (root / "MODEL_CARD.md").read_bytes()
        for recipe in (root / "recipes").iterdir():
            assert package.read(f"mm1_hf/training/open_recipes/{recipe.name}") == recipe.read_bytes()
        (name,) = (name for name in package.namelist() if name.endswith("entry_points.txt"))
        entries = ConfigParser()
        entries.read_string(package.read(name).decode())
    assert entries["vllm.general_plugins"]["mm1"] == "mm1_hf:register"


@pytest.mark.slow
def test_the_command_of_an_installed_package_runs(wheel, tmp_path):
    subprocess.run([*PIP, "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(wheel[1])], check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*command: str) -> str:
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    for module in ("mm1_command", "mm1_hf.cli"):
        assert run(sys.executable, "-c", f"import {module}; print({module}.__file__)").startswith(str(tmp_path))
    assert run(str(tmp_path / "bin" / "mm1"), "--version") == f"mm1 {mm1_hf.__version__}\n"
    assert "mm1.5-3b-sft" in run(str(tmp_path / "bin" / "mm1"), "recipe")
    assert "GB" in run(str(tmp_path / "bin" / "mm1"), "plan", "mm1-3b", "--gpus", "64")
