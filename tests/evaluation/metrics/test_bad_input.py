"""Bad input is refused by a message that names the sample."""

import pytest

from mm1_hf.evaluation.metrics import NAMES, load


# For each metric a good sample: prediction, reference and its columns.
GOOD = {
    "anls": ("a", ["a"], {}),
    "box_recall": ("[0, 0, 9, 9]", [[0, 0, 9, 9]], {"heights": 10, "widths": 10}),
    "choice_likelihood": ([-1.0, -2.0], 0, {"choices": ["a", "b"]}),
    "cider": ("a", ["a"], {}),
    "exact_match": ("a", ["a"], {}),
    "greedy_match": ([True], ["a"], {}),
    "mathvista": ("1", "1", {"choices": None, "answer_types": "integer", "precisions": None}),
    "mmbench": ("A", "A", {}),
    "mme": ("yes", "yes", {}),
    "mmmu": ("A", "A", {"question_types": "multiple-choice", "options": ["a"]}),
    "multiple_choice": ("A", "A", {}),
    "ocrbench": ("a", ["a"], {"datasets": "svt"}),
    "pope": ("yes", "yes", {}),
    "relaxed_accuracy": ("a", ["a"], {}),
    "vqa_accuracy": ("a", ["a"] * 10, {}),
}


def score(name, predictions, references, columns):
    return load(name).per_sample(predictions, references, **{key: [value] * 3 for key, value in columns.items()})


@pytest.mark.parametrize("name", NAMES)
def test_the_sample_is_named(name):
    prediction, reference, columns = GOOD[name]
    good = score(name, [prediction] * 3, [reference] * 3, columns)
    assert len(good) == 3
    assert load(name).HEADLINE in {*good[0], *load(name).GROUP_COLUMNS} or name in {"mme", "pope", "mmbench"}
    with pytest.raises(ValueError, match="Sample 1: the prediction is None; expected"):
        score(name, [prediction, None, prediction], [reference] * 3, columns)
    for empty in ([], None):
        with pytest.raises(ValueError, match=r"Sample 2: .*reference|Sample 2: .*accepted continuations"):
            score(name, [prediction] * 3, [reference, reference, empty], columns)
    with pytest.raises(ValueError, match="3 predictions, 2 references"):
        score(name, [prediction] * 3, [reference] * 2, columns)
    with pytest.raises(ValueError, match="no samples"):
        load(name).per_sample([], [], **{key: [] for key in columns})


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="There is no metric 'bleu'; expected one of anls"):
        load("bleu")


@pytest.mark.parametrize(
    ("name", "prediction", "reference", "columns", "message"),
    [
        ("vqa_accuracy", "a", ["a"], {}, "needs at least 4"),
        ("vqa_accuracy", "a", ["a"] * 10, {"normalizer": "new"}, "the normalizer is 'new'"),
        ("exact_match", "a", "a", {"normalizer": "new"}, "the normalizer is 'new'"),
        ("exact_match", "1", "one", {"normalizer": "first_integer"}, "needs a number"),
        ("mmmu", "A", "A", {"question_types": ["multiple-choice"], "options": ["['a', 'b']"]}, "literal_eval"),
        ("mmmu", "A", "A", {"question_types": ["short"], "options": [[]]}, "the question type is 'short'"),
        ("mmmu", "A", " ", {"question_types": ["open"], "options": [[]]}, "contained in every answer"),
        ("ocrbench", "a", [" "], {"datasets": ["svt"]}, "contained in every answer"),
        ("mme", "yes", "maybe", {}, "expected yes or no"),
        ("mathvista", "1", "1.0", {"choices": [None], "answer_types": ["float"], "precisions": [None]}, "precision"),
        (
            "mathvista",
            "1",
            "1",
            {"choices": [None], "answer_types": ["x"], "precisions": [None]},
            "answer type is 'x'",
        ),
        ("box_recall", "", [[5, 5, 3, 3]], {"heights": [9], "widths": [9]}, "corners"),
        ("box_recall", "", [[1, 1, 3, 3]], {"heights": [0], "widths": [9]}, "0 x 9 pixels"),
        ("choice_likelihood", [-1.0], 0, {"choices": [["a", "b"]]}, "1 log-likelihoods for 2 choices"),
        ("choice_likelihood", [float("nan")], 0, {"choices": [["a"]]}, "NaN"),
        ("choice_likelihood", [-1.0], 0, {"choices": [[""]]}, "empty choice"),
        ("choice_likelihood", [-1.0], 1, {"choices": [["a"]]}, "expected the index of a choice"),
        ("greedy_match", [True, False], ["a"], {}, "2 entries"),
        ("greedy_match", [True], ["a"], {"log_likelihoods": [[]]}, "0 log-likelihoods"),
        ("mmbench", "A", "a", {}, "expected a capital letter"),
    ],
)
def test_bad_samples_are_explained(name, prediction, reference, columns, message):
    with pytest.raises(ValueError, match=f"(?s)Sample 0: .*{message}"):
        load(name).per_sample([prediction], [reference], **columns)


def test_groups_must_fit_the_samples():
    samples = [{"accuracy": 1.0, "unread": 0.0}] * 3
    with pytest.raises(ValueError, match="MME has no category colour"):
        load("mme").aggregate(samples, categories=["colour"] * 3, question_ids=["1"] * 3)
    with pytest.raises(ValueError, match="has 3 questions"):
        load("mme").aggregate(samples, categories=["color"] * 3, question_ids=["1"] * 3)
    with pytest.raises(ValueError, match="Two rows have the index 7"):
        load("mmbench").aggregate(samples, indices=[7, "7", 8])
    with pytest.raises(ValueError, match="Sample 1: the index is 'x'"):
        load("mmbench").aggregate(samples, indices=[7, "x", 8])
    with pytest.raises(ValueError, match="3 samples, 2 categories"):
        load("multiple_choice").aggregate(samples, categories=["a", "b"])
