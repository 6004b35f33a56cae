"""What a built package has of the Hub beside its modules."""

import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import mm1_hf


@pytest.mark.slow
def test_a_built_package_brings_the_card_and_the_plugin(tmp_path):
    root = Path(mm1_hf.__file__).parents[2]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(root)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as package:
        assert package.read("mm1_hf/hub/MODEL_CARD.md") == (root / "MODEL_CARD.md").read_bytes()
        (name,) = (name for name in package.namelist() if name.endswith("entry_points.txt"))
        entries = ConfigParser()
        entries.read_string(package.read(name).decode())
    assert entries["vllm.general_plugins"]["mm1"] == "mm1_hf:register"
