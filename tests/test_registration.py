import ast
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_mm1
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    pipeline,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import mm1_hf
from mm1_hf.registration import MODEL_FILES


CHAT = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.new("RGB", (64, 64), "red")},
            {"type": "text", "text": "What is it?"},
        ],
    }
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mm1")
    for part in tiny_mm1():
        part.save_pretrained(folder)
    return folder


def test_every_auto_class_finds_it(saved):
    assert type(AutoConfig.from_pretrained(saved)) is mm1_hf.MM1Config
    assert type(AutoModel.from_pretrained(saved)) is mm1_hf.MM1Model
    assert type(AutoModelForImageTextToText.from_pretrained(saved)) is mm1_hf.MM1ForConditionalGeneration
    assert type(AutoModelForMultimodalLM.from_pretrained(saved)) is mm1_hf.MM1ForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(saved)) is mm1_hf.MM1Processor
    assert type(AutoImageProcessor.from_pretrained(saved)) is mm1_hf.MM1ImageProcessor


def test_the_decoder_alone_is_found_too(tmp_path):
    config = mm1_hf.MM1Config.from_preset("mm1-tiny").text_config
    mm1_hf.MM1TextForCausalLM(config).save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is mm1_hf.MM1TextForCausalLM
    assert type(AutoModel.from_pretrained(tmp_path)) is mm1_hf.MM1TextModel


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_pipelines_answer(saved, task, caplog):
    generator = pipeline(task, model=str(saved))
    (output,) = generator(text=CHAT, max_new_tokens=3, do_sample=False)
    assert output["generated_text"][-1]["role"] == "assistant"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_registering_again_changes_nothing(saved):
    mm1_hf.register()
    assert type(AutoModelForImageTextToText.from_pretrained(saved)) is mm1_hf.MM1ForConditionalGeneration


def test_importing_needs_nothing_but_the_model_s_libraries():
    """peft, datasets, matplotlib and the like are read only where they are used."""
    script = (
        "import sys, mm1_hf; "
        "print([name for name in ('peft', 'datasets', 'matplotlib', 'onnx', 'gguf', 'torchvision') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_model_s_files_import_only_what_travels_with_them():
    # transformers itself needs the last two.
    allowed = {"transformers", "torch", "numpy", "PIL", "huggingface_hub", "packaging", *sys.stdlib_module_names}
    source = Path(mm1_hf.model.__file__).parent
    travelling = {Path(name).stem for name in MODEL_FILES}
    for name in MODEL_FILES:
        for node in ast.walk(ast.parse((source / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] in allowed for alias in node.names), name
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in travelling, f"{name} imports .{node.module}"
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in allowed, f"{name} imports {node.module}"
