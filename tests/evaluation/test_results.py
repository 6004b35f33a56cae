"""Scores with their errors, the record of a run, and the table of answers."""

import json
import math
from statistics import fmean, stdev

import pyarrow.parquet as pq
import pytest
from evaluated import FakeModel
from evaluation_runs import FEW, easy_vqa, made, run, text_samples

import mm1_hf
from mm1_hf.evaluation.cells import EvaluationSettings
from mm1_hf.evaluation.requests import Answer
from mm1_hf.evaluation.results import read_rows
from mm1_hf.evaluation.runner import evaluate
from mm1_hf.evaluation.samples import Sample
from mm1_hf.evaluation.scoring import question_error, score


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return run(folder, 40), folder


def test_standard_errors_are_those_of_questions_and_of_trials(finished):
    results, folder = finished
    _, few = results["scores"]
    by_question: dict[str, list[float]] = {}
    for row in read_rows(folder):
        if row["shots"] == 3:
            by_question.setdefault(row["id"], []).append(row["score"])
    means = [fmean(each) for each in by_question.values()]
    assert few["standard_error"] == pytest.approx(stdev(means) / math.sqrt(40))
    assert few["trial_error"] == pytest.approx(stdev(few["by_trial"]) / math.sqrt(2))
    assert results["scores"][0]["trial_error"] is None


def test_the_record_says_what_the_answers_depend_on(finished):
    results, folder = finished
    assert results == json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["model"] == {"kind": "local", "name": "fake"}
    assert results["settings"]["shots"] == [0, 3] and results["settings"]["trials"] == 2
    task = results["tasks"]["easy_vqa"]
    assert task["template"]["query"] == "{image} Question: {question} Short answer:" and task["style"] == "completion"
    assert task["decoding"] == {"do_sample": False, "max_new_tokens": 8, "stop": ["\n", ".", ",", "Question"]}
    assert task["data"]["samples"] == 40 and len(task["data"]["fingerprint"]) == 64
    assert task["demonstrations"]["seed"] == 0 and task["demonstrations"]["pool"] == 200
    assert results["environment"]["versions"]["mm1_hf"] == mm1_hf.__version__
    assert all(len(score["prompts"]) == 64 for score in results["scores"])


def test_the_digest_of_the_prompts_changes_with_the_demonstrations(finished, tmp_path):
    results, _ = finished
    other = evaluate(FakeModel(), [easy_vqa(40, seed=1)], FEW, tmp_path)
    same, changed = ((a["prompts"] == b["prompts"]) for a, b in zip(results["scores"], other["scores"], strict=True))
    assert same and not changed


def test_the_table_has_a_row_for_each_answer(finished):
    _, folder = finished
    table = pq.read_table(folder / "samples.parquet")
    assert table.num_rows == 40 * 3
    row = table.slice(100, 1).to_pylist()[0]
    assert (row["task"], row["shots"], row["trial"], row["id"]) == ("easy_vqa", 3, 1, "test-20")
    assert row["question"] and len(row["demonstrations"]) == 3 and row["answer"] in ("yes", "no", "red", "circle")


def test_the_error_of_a_ratio_is_the_jackknifes():
    """F1 of POPE with one question in a part: the jackknife's formula over all questions."""
    samples = text_samples(12)
    task = made("pope", samples, metric="pope").task
    said = ["yes", "yes", "no", "no", "yes", "no", "yes", "yes", "no", "yes", "yes", "no"]
    columns = [{"categories": "random"}] * 12
    scored = score(task, said, [sample.references for sample in samples], columns)

    def f1(places):
        truth = [samples[place].references == "yes" for place in places]
        told = [said[place] == "yes" for place in places]
        right = sum(a and b for a, b in zip(truth, told, strict=True))
        return 2 * right / (sum(truth) + sum(told))

    left = [f1([place for place in range(12) if place != out]) for out in range(12)]
    expected = math.sqrt(11 / 12 * sum((value - fmean(left)) ** 2 for value in left))
    assert scored.headline == "f1" and scored.total["f1"] == pytest.approx(f1(range(12)))
    assert question_error([scored]) == pytest.approx(expected)


def test_a_single_question_has_no_error():
    task = made("one", text_samples(1)).task
    assert question_error([score(task, ["yes"], ["yes"], [{}])]) is None


def test_a_split_without_references_has_answers_and_no_score(tmp_path):
    samples = [Sample(f"{index}", (), "What?") for index in range(3)]
    results = evaluate(FakeModel(), [made("hidden", samples)], EvaluationSettings(), tmp_path)
    (only,) = results["scores"]
    assert only["score"] is None and only["samples"] == 0 and only["without_reference"] == 3
    assert all(row["answer"] for row in read_rows(tmp_path))


def test_the_groups_average_appears_when_all_its_benchmarks_are_there(tmp_path):
    subjects = [made(name, text_samples(4), benchmark=name) for name in ("ai2d", "scienceqa", "mathvista", "mmmu")]
    results = evaluate(FakeModel(("yes",)), subjects, EvaluationSettings(), tmp_path / "all")
    assert results["averages"] == {"knowledge": 50.0}
    assert not evaluate(FakeModel(), subjects[:3], EvaluationSettings(), tmp_path / "some")["averages"]


class Strange(FakeModel):
    def answers(self, requests):
        for index in range(len(requests)):
            yield index, Answer("\ud800 \x1b[2J <script>")


def test_answers_of_any_characters_are_written(tmp_path):
    evaluate(Strange(), [made("mine", text_samples(2))], EvaluationSettings(), tmp_path)
    assert all("<script>" in row["answer"] for row in read_rows(tmp_path))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page and "\x1b" not in page
