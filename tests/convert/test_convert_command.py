import re
import runpy
from pathlib import Path

import pytest
from tiny import tiny_decoder

from mm1_command.parser import CONVERSION_KINDS
from mm1_hf import MM1TextForCausalLM
from mm1_hf.cli import main
from mm1_hf.cli.convert import CONVERSIONS
from mm1_hf.convert.decoders import FAMILIES, REFUSED


SCRIPTS = Path(__file__).parents[2] / "conversion"


def test_the_command_converts(tmp_path, capsys):
    tiny_decoder().save_pretrained(tmp_path / "source")
    paths = [str(tmp_path / "source"), str(tmp_path / "converted")]
    assert main(["convert", "decoder", *paths, "--dtype", "bfloat16", "--max-shard-size", "50KB"]) == 0
    assert len(list((tmp_path / "converted").glob("*.safetensors"))) > 1
    assert str(MM1TextForCausalLM.from_pretrained(tmp_path / "converted", dtype="auto").dtype) == "torch.bfloat16"
    assert capsys.readouterr().out.startswith("decoder: ")


@pytest.mark.parametrize("kind", CONVERSION_KINDS)
def test_what_is_not_there_is_said_in_one_line(kind, tmp_path, capsys):
    assert main(["convert", kind, str(tmp_path / "nowhere"), str(tmp_path / "converted")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mm1 convert: ") and "nowhere" in error and len(error.splitlines()) == 1


def test_an_option_that_means_nothing_is_refused(tmp_path, capsys):
    assert main(["convert", "gguf", "a.gguf", str(tmp_path / "converted"), "--allow-pickle"]) == 2
    assert "the kind gguf, whose checkpoints are not pickles" in capsys.readouterr().err


def test_every_kind_has_a_script_and_a_line():
    assert tuple(CONVERSIONS) == CONVERSION_KINDS
    assert sorted(path.stem for path in SCRIPTS.glob("*.py")) == sorted(f"convert_{kind}" for kind in CONVERSION_KINDS)
    for kind in CONVERSION_KINDS:
        assert f'main(["convert", "{kind}", *sys.argv[1:]])' in (SCRIPTS / f"convert_{kind}.py").read_text()
    table = (SCRIPTS / "README.md").read_text(encoding="utf-8").split("## Decoders")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(CONVERSION_KINDS)


def test_the_table_of_decoders_says_what_maps():
    table = (SCRIPTS / "README.md").read_text(encoding="utf-8").split("## Decoders")[1]
    rows = re.findall(r"^\| (`.+?) \| (\w+)", table, re.MULTILINE)
    said = {kind: answer for kinds, answer in rows for kind in re.findall(r"`(\w+)`", kinds)}
    assert {kind for kind, answer in said.items() if answer != "no"} == set(FAMILIES)
    assert {kind for kind, answer in said.items() if answer == "no"} == set(REFUSED)


def test_a_script_runs(tmp_path, monkeypatch):
    tiny_decoder().save_pretrained(tmp_path / "source")
    script = SCRIPTS / "convert_decoder.py"
    monkeypatch.setattr("sys.argv", [str(script), str(tmp_path / "source"), str(tmp_path / "converted")])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(script), run_name="__main__")
    assert done.value.code == 0
    assert (tmp_path / "converted" / "config.json").is_file()
