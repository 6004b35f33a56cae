"""A published model loads over HTTP: by its own code where mm1_hf is missing, by the package where it is not."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hub_server import Fault, Repository
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

import mm1_hf
from mm1_hf.hub.publishing import push
from mm1_hf.hub.repository import read_repository
from mm1_hf.registration import MODEL_FILES


NAME = "someone/tiny"
TEXT = "What is <image>?"
IMAGE = Image.new("RGB", (90, 60), "teal")

STRANGER = """
import json, sys

name, output = sys.argv[1:]
# As if it were not installed.
sys.modules["mm1_hf"] = None
import huggingface_hub.constants
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

# Kept piece by piece, of which a shard here has several.
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 2**16
classes = (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor)
refused = []
for loads in classes:
    try:
        loads.from_pretrained(name, trust_remote_code=False)
    except ValueError as error:
        refused.append("trust_remote_code" in str(error))
trust = {"trust_remote_code": True}
parts = [loads.from_pretrained(name, **trust) for loads in classes]
config, base, model, processor = parts
image = Image.new("RGB", (90, 60), "teal")
inputs = processor(text="What is <image>?", images=image, return_tensors="pt")
chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
answer = pipeline("image-text-to-text", model=name, **trust)(text=chat, max_new_tokens=3, do_sample=False)
with torch.no_grad():
    torch.save({"logits": model(**inputs).logits, "hidden": base(**inputs).last_hidden_state}, output)
for part in (model, processor):
    part.save_pretrained(output + ".again")
modules = sorted({type(part).__module__.split(".")[0] for part in parts})
print(json.dumps({"modules": modules, "refused": refused, "answer": answer[0]["generated_text"][-1]["content"]}))
"""


def test_it_loads_where_the_package_is_not_installed(hub, saved, tmp_path):
    folder, model, processor = saved
    push(folder, NAME)
    # Once in the middle of a shard: what arrived is kept, the rest is asked for.
    broken = Fault(r"GET .*/model-00001", break_after=100_000)
    hub.faults.append(broken)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    output = tmp_path / "out.pt"
    result = subprocess.run(
        [sys.executable, "-c", STRANGER, NAME, str(output)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["modules"] == ["transformers_modules"] and told["refused"] == [True] * 4
    given = torch.load(output)
    with torch.no_grad():
        inputs = processor(text=TEXT, images=IMAGE, return_tensors="pt")
        expected = {"logits": model(**inputs).logits, "hidden": model.model(**inputs).last_hidden_state}
    # Tensors mapped from a file lie at other addresses, where matrix products round differently.
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
    assert told["answer"] == answer(model, processor)
    # What was loaded from a Hub and saved stands by itself again.
    assert "--" not in (tmp_path / "out.pt.again" / "config.json").read_text(encoding="utf-8")
    assert set(MODEL_FILES) <= set(read_repository(tmp_path / "out.pt.again").files)
    assert not broken.times
    assert any(request.endswith(f"bytes={2**16}-") for request in hub.requests)


def answer(model, processor) -> str:
    chat = [{"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "What?"}]}]
    given = pipeline("image-text-to-text", model=model, processor=processor)(
        text=chat, max_new_tokens=3, do_sample=False
    )
    return given[0]["generated_text"][-1]["content"]


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}])
def test_the_imported_package_wins(trust, hub, saved, tmp_path):
    push(saved[0], NAME)
    for loads in (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor):
        part = loads.from_pretrained(NAME, cache_dir=tmp_path / "here", **trust)
        assert type(part) is getattr(mm1_hf, type(part).__name__)
    assert not any(".py" in request for request in hub.requests if request.startswith("GET"))


@pytest.fixture
def malicious(hub, saved, tmp_path, monkeypatch):
    """A repository whose settings ask for code that leaves a mark, and the mark."""
    folder, *_ = saved
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w').close()\n".encode()
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"other.py": code}
    for name in ("config.json", "processor_config.json"):
        values = json.loads(files[name])
        values["auto_map"] = dict.fromkeys(values["auto_map"], "other.Other")
        files[name] = json.dumps(values).encode()
    hub.repositories[NAME] = Repository(commits=[("a" * 40, files)])
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return mark, files


def test_other_code_is_not_run_where_the_package_knows_the_model(malicious, tmp_path):
    mark, _ = malicious
    for loads in (AutoConfig, AutoModelForImageTextToText, AutoProcessor):
        loads.from_pretrained(NAME, cache_dir=tmp_path / "here")
    assert not mark.exists()


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": False}])
def test_other_code_is_not_run_without_trust(trust, malicious, hub, tmp_path):
    mark, files = malicious
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | {"model_type": "stranger"}).encode()
    for loads in (AutoConfig, AutoModelForImageTextToText):
        with pytest.raises(ValueError, match="trust_remote_code"):
            loads.from_pretrained(NAME, cache_dir=tmp_path / "here", **trust)
    assert not mark.exists()
    # The mark is what running it would leave.
    with pytest.raises(AttributeError):
        AutoConfig.from_pretrained(NAME, cache_dir=tmp_path / "here", trust_remote_code=True)
    assert mark.exists()
