"""What a judge is asked, how its verdicts are read, and the scores of LLaVA-Bench and MM-Vet."""

import pytest

from mm1_hf.evaluation.judging import aggregate, judge_request, read_verdict
from mm1_hf.evaluation.samples import Sample
from mm1_hf.evaluation.tasks import load_task


WILD, VET = load_task("llava_wild"), load_task("mm_vet")


def test_the_judge_of_llava_wild_sees_the_description_and_both_answers():
    sample = Sample("1", question="What is {it}?", references="It is a cat.", columns={"context": "A cat on a mat."})
    request = judge_request(WILD, sample, "It is a {dog}.")
    ((turn,),) = (request.prompt,)
    (text,) = turn.parts
    places = [text.index(part) for part in ("A cat on a mat.", "What is {it}?", "It is a cat.", "It is a {dog}.")]
    assert places == sorted(places)
    assert turn.role == "user"
    assert request.images == ()
    assert request.max_new_tokens > 0


def test_the_judge_of_mm_vet_sees_the_reference():
    sample = Sample("1", question="Which?", references="a <AND> b")
    (turn,) = judge_request(VET, sample, "only a").prompt
    assert turn.parts[0].endswith(
        "Question: Which?\nCorrect answer: a <AND> b\nAnswer: only a\nWrite nothing but the score.\nScore:"
    )


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("8 6\nThe first is better.", {"reference": 8.0, "score": 6.0}),
        ("9, 7.5", {"reference": 9.0, "score": 7.5}),
        ("  10 1", {"reference": 10.0, "score": 1.0}),
        ("11 2", None),
        ("8", None),
        ("8 6 7", None),
        ("I cannot judge.", None),
        ("", None),
    ],
)
def test_two_scores_are_read_on_the_first_line(text, verdict):
    assert read_verdict(WILD, text) == verdict


@pytest.mark.parametrize(
    ("text", "score"),
    [("0.5", 0.5), (" 1.0\n", 1.0), ("Score: 0.3", 0.3), ("0", 0.0), ("1.5", None), ("none", None), ("", None)],
)
def test_one_score_is_read(text, score):
    assert read_verdict(VET, text) == (None if score is None else {"score": score})


def test_llava_wild_is_the_ratio_of_the_means():
    verdicts = [{"reference": 8.0, "score": 6.0}, {"reference": 10.0, "score": 3.0}, None]
    scores = aggregate(WILD, verdicts, ["conv", "detail", "detail"])
    assert scores == {
        "judge": 0.5,
        "judge/conv": 0.75,
        "judge/detail": 0.3,
        "unread": pytest.approx(1 / 3),
    }


def test_a_question_of_mm_vet_counts_in_all_of_its_capabilities():
    scores = aggregate(VET, [{"score": 1.0}, {"score": 0.5}], ["ocr,math", "ocr"])
    assert scores == {"judge": 0.75, "judge/ocr": 0.75, "judge/math": 1.0, "unread": 0.0}


def test_without_a_verdict_there_is_no_score():
    with pytest.raises(ValueError, match="None of the 2 verdicts"):
        aggregate(VET, [None, None])
