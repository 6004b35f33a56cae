"""Every metric's folder is a module of `evaluate` that needs nothing outside it."""

import re
import shutil
from pathlib import Path

import evaluate
import pytest
import yaml

from mm1_hf.evaluation import metrics


FOLDER = Path(metrics.__file__).parent
YES = {"references": ["yes", "no"], "predictions": ["Yes", "Yes"]}
# For each metric: columns, and the aggregate that is expected.
CASES = {
    "anls": ({"predictions": ["42 km", "x"], "references": [["42 km", "42"], ["y"]]}, {"anls": 0.5}),
    "box_recall": (
        {"predictions": ["[0, 0, 500, 500]"], "references": [[[0, 0, 50, 50]]], "heights": [100], "widths": [100]},
        {"recall": 1.0},
    ),
    "choice_likelihood": (
        {"predictions": [[-4.0, -3.0]], "references": [1], "choices": [["cats", "dogs"]]},
        {"acc": 1.0, "acc_norm": 1.0, "acc_bytes": 1.0, "unanswered": 0.0},
    ),
    "cider": ({"predictions": ["A cat.", "A dog."], "references": [["a cat"], ["a dog"]]}, {"cider": 5.0}),
    "exact_match": ({"predictions": ["Left."], "references": ["left"]}, {"exact_match": 1.0}),
    "greedy_match": (
        {"predictions": [[True]], "references": [["end"]], "log_likelihoods": [[0.0]]},
        {"acc": 1.0, "unanswered": 0.0, "perplexity": 1.0},
    ),
    "mathvista": (
        {
            "predictions": ["The answer is 12.", "(B)"],
            "references": ["12", "blue"],
            "choices": [None, ["red", "blue"]],
            "answer_types": ["integer", "text"],
            "precisions": [None, None],
        },
        {"accuracy": 1.0, "unread": 0.0},
    ),
    "mmbench": (
        {"predictions": ["A", "B"], "references": ["A", "C"], "indices": [7, 1000007]},
        {"circular_accuracy": 0.0, "accuracy": 1.0, "unread": 0.0},
    ),
    "mme": (
        {**YES, "categories": ["count", "count"], "question_ids": ["1", "1"]},
        {"mme": 50 / 28, "perception": 50.0, "cognition": 0, "mme/count": 50.0, "unread": 0, "incomplete_pairs": 0},
    ),
    "mmmu": (
        {"predictions": ["(B)", "5"], "references": ["B", "5"], "question_types": ["multiple-choice", "open"]}
        | {"options": [["1", "2"], []], "categories": ["Art", "Math"]},
        {"accuracy": 1.0, "accuracy/Art": 1.0, "accuracy/Math": 1.0, "unread": 0.0},
    ),
    "multiple_choice": (
        {"predictions": ["The answer is (B)."], "references": ["B"], "options": [["x", "y"]]},
        {"accuracy": 1.0, "unread": 0.0},
    ),
    "ocrbench": (
        {"predictions": ["STOP"], "references": [["stop"]], "datasets": ["svt"], "question_types": ["scene"]},
        {"accuracy": 1.0, "score": 1000.0, "accuracy/scene": 1.0},
    ),
    "pope": (
        {**YES, "categories": ["random", "random"]},
        {"f1": 2 / 3, "accuracy": 0.5, "precision": 0.5, "recall": 1.0, "yes_share": 1.0, "f1/random": 2 / 3}
        | {"accuracy/random": 0.5, "yes_share/random": 1.0, "unread": 0.0},
    ),
    "relaxed_accuracy": (
        {"predictions": ["10.3", "x"], "references": ["10", "y"], "categories": ["a", "b"]},
        {"relaxed_accuracy": 0.5, "relaxed_accuracy/a": 1.0, "relaxed_accuracy/b": 0.0},
    ),
    "vqa_accuracy": (
        {"predictions": ["2"], "references": [["two"] * 9 + ["3"]], "normalizer": "evalai"},
        {"vqa_accuracy": 1.0},
    ),
}


def test_every_folder_is_a_metric():
    assert (
        {path.name for path in FOLDER.iterdir() if (path / "scoring.py").exists()} == set(metrics.NAMES) == set(CASES)
    )


@pytest.mark.parametrize("name", metrics.NAMES)
def test_a_copy_of_the_folder_loads_by_its_path(name, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "cache")
    shutil.copytree(FOLDER / name, tmp_path / "elsewhere" / name, ignore=shutil.ignore_patterns("__init__.py"))
    metric = evaluate.load(str(tmp_path / "elsewhere" / name), cache_dir=str(tmp_path / "cache"))
    columns, expected = CASES[name]
    assert metric.compute(**columns) == pytest.approx(expected)
    module = metrics.load(name)
    samples = module.per_sample(
        **{column: values for column, values in columns.items() if column not in module.GROUP_COLUMNS}
    )
    grouped = {column: columns[column] for column in module.GROUP_COLUMNS if column in columns}
    assert module.aggregate(samples, **grouped) == pytest.approx(expected)
    assert module.HEADLINE in expected
    # Everything that it was loaded from must lie in the folder, this package apart.
    if name != "box_recall":
        for file in (FOLDER / name).glob("*.py"):
            assert "mm1_hf" not in re.sub(r'""".*?"""', "", file.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("file", ["samples.py", "letters.py"])
def test_shared_files_are_the_same_in_every_folder(file):
    copies = {path.read_text(encoding="utf-8") for path in FOLDER.glob(f"*/{file}")}
    assert len(copies) == 1


@pytest.mark.parametrize("name", metrics.NAMES)
def test_the_hub_can_read_the_readme(name):
    _, header, _ = (FOLDER / name / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["sdk"] == "static"
    assert fields["tags"] == ["evaluate", "metric"]


def test_options_that_do_not_exist_are_refused():
    metric = evaluate.load(str(FOLDER / "anls"))
    with pytest.raises(TypeError, match="threshold"):
        metric.compute(predictions=["a"], references=[["a"]], threshold=0.3)
