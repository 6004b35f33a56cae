from collections import Counter

import pytest

from mm1_hf.quickstart.easy_vqa import Picture, Question, epoch_batches, kind_of, load_split, majority_answers


TRAIN, TEST = load_split("train"), load_split("test")


def test_the_published_splits_are_whole():
    assert (len(TRAIN), len(TEST)) == (4000, 1000)
    questions = [question for picture in TRAIN + TEST for question in picture.questions]
    assert len(questions) == 48_248
    assert Counter(question.kind for picture in TEST for question in picture.questions) == {
        "yes/no": 7136,
        "colour": 1280,
        "shape": 1257,
    }
    assert len({question.answer for question in questions}) == 13


def test_pictures_open():
    image = TEST[0].image()
    assert (image.size, image.mode) == ((64, 64), "RGB")


@pytest.mark.parametrize(
    ("answer", "kind"), [("yes", "yes/no"), ("no", "yes/no"), ("circle", "shape"), ("teal", "colour")]
)
def test_kinds(answer, kind):
    assert kind_of(answer) == kind


def test_another_answer_is_refused():
    with pytest.raises(ValueError, match="the answer 'purple'"):
        kind_of("purple")


def test_an_epoch_shows_every_picture_once_with_all_open_questions():
    batches = list(epoch_batches(TRAIN, 4, "all", seed=1))
    shown = [picture.image_id for batch in batches for picture, _ in batch]
    assert len(set(shown)) == len(shown) and shown != sorted(shown)
    assert set(shown) <= {picture.image_id for picture in TRAIN} and len(shown) > 0.95 * len(TRAIN)
    for batch in batches:
        assert len(batch) == 4
        for picture, questions in batch:
            open_questions = [question for question in picture.questions if question.kind != "yes/no"]
            assert questions[: len(open_questions)] == open_questions
            assert set(questions) <= set(picture.questions)


@pytest.mark.parametrize("lesson", ["compare", "all"])
def test_yes_and_no_say_nothing_by_the_words_alone(lesson):
    answers = Counter()
    for batch in epoch_batches(TRAIN, 6, lesson):
        for _, questions in batch:
            answers.update(
                (question.is_negated, question.answer) for question in questions if question.kind == "yes/no"
            )
    assert answers[False, "yes"] > 1000
    assert answers[False, "yes"] == pytest.approx(answers[False, "no"], rel=0.1)
    assert answers[True, "yes"] == pytest.approx(answers[True, "no"], rel=0.1)
    assert (answers[True, "no"] > 0) == (lesson == "all")


def test_what_a_question_names():
    picture = next(
        picture for picture in TRAIN if {"blue", "rectangle"} <= {each.answer for each in picture.questions}
    )
    for question in picture.questions:
        if question.kind == "yes/no":
            words = set(question.text.rstrip("?").split())
            assert question.names_what_is_shown == (not words.isdisjoint({"blue", "rectangle"})), question.text


def test_a_picture_without_questions_of_the_lesson_is_left_out():
    # A question that names what is not shown cannot be balanced by one that names what is.
    asked = {
        0: [("what shape?", "circle")],
        1: [("is it red?", "no")],
        2: [("is it red?", "no"), ("is it blue?", "yes")],
    }
    pictures = [
        Picture(number, None, tuple(Question(text, answer, kind_of(answer)) for text, answer in questions))
        for number, questions in asked.items()
    ]
    batches = list(epoch_batches(pictures, 1, "compare"))
    assert sorted((picture.image_id, len(questions)) for ((picture, questions),) in batches) == [(0, 1), (2, 2)]


def test_epochs_repeat_by_seed_and_differ_between_seeds():
    first, again, other = (list(epoch_batches(TRAIN[:40], 4, "all", seed=seed)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_majority_answers():
    def picture(*answers):
        return Picture(0, None, tuple(Question("?", answer, kind_of(answer)) for answer in answers))

    assert majority_answers([picture("yes", "no", "red"), picture("no", "blue", "red")]) == {
        "yes/no": "no",
        "colour": "red",
    }
