from dataclasses import replace

import pytest
from evaluated import FakeModel
from evaluation_runs import made, text_samples

from mm1_hf.evaluation.cells import EvaluationSettings
from mm1_hf.evaluation.compare import compare
from mm1_hf.evaluation.demonstrations import Demonstrations
from mm1_hf.evaluation.runner import evaluate
from mm1_hf.evaluation.statistics import paired_test


SHOTS = EvaluationSettings((0, 2))


def finished(folder, words, *subjects, settings=SHOTS):
    evaluate(FakeModel(words), subjects or [made("mine", text_samples(40))], settings, folder)
    return folder


def test_two_runs_are_compared_question_by_question(tmp_path):
    first = finished(tmp_path / "a", ("yes",))
    second = finished(tmp_path / "b", ("yes", "no", "perhaps"))
    zero, two = compare(first, second)
    assert (zero.task, zero.shots, two.shots, zero.metric) == ("mine", 0, 2, "exact_match")
    assert zero.questions == 40 and zero.first == 0.5 and not zero.first_alone and not zero.second_alone
    assert zero.test.difference == pytest.approx(zero.second - zero.first) and zero.test.method == "mcnemar"
    back, _ = compare(second / "results.json", first)
    assert back.test.difference == pytest.approx(-zero.test.difference) and back.test.p_value == zero.test.p_value


def test_trials_are_averaged(tmp_path):
    settings = EvaluationSettings((2,), trials=3)
    runs = [
        finished(tmp_path / name, words, settings=settings) for name, words in (("a", ("yes",)), ("b", ("yes", "no")))
    ]
    (found,) = compare(*runs)
    assert found.questions == 40 and found.test.method == "bootstrap"
    same = compare(runs[0], runs[0])[0]
    assert same.test == paired_test([1, 0] * 20, [1, 0] * 20)


def test_questions_of_one_run_alone_are_counted(tmp_path):
    first = finished(tmp_path / "a", ("yes",), settings=EvaluationSettings())
    fewer = finished(tmp_path / "b", ("yes",), made("mine", text_samples(10)), settings=EvaluationSettings())
    (found,) = compare(first, fewer)
    assert (found.questions, found.first_alone, found.second_alone) == (10, 30, 0)


def reseeded():
    samples = text_samples(40)
    return replace(made("mine", samples), demonstrations=Demonstrations(samples, seed=3))


@pytest.mark.parametrize(
    ("subject", "settings", "told"),
    [
        (made("mine", text_samples(40), completion="image_question"), SHOTS, "other prompts .*template.query is "),
        (reseeded(), SHOTS, "other prompts .*demonstrations.seed is 0 and 3"),
        (
            made("mine", text_samples(40), metric="anls"),
            SHOTS,
            "scored differently .*metric is 'exact_match' and 'anls'",
        ),
        (made("mine", text_samples(40, question="Why?")), EvaluationSettings(), "no question of mine in common"),
        (made("other", text_samples(40)), SHOTS, r"No task was measured .*mine with 0 shots.*other with 0 shots"),
    ],
)
def test_what_cannot_be_compared_is_refused(subject, settings, told, tmp_path):
    first = finished(tmp_path / "a", ("yes",))
    second = finished(tmp_path / "b", ("yes",), subject, settings=settings)
    with pytest.raises(ValueError, match=told):
        compare(first, second)


def test_a_folder_without_a_finished_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no finished run: results\.json is missing"):
        compare(tmp_path, tmp_path)
