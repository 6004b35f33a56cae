"""The plan of an open recipe: what each source gives, how often it is read, and what it takes."""

import re

import pytest

from mm1_hf.cli import main
from mm1_hf.planning import recipe_plan
from mm1_hf.planning.recipe_plan import plan_recipe, source_plans
from mm1_hf.training.open_recipes import open_recipe


@pytest.fixture(autouse=True)
def no_dry_run(monkeypatch):
    """The memory has tests of its own, and takes seconds."""
    monkeypatch.setattr(recipe_plan, "memory_lines", lambda *arguments: ["memory"])


def plans(name: str):
    opened = open_recipe(name)
    return opened, *opened.recipe()


@pytest.mark.parametrize("name", ["mm1-3b-pretrain", "mm1.5-1b-continual", "mm1.5-3b-sft", "mm1-7b-sft"])
def test_the_sources_fill_all_rows(name):
    opened, settings, config = plans(name)
    sources = {source.name: source for source in source_plans(opened, settings, config)}
    rows = settings.batch_size * settings.arguments["max_steps"]
    assert sum(source.positions for source in sources.values()) == pytest.approx(rows * settings.data.sequence_length)
    shared = [source.positions for source in sources.values()]
    if settings.data.unit == "documents":
        shared = [source.records for source in sources.values()]
    for share, name_ in zip(shared, sources, strict=True):
        assert share / sum(shared) == pytest.approx(opened.weights()[name_], rel=1e-4)
    for source in sources.values():
        file = opened.file.sources[source.name]
        assert source.epochs == pytest.approx(source.records / file.records)
        assert source.positions == pytest.approx(source.records * (file.tokens + 144 * source.tiles))


@pytest.mark.parametrize(
    ("name", "source", "tiles"),
    [
        ("mm1.5-3b-pretrain", "cc3m", 1),
        ("mm1.5-3b-pretrain", "mint-1t-pdf", 4),
        ("mm1.5-3b-pretrain", "fineweb-edu", 0),
        # 2 x 2 tiles and the whole image.
        ("mm1.5-3b-continual", "idl", 5),
        ("mm1.5-3b-sft", "docvqa", 5),
        ("mm1.5-3b-sft", "nlvr2", 10),
        # Not split: more than two images.
        ("mm1.5-3b-sft", "slidevqa", 5),
        ("mm1.5-3b-sft", "orca", 0),
    ],
)
def test_tiles_of_a_record(name, source, tiles):
    assert {each.name: each.tiles for each in source_plans(*plans(name))}[source] == tiles


def test_the_page_says_epochs_and_hours(capsys):
    assert main(["plan", "--recipe", "mm1-3b-pretrain", "--gpus", "64", "--mfu", "0.5"]) == 0
    half = capsys.readouterr().out
    assert main(["plan", "--recipe", "mm1-3b-pretrain", "--gpus", "64", "--mfu", "0.25"]) == 0
    quarter = capsys.readouterr().out
    hours = [float(re.search(r"([\d,]+) GPU hours", text)[1].replace(",", "")) for text in (half, quarter)]
    assert hours[1] == pytest.approx(2 * hours[0], rel=0.01)
    lines = {line.split()[0]: line for line in half.splitlines() if line.strip()}
    # 90 % of the rows have images; 73 % of the captions are CC12M's.
    assert re.search(r"caption +13\.78B +32\.9% +81\.53M +7\.41$", lines["cc12m"])
    assert "Read more than 4 times: cc12m, cc3m." in half
    assert "google/siglip2-so400m-patch14-384" in half and "At 50%" not in half


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give either the name of a preset"),
        (["mm1-3b", "--recipe", "mm1-3b-sft"], "Give either the name of a preset"),
        (["--recipe", "mm1-3b-sft", "--stage", "sft"], "leave out --stage"),
        (["--recipe", "mm1-3b"], "There is no recipe 'mm1-3b'"),
        (["--recipe", "mm1-3b-sft", "--mfu", "40"], "MFU must be a share"),
    ],
)
def test_wrong_options_are_refused(arguments, message, capsys):
    assert main(["plan", *arguments, "--gpus", "8"]) == 2
    assert message in capsys.readouterr().err


def test_more_devices_than_the_batch_can_feed_are_refused():
    with pytest.raises(ValueError, match="does not divide"):
        plan_recipe("mm1-3b-sft", 100)
