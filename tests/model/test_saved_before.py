"""
A folder that commit adb08cd saved, before the model's files moved to a folder of their own, still gives the same logits:
loaded by the package, and by the code in the folder.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import mm1_hf
from mm1_hf.hub.repository import read_repository
from mm1_hf.registration import MODEL_FILES


ARCHIVE = Path(__file__).parents[1] / "fixtures" / "saved_by_adb08cd.zip"
# For logits of about 1: kernels of other CPUs add in another order.
TOLERANCE = {"rtol": 0, "atol": 1e-4}

STRANGER = """
import sys

folder, output = sys.argv[1:]
# As if it were not installed.
sys.modules["mm1_hf"] = None
import torch
import transformers
from packaging.version import Version
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="float32")
inputs = processor(text="What is <image>?", images=Image.open(folder + "/../image.png"), return_tensors="pt")
with torch.no_grad():
    torch.save({"input_ids": inputs["input_ids"], "logits": model(**inputs).logits}, output)
assert type(model).__module__.startswith("transformers_modules")
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path / "model")
    image = Image.new("RGB", (90, 60), "teal")
    for x in range(45):
        for y in range(60):
            image.putpixel((x, y), (5 * x, 4 * y, 128))
    image.save(tmp_path / "image.png")
    return tmp_path / "model"


def check(folder: Path, input_ids: torch.Tensor, logits: torch.Tensor) -> None:
    expected = load_file(folder / "expected.safetensors")
    assert torch.equal(input_ids, expected["input_ids"])
    torch.testing.assert_close(logits[0, -8:], expected["logits"], **TOLERANCE)


def test_the_package_loads_it(folder):
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    assert isinstance(model, mm1_hf.MM1ForConditionalGeneration) and isinstance(processor, mm1_hf.MM1Processor)
    with Image.open(folder.parent / "image.png") as image:
        inputs = processor(text="What is <image>?", images=image, return_tensors="pt")
    with torch.no_grad():
        check(folder, inputs["input_ids"], model(**inputs).logits)
    # Saved again, it carries today's files, and both savings refer to them by the same names.
    model.save_pretrained(folder.parent / "again")
    processor.save_pretrained(folder.parent / "again")
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, folder.parent / "again"))
    assert after["auto_map"] == before["auto_map"]
    assert {path.name for path in (folder.parent / "again").glob("*.py")} == set(MODEL_FILES)


def test_it_can_still_be_published(folder):
    assert set(MODEL_FILES) <= set(read_repository(folder).files)


@pytest.mark.skipif(
    not Version("5.22") <= Version(transformers.__version__) < Version("5.24"),
    reason="the code that was saved then runs on transformers 5.22 and 5.23 alone",
)
def test_its_own_code_loads_it(folder, tmp_path):
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    output = tmp_path / "out.pt"
    result = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder), str(output)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    check(folder, **torch.load(output))
