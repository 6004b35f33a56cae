"""A run ends with the same numbers whatever stops it and however many processes share it."""

import json
import os
import random
import signal
import time
from dataclasses import replace

import pytest
from evaluated import FakeModel
from evaluation_runs import FEW, easy_vqa, made, run, start, text_samples
from PIL import Image

from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.cells import EvaluationSettings
from mm1_hf.evaluation.demonstrations import Demonstrations
from mm1_hf.evaluation.results import read_rows
from mm1_hf.evaluation.runner import evaluate
from mm1_hf.evaluation.samples import Sample


SECONDS = 0.002
CHOICES = ("yes", "no")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nobody disturbed: its scores, and its table of answers."""
    folder = tmp_path_factory.mktemp("straight")
    return run(folder)["scores"], read_rows(folder)


def test_every_question_is_asked_once_with_each_number_of_shots(straight):
    scores, rows = straight
    # Without demonstrations there is one trial.
    assert [(each["shots"], each["trials"], each["samples"]) for each in scores] == [(0, 1, 150), (3, 2, 150)]
    asked = [(row["shots"], row["trial"], row["id"]) for row in rows]
    assert len(set(asked)) == len(asked) == 450
    assert all(len(row["demonstrations"]) == row["shots"] and row["id"] not in row["demonstrations"] for row in rows)


def test_the_score_is_the_mean_over_trials_of_the_mean_over_questions(straight):
    scores, rows = straight
    for score in scores:
        trials = [
            [row["score"] for row in rows if (row["shots"], row["trial"]) == (score["shots"], trial)]
            for trial in range(score["trials"])
        ]
        means = [sum(each) / len(each) for each in trials]
        assert score["by_trial"] == pytest.approx(means)
        assert score["score"] == pytest.approx(sum(means) / len(means))
        assert all(row["score"] == (row["answer"] == json.loads(row["references"])) for row in rows)


def kill(processes) -> bool:
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join()
    return bool(alive)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_ends_with_the_same_numbers(ranks, straight, tmp_path):
    draw, hits = random.Random(ranks), 0
    for _ in range(5):
        processes = start(lambda: run(tmp_path, seconds=SECONDS), ranks=ranks)
        # Most of a run's time are its 450 answers.
        time.sleep(draw.random() * 450 * SECONDS / ranks)
        hits += kill(processes)
    assert hits
    for process in start(lambda: run(tmp_path, seconds=SECONDS), ranks=ranks):
        process.join()
        assert process.exitcode == 0
    assert json.loads((tmp_path / "results.json").read_text())["scores"] == straight[0]
    assert read_rows(tmp_path) == straight[1]


def test_two_processes_share_the_questions_and_one_may_go_on(straight, tmp_path):
    for process in start(lambda: run(tmp_path), ranks=2):
        process.join()
        assert process.exitcode == 0
    lines = [len(path.read_bytes().splitlines()) for path in sorted((tmp_path / "journal").iterdir())]
    assert sum(lines) == 450 and min(lines) > 100
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["scores"] == straight[0] and results["processes"] == 2 and read_rows(tmp_path) == straight[1]
    # What one of them did not do, another number of processes does.
    (tmp_path / "results.json").unlink()
    (tmp_path / "journal" / "answers-1.jsonl").unlink()
    assert run(tmp_path)["scores"] == straight[0] and read_rows(tmp_path) == straight[1]


@pytest.mark.parametrize("left", [0, 1, 37, 10_000])
def test_a_journal_cut_anywhere_is_continued(left, straight, tmp_path):
    run(tmp_path)
    (tmp_path / "results.json").unlink()
    (journal,) = (tmp_path / "journal").iterdir()
    journal.write_bytes(journal.read_bytes()[:left])
    assert run(tmp_path)["scores"] == straight[0] and read_rows(tmp_path) == straight[1]


def test_a_finished_run_is_finished(tmp_path):
    results = run(tmp_path, 10)
    model = FakeModel()
    assert evaluate(model, [easy_vqa(10)], FEW, tmp_path) == results
    assert not model.said


@pytest.mark.parametrize(
    ("name", "number", "settings", "told"),
    [
        ("other", 10, FEW, "model.name: 'fake' there, 'other' now"),
        ("fake", 11, FEW, "data.samples: 10 there, 11 now"),
        ("fake", 10, replace(FEW, trials=3), "settings.trials: 2 there, 3 now"),
        ("fake", 10, replace(FEW, style="chat"), "settings.style: None there, 'chat' now"),
    ],
)
def test_a_folder_of_other_settings_is_refused(name, number, settings, told, tmp_path):
    run(tmp_path, 10)
    with pytest.raises(ValueError, match="holds a run with other settings") as error:
        evaluate(FakeModel(name=name), [easy_vqa(number)], settings, tmp_path)
    assert told in str(error.value)


def test_a_damaged_line_is_named(tmp_path):
    run(tmp_path, 10)
    (tmp_path / "results.json").unlink()
    (journal,) = (tmp_path / "journal").iterdir()
    journal.write_bytes(b'{"cell": 5}\n' + journal.read_bytes())
    with pytest.raises(ValueError, match=r"Line 1 of .*answers-0\.jsonl cannot be read"):
        run(tmp_path, 10)


def test_an_endpoint_that_dies_leaves_what_is_done(straight, tmp_path):
    said = []
    for dies_after in (5, 200, None):
        model = FakeModel(kind="endpoint", dies_after=dies_after)
        if dies_after is None:
            results = evaluate(model, [easy_vqa()], FEW, tmp_path)
        else:
            with pytest.raises(
                OSError, match=rf"does not answer\. The answers to \d+ .* are saved in {tmp_path}: give"
            ):
                evaluate(model, [easy_vqa()], FEW, tmp_path)
        said += model.said
    # No question was asked twice.
    assert len(said) == 450 and results["scores"] == straight[0]


def test_what_cannot_be_asked_is_counted_and_wrong(tmp_path):
    broken = Sample("broken", (), "What?", "yes", answer="yes", error="missing file: nowhere.png")
    without = Sample("hidden", (), "What?", None)
    samples = [*text_samples(6), broken, without]
    results = evaluate(FakeModel(("yes",)), [made("mine", samples)], EvaluationSettings(), tmp_path)
    (score,) = results["scores"]
    assert score["errors"] == {"missing file": 1}
    assert (score["samples"], score["without_reference"], score["score"]) == (7, 1, pytest.approx(3 / 7))
    rows = {row["id"]: row for row in read_rows(tmp_path)}
    assert rows["broken"]["score"] == 0 and rows["broken"]["error"] == "missing file: nowhere.png"
    assert rows["hidden"]["score"] is None and rows["hidden"]["answer"] == "yes"


def test_log_likelihoods_reach_the_metric(tmp_path):
    samples = [
        Sample(f"s{index}", (), f"It is {index}.", index % 2, CHOICES, {"choices": CHOICES}, "yes")
        for index in range(8)
    ]
    subject = made(
        "choices", samples, metric="choice_likelihood", kind="likelihood", max_new_tokens=0, completion="continuation"
    )
    results = evaluate(FakeModel(), [subject], EvaluationSettings((0, 2)), tmp_path)
    rows = read_rows(tmp_path)
    for row in rows:
        chosen = max((0, 1), key=row["log_likelihoods"].__getitem__)
        assert json.loads(row["scores"])["acc"] == (chosen == json.loads(row["references"]))
    assert [each["metric"] for each in results["scores"]] == ["acc", "acc"]


def test_more_shots_than_there_are_is_said_before_anything_is_asked(tmp_path):
    model = FakeModel()
    with pytest.raises(ValueError, match="9 demonstrations were asked for"):
        evaluate(model, [made("few", text_samples(6))], EvaluationSettings((0, 9)), tmp_path)
    assert not model.said


@pytest.mark.parametrize(
    ("subjects", "settings", "told"),
    [
        (lambda: [made("a", text_samples()), made("a", text_samples())], EvaluationSettings(), "give each once"),
        (lambda: [made("a", [])], EvaluationSettings(), "has no samples"),
        (lambda: [made("a", text_samples(), metric="mme")], EvaluationSettings(), "needs categories, question_ids"),
        (
            lambda: [made("a", text_samples(), metric="", judge="mm_vet")],
            EvaluationSettings(),
            "scored by another model",
        ),
        (
            lambda: [replace(made("a", text_samples()), demonstrations=None)],
            EvaluationSettings((2,)),
            "ask for 0 shots",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(subjects, settings, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        evaluate(FakeModel(), subjects(), settings, tmp_path)


@pytest.mark.parametrize(
    "values", [{"shots": ()}, {"shots": (4, 4)}, {"shots": (-1,)}, {"trials": 0}, {"split_last": -1}]
)
def test_wrong_settings_are_refused(values):
    with pytest.raises(ValueError, match="give"):
        EvaluationSettings(**values)


class Judge(FakeModel):
    """Thinks that answers of three letters are right, and does not always say so."""

    def answers(self, requests):
        for index, (_, answer) in enumerate(super().answers(requests)):
            right = "\nAnswer: yes\n" in requests[index].text
            text = "I cannot tell." if "Question 5?" in requests[index].text else f"{float(right)}"
            yield index, replace(answer, text=text)


def test_a_judge_scores_answers(tmp_path):
    subject = made("judged", text_samples(6), metric="", judge="mm_vet", chat="chat_text", style="chat")
    model = FakeModel(("yes",))
    results = evaluate(model, [subject], EvaluationSettings(), tmp_path, judge=Judge(name="judge"))
    (score,) = results["scores"]
    assert score["metric"] == "judge" and score["score"] == 1 and score["all"]["unread"] == pytest.approx(1 / 6)
    assert results["judge"]["name"] == "judge"
    assert sum(row["score"] for row in read_rows(tmp_path)) == 5


def test_retrieved_demonstrations_have_one_trial(tmp_path):
    colours = ("red", "green", "blue", "white", "black", "gray")
    samples = [
        replace(sample, images=(ImagePart(Image.new("RGB", (8, 8), colour)),))
        for sample, colour in zip(text_samples(6), colours, strict=True)
    ]
    rices = Demonstrations(samples, how="rices", embed=lambda images: [[1.0, index] for index in range(len(images))])
    subject = replace(made("similar", samples), demonstrations=rices)
    settings = EvaluationSettings((2,), trials=3)
    assert evaluate(FakeModel(), [subject], settings, tmp_path)["scores"][0]["trials"] == 1
