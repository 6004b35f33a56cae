"""The card says what the files and the author tell, and nothing else."""

import ast
import json
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mm1_hf.accounting.parameters import count_parameters
from mm1_hf.cli import main
from mm1_hf.hub.card import (
    CardDetails,
    DataDetails,
    PartDetails,
    ResultDetails,
    StageDetails,
    load_details,
    load_results,
    model_card,
)
from mm1_hf.hub.markdown import one_line
from mm1_hf.hub.repository import read_repository


FULL = {
    "summary": "A model of tests.",
    "encoder": {"source": "apple/aimv2-large-patch14-336", "license": "apple-amlr"},
    "decoder": {"source": "HuggingFaceTB/SmolLM2-360M", "license": "apache-2.0"},
    "connector_license": "apache-2.0",
    "data": [
        {"name": "HuggingFaceM4/OBELICS", "license": "cc-by-4.0", "share": 0.45, "revision": "abc123"},
        {"name": "our own captions", "share": 0.55},
    ],
    "stages": [
        {"name": "sft", "data": "chats", "steps": 7, "batch": 8, "learning_rate": 1e-5, "trained": "connector"},
    ],
    "evaluation": [
        {
            "task": "easy-VQA",
            "dataset": "vicgalle/easy-vqa",
            "split": "test",
            "examples": 1000,
            "metric": "accuracy",
            "value": 0.991,
            "shuffled": 0.42,
            "shots": 4,
        },
    ],
    "languages": ["en"],
    "limits": ["It knows 13 colours."],
}


@pytest.fixture(scope="module")
def repository(saved_once):
    return read_repository(saved_once[0])


def written(tmp_path, values) -> CardDetails:
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_details(path)


def test_metadata_are_what_the_hub_reads(repository, tmp_path):
    card = model_card(repository, "someone/tiny", written(tmp_path, FULL))
    # As the Hub gets it: written out and read again.
    data = ModelCard(str(card)).data
    assert data.library_name == "transformers" and data.pipeline_tag == "image-text-to-text" and "mm1" in data.tags
    assert data.base_model == ["apple/aimv2-large-patch14-336", "HuggingFaceTB/SmolLM2-360M"]
    assert data.datasets == ["HuggingFaceM4/OBELICS"] and data.language == ["en"]
    assert data.license == "apple-amlr"
    (result,) = data.eval_results
    assert (result.task_name, result.dataset_type, result.dataset_split) == ("easy-VQA", "vicgalle/easy-vqa", "test")
    assert (result.metric_type, result.metric_value, result.metric_name) == ("accuracy", 0.991, "accuracy, 4 shots")


def test_the_text_has_the_models_own_numbers(repository, saved_once, tmp_path):
    text = model_card(repository, "someone/tiny", written(tmp_path, FULL)).text
    count = count_parameters(saved_once[1])
    for part in (count.encoder, count.connector, count.decoder + count.embeddings + count.head, count.total):
        assert f"{part.parameters:,}" in text
    assert "| easy-VQA | test | 1000 | 4 | accuracy | 0.991 | 0.42 | not measured |" in text
    assert "| sft | chats | 7 | 8 | 1e-05 | connector |" in text
    assert "| HuggingFaceM4/OBELICS | abc123 | 45.0 % | cc-by-4.0 |" in text
    assert "| our own captions | not stated | 55.0 % | not stated |" in text
    assert "under the most restrictive of these: **apple-amlr**" in text
    assert "It knows 13 colours." in text


def test_what_it_sees_is_told_only_where_images_were_shuffled(repository):
    result = ResultDetails("easy-VQA", "vicgalle/easy-vqa", "test", 1000, "accuracy", 0.99)
    for shuffled in (None, 0.4):
        details = CardDetails(evaluation=(replace(result, shuffled=shuffled),))
        told = "shows how much it uses the images" in model_card(repository, "a/b", details).text
        assert told is (shuffled is not None)


def test_nothing_is_said_that_nobody_told(repository):
    card = model_card(repository, "someone/tiny", CardDetails())
    data = ModelCard(str(card)).data
    assert data.eval_results is None and data.base_model is None and data.datasets is None
    assert (data.license, data.license_name) == ("other", "unknown")
    assert "Nothing has been measured yet." in card.text
    assert "do not take it to be free" in card.text
    # No placeholder, no value of Python's.
    told, _, _ = card.text.partition("## How to use it")
    assert not re.search(r"\bNone\b(?! has been)|\{\{|\{%|Undefined", told)


def test_a_data_sets_licence_binds_where_it_says_so(repository):
    parts = {"encoder": PartDetails(license="mit"), "decoder": PartDetails(license="mit"), "connector_license": "mit"}
    for binding, license in ((True, "cc-by-nc-4.0"), (False, "mit")):
        data = (DataDetails("chats", "cc-by-nc-4.0", binding=binding),)
        assert model_card(repository, "a/b", CardDetails(data=data, **parts)).data.license == license


def test_licences_that_do_not_cover_each_other_are_named_together(repository):
    details = CardDetails(
        encoder=PartDetails(license="apple-amlr"), decoder=PartDetails(license="gemma"), connector_license="mit"
    )
    card = model_card(repository, "a/b", details)
    assert (card.data.license, card.data.license_name) == ("other", "apple-amlr-and-gemma")
    assert "all of them together: apple-amlr and gemma" in card.text
    anchor = card.data.license_link.split("#")[1].replace("-", " ")
    assert f"## {anchor}" in card.text.lower()


def test_its_python_compiles_and_names_what_there_is(repository):
    blocks = re.findall(r"```python\n(.*?)```", model_card(repository, "someone/tiny", CardDetails()).text, re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        compile(block, "card", "exec")
        for line in re.findall(r"^(?:from|import) .+$", block, re.MULTILINE):
            if "trl" not in line:
                exec(line)


def test_results_may_lie_in_a_file_of_their_own(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(FULL["evaluation"]), encoding="utf-8")
    details = written(tmp_path, FULL | {"evaluation": "results.json"})
    assert details.evaluation == (ResultDetails(**FULL["evaluation"][0]),)


RUN = {
    "tasks": {
        "easy_vqa": {"task": {"data": [], "split": "test"}},
        "coco": {"task": {"data": ["yerevann/coco-karpathy", "other/copy"], "split": "test"}},
        "hidden": {"task": {"data": ["a/b"], "split": "test"}},
    },
    "scores": [
        {"task": "easy_vqa", "shots": 0, "samples": 9673, "metric": "exact_match", "score": 0.94876},
        {"task": "coco", "shots": 8, "samples": 5000, "metric": "cider", "score": 1.1},
        {"task": "hidden", "shots": 0, "samples": 0, "metric": None, "score": None},
    ],
}


def test_results_of_an_evaluation_become_metadata(repository, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RUN), encoding="utf-8")
    expected = (
        ResultDetails("easy_vqa", "easy_vqa", "test", 9673, "exact_match", 0.9488),
        ResultDetails("coco", "yerevann/coco-karpathy", "test", 5000, "cider", 1.1, shots=8),
    )
    assert load_results(tmp_path / "results.json") == expected
    details = written(tmp_path, {"evaluation": "results.json"})
    assert details.evaluation == expected
    results = ModelCard(str(model_card(repository, "someone/tiny", details))).data.eval_results
    assert [(each.task_name, each.dataset_type, each.metric_name, each.metric_value) for each in results] == [
        ("easy_vqa", "easy_vqa", "exact_match", 0.9488),
        ("coco", "yerevann/coco-karpathy", "cider, 8 shots", 1.1),
    ]


@pytest.mark.parametrize(
    "broken",
    [
        {},
        [],
        {"tasks": {}, "scores": RUN["scores"]},
        {**RUN, "scores": [{**RUN["scores"][0], "score": "high"}]},
        {**RUN, "scores": [{**RUN["scores"][0], "samples": "many"}]},
        {**RUN, "scores": [{**RUN["scores"][0], "metric": ["x"]}]},
        {**RUN, "tasks": {"easy_vqa": {"task": {"data": 5, "split": "test"}}}},
    ],
)
def test_what_is_no_evaluation_is_refused(broken, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(ValueError, match=r"results\.json"):
        load_results(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"sumary": "x"}, "unknown entries: sumary"),
        ({"data": "OBELICS"}, "data must be a list"),
        ({"data": [{"license": "mit"}]}, "data 1.*name"),
        ({"encoder": "apple/aimv2"}, "encoder: holds 'apple/aimv2'"),
        ([], "must hold entries"),
    ],
)
def test_wrong_entries_are_named(values, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        written(tmp_path, values)


def test_what_is_no_yaml_is_refused_before_anything_is_sent(tmp_path, capsys):
    (tmp_path / "card.yaml").write_text("{", encoding="utf-8")
    assert main(["push", str(tmp_path), "a/b", "--card", str(tmp_path / "card.yaml")]) == 2
    assert "neither YAML nor JSON" in capsys.readouterr().err


@pytest.fixture
def run(saved_once, tmp_path):
    """A pre-training's settings, and its last checkpoint's folder."""
    checkpoint = tmp_path / "run" / "checkpoint-11"
    saved_once[1].config.save_pretrained(checkpoint)
    settings = {
        "model": "x",
        "output_dir": str(checkpoint.parent),
        "batch_size": 24,
        "frozen": ["encoder"],
        "sources": {
            "caption": {"path": "c", "layout": "caption", "weight": 3},
            "t": {"path": "t", "layout": "text", "weight": 1},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return checkpoint


def log(checkpoint, *history):
    state = {"global_step": 11, "log_history": history}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")


def test_a_pretraining_tells_what_was_run(run, tmp_path):
    log(run, {"learning_rate": 1e-4}, {"learning_rate": 5e-5}, {"eval_loss": 1.0})
    (stage,) = written(tmp_path, {"stages": [{"settings": "run.yaml"}]}).stages
    assert (stage.name, stage.steps, stage.batch, stage.learning_rate) == ("pretrain", 11, 24, 1e-4)
    assert stage.data == "caption 75%, t 25% of rows, rows of 4096 positions" and stage.trained == "connector, decoder"


def test_a_pretraining_that_tells_nothing_is_refused(run, tmp_path):
    for told in ("has no checkpoint", "no learning rate"):
        with pytest.raises(ValueError, match=told):
            written(tmp_path, {"stages": [{"settings": "run.yaml"}]})
        log(run)


ANY_TEXT = st.text(st.characters(codec=None), max_size=40) | st.lists(
    st.sampled_from(
        [
            "a",
            " ",
            "\n",
            "|",
            "`",
            "```",
            "```python",
            "~~~",
            "#",
            "-",
            "1.",
            "---",
            "<",
            ">",
            "&",
            "\\",
            "[",
            "](",
            ")",
            "*",
            "_",
            "$",
            "{{",
            "}}",
            "{%",
            "%}",
            "\u202e",
            "\r",
            "\u2028",
            '"',
            "'",
            ": ",
            "\x1b[2J",
            "import os",
        ]
    )
).map("".join)


def filled(value):
    """Details with this text in every place."""
    return CardDetails(
        summary=value,
        encoder=PartDetails(value, value),
        decoder=PartDetails(value, value),
        connector_license=value,
        data=(DataDetails(value, value, value, 0.5),),
        stages=(StageDetails(value, value, 1, 2, 0.1, value),),
        evaluation=(ResultDetails(value, value, value, 1, value, 0.5),),
        evaluation_notes=value,
        hardware=value,
        intended_use=value,
        known_biases=value,
        limits=(value, value),
    )


def shape_of(card: str) -> list[tuple[str, ...]]:
    """The blocks of a card's Markdown and their nesting, without their text; the code with its text."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("\n---\n", 1)[1])
    return [
        (token.type, token.tag, token.content if token.type in ("fence", "code_block") else "") for token in tokens
    ]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=ANY_TEXT.filter(one_line))
@example(value="```python\nimport os\n```")
@example(value="a | b |\n| c | d")
@example(value="\n---\nlicense: mit\n---\n")
def test_no_value_changes_the_card_around_it(value, repository):
    plain, card = (model_card(repository, "user/name", filled(each)) for each in ("word", value))
    assert shape_of(str(card)) == shape_of(str(plain))
    html = MarkdownIt("commonmark").enable("table").render(card.text)
    assert "<img" not in html and html.count("<a ") == html.count("<a href") and "<b>" not in html
    for code in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        ast.parse(code)
    metadata = yaml.safe_load(card.data.to_yaml())
    assert metadata["model-index"][0]["results"][0]["task"]["name"] == one_line(value)
    assert card.data.to_dict() == ModelCard(str(card)).data.to_dict()


@pytest.mark.parametrize(
    "name", ['user/name"); import os; os.system("x', "user/na\nme", "../name", "user/name`", "a/b/c", ""]
)
def test_ids_are_ids(name, repository, tmp_path):
    with pytest.raises(ValueError, match="not the id of a repository on the Hub"):
        model_card(repository, name, CardDetails())
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name or 5}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"which is not a Hub id|does not name its base model"):
        read_repository(tmp_path)
