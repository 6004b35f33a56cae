import re
from pathlib import Path

import pytest
from conversations import conversations
from machines import CPUS, pretend_cpu
from PIL import Image
from tiny import byte_tokenizer, tiny_decoder, tiny_mm1, tiny_vision
from transformers import CLIPImageProcessor

from mm1_hf import MM1Config, MM1ConnectorConfig
from mm1_hf.cli import main
from mm1_hf.training.settings import PretrainingSettings, SFTSettings, build_recipe, load_settings


README = Path(__file__).parents[1] / "README.md"
FIRST, SECOND, THIRD = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
PRETRAINING, FIRST_RUN, FINE_TUNING = re.findall(
    r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_example_runs_as_written(folder, capsys):
    for part in tiny_mm1():
        part.save_pretrained(folder / "quickstart-mm1")
    Image.new("RGB", (64, 64), "red").save(folder / "picture.png")
    assert len(FIRST.strip().splitlines()) <= 15
    exec(FIRST, {})
    assert capsys.readouterr().out.strip("\n"), "an answer was printed"


def test_the_second_example_runs_as_written(folder, capsys, monkeypatch):
    """Tiny models in folders of the Hub ids' names take the place of those on the Hub."""
    vision, text = re.findall(r'"(\w+/[^"]+)"', SECOND)
    tiny_vision("aimv2").save_pretrained(folder / vision)
    CLIPImageProcessor().save_pretrained(folder / vision)
    tiny_decoder().save_pretrained(folder / text)
    byte_tokenizer().save_pretrained(folder / text)
    # The paper's 144 tokens are more than the 16 patches of a tiny encoder.
    monkeypatch.setattr("mm1_hf.model.configuration_mm1._PAPER_TOKENS", 4)
    assert MM1ConnectorConfig().num_tokens == 4
    exec(SECOND, {})
    printed = capsys.readouterr().out
    assert "c_abstractor, 4 tokens per tile" in printed and "trainable params" in printed


def test_the_settings_of_a_pretraining_are_valid(folder):
    (folder / "pretrain.yaml").write_text(PRETRAINING, encoding="utf-8")
    loaded = load_settings(PretrainingSettings, "pretrain.yaml")
    stage = build_recipe(loaded, MM1Config.from_preset("mm1-3b"))
    assert stage.data.mixture == {"interleaved": 0.45, "caption": 0.45, "text": 0.10}
    assert stage.arguments["save_steps"] == 500 and stage.arguments["max_steps"] == 200_000


def test_the_first_pretraining_runs_as_written(folder, capsys):
    for part in tiny_mm1():
        part.save_pretrained(folder / "quickstart-mm1")
    Image.new("RGB", (64, 64), "red").save(folder / "0001.jpg")
    lines = dict(re.findall(r"path: (\S+), .*# lines like (\{.*\})", FIRST_RUN))
    assert set(lines) == {"captions.jsonl", "books.jsonl"}
    for name, line in lines.items():
        (folder / name).write_text(f"{line}\n" * 20, encoding="utf-8")
    (folder / "first.yaml").write_text(FIRST_RUN, encoding="utf-8")
    settings = load_settings(PretrainingSettings, "first.yaml")
    # What makes it small: a step of the recipe has 512 rows of 4096 positions.
    stage = build_recipe(settings, MM1Config.from_preset("mm1-3b"))
    assert stage.batch_size * stage.data.sequence_length * stage.arguments["max_steps"] == 2048
    assert stage.data.resolution == 112 and stage.data.image_splitting == "none"
    assert main(["pretrain", "--config", "first.yaml"]) == 0
    assert (folder / settings.output_dir / "model.safetensors").exists()
    assert "dropped of" not in capsys.readouterr().out


@CPUS
def test_the_third_example_runs_as_written(cpu_dtype, folder, monkeypatch):
    pretend_cpu(monkeypatch, cpu_dtype)
    for part in tiny_mm1():
        part.save_pretrained(folder / "my-mm1")
    conversations(20).to_parquet(folder / "my-conversations" / "train.parquet")
    short = {"max_length=2048": "max_length=200", "max_steps=100": "max_steps=2"}
    example = THIRD
    for written, changed in short.items():
        assert written in example
        example = example.replace(written, changed)
    exec(example, {})
    assert (folder / "my-adapter" / "adapter_model.safetensors").exists()


def test_the_settings_of_a_fine_tuning_are_valid(folder):
    (folder / "sft.yaml").write_text(FINE_TUNING, encoding="utf-8")
    stage = build_recipe(load_settings(SFTSettings, "sft.yaml"), None)
    assert stage.data.mixture["text-rich"] == pytest.approx(3.3 * stage.data.mixture["general"])
    assert stage.arguments["max_steps"] == 10_000
