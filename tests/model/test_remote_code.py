"""A saved model loads where mm1_hf is not installed, by the files that travel with it."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from importlib.metadata import distribution, packages_distributions, version

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from tiny import DECODER_SIZES, TINY_DECODERS, byte_tokenizer, tiny_vision
from transformers import MixtralConfig, MixtralForCausalLM

from mm1_hf import MM1ConnectorConfig, assemble


DECODERS = TINY_DECODERS | {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**DECODER_SIZES, num_local_experts=4, bos_token_id=None)),
}
TEXT = "What is <image>?"

# Hides modules, then loads the folder in every way.
STRANGER = """
import json, sys

folder, output, *hidden = sys.argv[1:]
# As if it were not installed, for `import` and for those who ask whether there is such a module.
sys.modules.update(dict.fromkeys(hidden))
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline
# Up to 5.17 the name in `transformers` asks for torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
model = AutoModelForImageTextToText.from_pretrained(folder, **trust)
base = AutoModel.from_pretrained(folder, **trust)
image_processor = AutoImageProcessor.from_pretrained(folder, **trust)
image = Image.new("RGB", (90, 60), "teal")
inputs = processor(text="What is <image>?", images=image, return_tensors="pt")
chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
answer = pipeline("image-text-to-text", model=folder, **trust)(text=chat, max_new_tokens=3, do_sample=False)
with torch.no_grad():
    logits = model(**inputs).logits
    hidden = base(**inputs).last_hidden_state
model.save_pretrained(output + ".again")
torch.save({"logits": logits, "hidden": hidden}, output)
print(json.dumps({
    "modules": sorted({type(part).__module__.split(".")[0] for part in (config, processor, model, base, image_processor)}),
    "answer": answer[0]["generated_text"][-1]["role"],
    "parts": [config.model_type, config.text_config.model_type],
}))
"""


@pytest.fixture(scope="module", params=DECODERS)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mm1")
    torch.manual_seed(0)
    model, processor = assemble(
        # The package's own encoder travels too.
        tiny_vision("aim" if request.param == "mm1_text" else "clip"),
        DECODERS[request.param]().eval(),
        MM1ConnectorConfig(num_tokens=4, hidden_size=32, depth=1),
        tokenizer=byte_tokenizer(),
        verbose=False,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return request.param, folder, model, processor


def needed(*names: str) -> set[str]:
    """Distributions that come with these, themselves included."""
    found: set[str] = set()
    missing = [canonicalize_name(name) for name in names]
    while missing:
        name = missing.pop()
        if name not in found:
            found.add(name)
            requirements = [Requirement(line) for line in distribution(name).requires or ()]
            wanted = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
            missing += [canonicalize_name(each.name) for each in wanted]
    return found


def check(python: str, saved, tmp_path, hidden: Iterable[str] = ()) -> None:
    kind, folder, model, processor = saved
    script = tmp_path / "stranger.py"
    script.write_text(textwrap.dedent(STRANGER), encoding="utf-8")
    # Another environment has libraries of its own; in this one they may come from a folder (tests/versions).
    own = set() if python == sys.executable else {"PYTHONPATH", "PYTHONHOME"}
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [python, str(script), str(folder), str(tmp_path / "out.pt"), *hidden],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["modules"] == ["transformers_modules"]
    assert told["answer"] == "assistant"
    assert told["parts"] == ["mm1", kind.split("-")[0]]
    inputs = processor(text=TEXT, images=Image.new("RGB", (90, 60), "teal"), return_tensors="pt")
    given = torch.load(tmp_path / "out.pt")
    with torch.no_grad():
        expected = {"logits": model(**inputs).logits, "hidden": model.model(**inputs).last_hidden_state}
    # Tensors mapped from a file lie at other addresses, where matrix products round differently.
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
    # What a stranger saves travels on.
    assert (tmp_path / "out.pt.again" / "modeling_mm1.py").exists()


def test_it_loads_without_the_package(saved, tmp_path):
    """And without whatever else the package asks for: the files may import what transformers itself needs."""
    present = needed("transformers", "torch", "pillow")
    hidden = {
        module
        for module, distributions in packages_distributions().items()
        if not present & {canonicalize_name(name) for name in distributions}
    }
    assert {"accelerate", "peft"} < hidden and not {"numpy", "torch", "PIL", "tqdm"} & hidden
    check(sys.executable, saved, tmp_path, {"mm1_hf", *hidden})


@pytest.mark.slow
def test_it_loads_in_an_environment_of_transformers_alone(saved, tmp_path, tmp_path_factory):
    environment = tmp_path_factory.getbasetemp() / "alone"
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        # The installed versions exactly: beside a CPU's torch (+cpu) pip must not fetch a GPU's.
        versions = [f"{name}=={version(name)}" for name in ("torch", "transformers", "pillow")]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *versions], check=True)
    listed = subprocess.run([str(python), "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "mm1" not in listed and "peft" not in listed
    check(str(python), saved, tmp_path)
