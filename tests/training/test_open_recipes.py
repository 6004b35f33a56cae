"""Open recipes: their files, the settings that they become, and runs of a few steps on tiny data of the same schemas."""

import json
from pathlib import Path

import pytest
import yaml
from stand_ins import few_entries, write_stand_ins
from tiny import tiny_mm1

from mm1_hf.cli import main
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.training import open_recipes
from mm1_hf.training.open_recipes import open_recipe, recipe_names
from mm1_hf.training.recipes import MM1_5_SFT_MIXTURE, MM1_MIXTURE
from mm1_hf.training.runs import train
from mm1_hf.training.settings import PretrainingSettings, SFTSettings, load_settings


STAGES = ("mm1-3b-pretrain", "mm1-3b-sft", "mm1.5-3b-pretrain", "mm1.5-3b-continual", "mm1.5-3b-sft")


def test_there_is_a_recipe_of_every_stage_at_every_size():
    names = recipe_names()
    assert {name.replace("-3b-", f"-{size}-") for name in STAGES for size in ("1b", "3b", "7b")} == set(names)
    for name in STAGES:
        assert len({open_recipe(name.replace("-3b-", f"-{size}-")).parts.text.id for size in ("1b", "3b", "7b")}) == 3


@pytest.mark.parametrize("name", STAGES)
def test_every_source_says_what_it_is(name):
    recipe = open_recipe(name)
    for source in recipe.file.sources.values():
        assert source.layout in LAYOUTS and source.ids and source.licence and source.size
        assert source.records > 0 and source.tokens > 0 and source.images >= 0
    assert sum(recipe.weights().values()) == pytest.approx(1)


def test_categories_have_the_papers_weights():
    for name, mixture in (("mm1-1b-pretrain", MM1_MIXTURE), ("mm1.5-7b-sft", MM1_5_SFT_MIXTURE)):
        recipe = open_recipe(name)
        found = dict.fromkeys(mixture, 0.0)
        for source, weight in recipe.weights().items():
            found[recipe.file.sources[source].category] += weight
        assert found == pytest.approx(mixture)


def test_what_is_not_certain_is_said():
    reported = {each.what: each for each in open_recipe("mm1.5-3b-sft").file.uncertain}
    rate = reported["learning rate and number of steps"]
    assert "2e-5" in rate.used and "unverified" in rate.used and "1e-5" in rate.others
    settings = open_recipe("mm1.5-3b-sft").settings()
    assert (settings.arguments["learning_rate"], settings.arguments["max_steps"]) == (2e-5, 23_000)
    assert "angle brackets" in reported["coordinates of points and boxes"].others


@pytest.mark.parametrize("name", STAGES)
def test_the_written_file_is_a_settings_file(name, tmp_path, capsys):
    file = tmp_path / "settings.yaml"
    assert main(["recipe", name, "--output", str(file)]) == 0
    assert f"mm1 {open_recipe(name).command} --config {file}" in capsys.readouterr().out
    kind = SFTSettings if open_recipe(name).command == "sft" else PretrainingSettings
    assert load_settings(kind, file) == open_recipe(name).settings()
    text = file.read_text(encoding="utf-8")
    assert main(["recipe", name]) == 0
    assert capsys.readouterr().out == text
    for source in open_recipe(name).file.sources.values():
        assert source.licence.split()[0] in text
    for each in open_recipe(name).file.uncertain:
        assert each.used.split()[0] in text and each.what.split()[0] in text
    assert main(["recipe", name, "--output", str(file)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_stage_begins_where_the_one_before_it_ends():
    assert open_recipe("mm1.5-3b-pretrain").model == "models/mm1.5-3b"
    for before, after in (("pretrain", "continual"), ("continual", "sft")):
        assert open_recipe(f"mm1.5-3b-{before}").entries()["output_dir"] == open_recipe(f"mm1.5-3b-{after}").model
    assert open_recipe("mm1-7b-pretrain").entries()["output_dir"] == open_recipe("mm1-7b-sft").model


def test_the_list_names_them_all(capsys):
    assert main(["recipe"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == recipe_names()


@pytest.mark.parametrize("name", STAGES)
def test_one_record_of_each_source_is_read(name, tmp_path, capsys):
    """Of stand-ins with the schemas of the public sets, by the package's own reader."""
    folder = write_stand_ins(open_recipe(name), tmp_path)
    assert main(["recipe", name, "--check", "--data", str(folder)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    sources = open_recipe(name).file.sources
    assert [line.split()[:2] for line in lines] == [[source, "read"] for source in sources]
    for line, source in zip(lines, sources.values(), strict=True):
        assert f"{round(source.images)} images" in line
    assert last == f"all {len(sources)} sources can be read"


def test_sources_that_cannot_be_read_are_named_and_the_others_read(tmp_path, capsys):
    folder = write_stand_ins(open_recipe("mm1.5-1b-continual"), tmp_path)
    (folder / "idl" / "00000.tar").unlink()
    (folder / "docmatix" / "train-00000-of-00001.parquet").write_bytes(b"not a table")
    assert main(["recipe", "mm1.5-1b-continual", "--check", "--data", str(folder)]) == 2
    out, err = capsys.readouterr()
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "NOT READ" in lines["idl"] and "There is no data file" in lines["idl"]
    assert "NOT READ" in lines["docmatix"] and " read " in lines["pdfa"] and " read " in lines["rendered-text"]
    assert err.strip().endswith("2 of the 4 sources cannot be read: idl, docmatix.")


def test_without_the_hub_every_source_says_so(capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert main(["recipe", "mm1.5-3b-continual", "--check"]) == 2
    out, err = capsys.readouterr()
    assert out.count("NOT READ") == 4 and "4 of the 4 sources" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mm1-9b-sft"], "There is no recipe 'mm1-9b-sft'. The recipes are: "),
        (["--check"], "--check needs the name of a recipe"),
        (["mm1-3b-sft", "--check", "--output", "x"], "leave out --output"),
    ],
)
def test_wrong_options_are_refused(arguments, message, capsys):
    assert main(["recipe", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_with_a_wrong_category_is_refused(tmp_path, monkeypatch):
    files = open_recipes._files()
    entries = yaml.safe_load(files["mm1.5-continual"].read_text(encoding="utf-8"))
    broken = tmp_path / "broken.yaml"
    monkeypatch.setattr(open_recipes, "_files", lambda: {**files, "mm1.5-continual": broken})
    entries["sources"]["idl"]["category"] = "pdfs"
    broken.write_text(yaml.safe_dump(entries), encoding="utf-8")
    with pytest.raises(ValueError, match=r"the sources have others: .*idl.*pdfs"):
        open_recipe("mm1.5-3b-continual")
    del entries["sources"]["idl"]
    broken.write_text(yaml.safe_dump(entries), encoding="utf-8")
    with pytest.raises(ValueError, match="no source stands for idl"):
        open_recipe("mm1.5-3b-continual")


@pytest.mark.parametrize("name", ["mm1.5-1b-pretrain", "mm1.5-1b-continual", "mm1.5-1b-sft"])
def test_a_recipe_trains(name, tmp_path, capsys):
    """Three steps of a tiny model; in fine-tuning on the first source of each category."""
    recipe = open_recipe(name)
    data, model = write_stand_ins(recipe, tmp_path / "data"), tmp_path / "model"
    for part in tiny_mm1():
        part.save_pretrained(model)
    entries = few_entries(recipe.entries(data), model, tmp_path / "run")
    first = {source.category: key for key, source in reversed(recipe.file.sources.items())}
    entries["sources"] = {key: entries["sources"][key] for key in first.values()}
    for source in entries["sources"].values():
        source["path"] = ["no/such/folder", source["path"]]
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(entries), encoding="utf-8")
    kind = SFTSettings if recipe.command == "sft" else PretrainingSettings
    trainer = train(load_settings(kind, file))
    state = json.loads(Path(tmp_path, "run", "checkpoint-3", "trainer_state.json").read_text(encoding="utf-8"))
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3]
    assert trainer.train_dataset.drops().report().keys() <= set(entries["sources"])
    assert not any(report["dropped"] for report in trainer.train_dataset.drops().report().values())
    splitting = {"pretrain": "none", "continual": "static", "sft": "dynamic"}[recipe.file.stage]
    assert trainer.processing_class.image_processor.image_splitting == splitting
