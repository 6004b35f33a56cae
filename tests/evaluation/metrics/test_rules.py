"""Cases that are worked by hand, from the papers and from what the metrics' descriptions promise."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm1_hf.evaluation.metrics import load
from mm1_hf.evaluation.metrics.cider.tokenizer import tokenize
from mm1_hf.evaluation.metrics.mathvista.scoring import extract
from mm1_hf.evaluation.metrics.multiple_choice.letters import read_letter
from mm1_hf.evaluation.metrics.vqa_accuracy.scoring import normalize


def result_of(name: str, predictions, references, **columns) -> dict[str, float]:
    metric = load(name)
    grouped = {column: columns.pop(column) for column in metric.GROUP_COLUMNS if column in columns}
    return metric.aggregate(metric.per_sample(predictions, references, **columns), **grouped)


# VQA accuracy.


@pytest.mark.parametrize("matches", range(11))
def test_vqa_accuracy_leaves_one_of_ten_people_out(matches):
    answers = ["cat"] * matches + [f"other {index}" for index in range(10 - matches)]
    expected = [0, 0.3, 0.6, 0.9][matches] if matches < 4 else 1
    assert load("vqa_accuracy").score("cat", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("A cat.", "cat"),
        ("U.S.A.", "usa"),
        ("3.5.", "3.5"),
        ("1,000", "1000"),
        ("red, white", "red white"),
        ("red-white", "red white"),
        ("a/b", "b"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("Dont", "don't"),
        ("an", ""),
        ("it's", "it's"),
        ("$5.00", "$5.00"),
        ("somebody'd", "somebodyd"),
    ],
)
def test_vqa_normaliser(answer, normal):
    assert normalize(answer) == normal


def test_vqa_answers_are_not_normalised_if_all_people_agree():
    score = load("vqa_accuracy").score
    assert score("2", ["two"] * 10) == 0
    assert score("2", ["two"] * 9 + ["2 "]) == 1
    assert score("2", ["two"] * 10, normalizer="evalai") == 1


# Captions.


def test_cider_of_small_sets():
    captions = ["a cat on a mat", "a dog runs", "a man rides a horse"]
    references = [
        ["a cat on a mat", "the cat sits on a mat"],
        ["a dog is running in the park", "a dog runs fast"],
        ["a man riding a horse", "a person on a horse"],
    ]
    metric = load("cider")
    samples = metric.per_sample(captions, references)
    assert [sample["cider"] for sample in samples] == pytest.approx([6.740777, 3.486014, 2.305027], abs=1e-6)
    assert metric.aggregate(samples)["cider"] == pytest.approx(4.177273, abs=1e-6)
    assert result_of("cider", ["a a a a a cat", "dog"], [["a cat"], ["dog"]])["cider"] == pytest.approx(1.770365)
    assert result_of("cider", ["a cat"], [["a cat"]]) == {"cider": 0}


def test_punctuation_is_removed_but_brackets_stay():
    assert tokenize("The man's \"best\" dog (left), isn't it?") == (
        ["the", "man", "'s", "best", "dog", "-lrb-", "left", "-rrb-", "is", "n't", "it"]
    )


@given(st.text())
def test_any_text_is_tokenised(caption):
    assert all(word == word.strip() and word for word in tokenize(caption))


# Letters.


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("B. a dog", "B"),
        ("(B) a dog", "B"),
        ("The answer is B", "B"),
        ("A is wrong, so the answer is (C).", "C"),
        ("Answer: D, because A and B are wrong", "D"),
        ("(A) is too small and (B) is right", "A"),
        ("It must be B", "B"),
        ("A dog is next to the tree.", "C"),
        ("It is a black dog.", "D"),
        ("The answer is B because A is a cat", "B"),
        ("The answer is A because it is red", "A"),
        ("Of all options I choose D here", "D"),
        ("A and B", None),
        ("a cat and a dog", None),
        ("The answer is unknown", None),
        ("NASA", None),
        ("F", None),
        ("", None),
    ],
)
def test_letters_are_read_by_their_rules(answer, letter):
    assert read_letter(answer, ["red", "cat", "dog", "black dog"]) == letter


@given(st.text(max_size=40))
def test_only_letters_of_options_are_read(answer):
    assert read_letter(answer, ["x", None, "y"]) in {"A", "C", None}


def test_multiple_choice_counts_unread_answers_as_wrong():
    result = result_of(
        "multiple_choice",
        ["B", "no idea", "Twelve.", "(a)"],
        ["B", "C", "twelve", "(A)"],
        options=[["x", "y"], None, None, ["x", "y"]],
        categories=["one", "one", "two", "two"],
    )
    assert result == {"accuracy": 0.75, "accuracy/one": 0.5, "accuracy/two": 1.0, "unread": 0.25}


def test_mmbench_needs_every_rotation():
    result = result_of(
        "mmbench",
        ["A", "B", "A", "A", "the cat"],
        ["A", "B", "A", "C", "B"],
        options=[["cat", "dog", "cow", "pig"]] * 4 + [["dog", "cat", None, None]],
        indices=["1", "1000001", "2", "1000002", "3"],
        categories=["x", "x", "x", "x", "y"],
    )
    assert result["circular_accuracy"] == pytest.approx(2 / 3)
    assert result["circular_accuracy/x"] == 0.5
    assert result["circular_accuracy/y"] == 1
    assert result["accuracy"] == 1


def test_mmmu_does_not_guess():
    columns = {"question_types": ["multiple-choice"] * 2, "options": [["red", "blue"]] * 2}
    result = result_of("mmmu", ["no idea", "(B)"], ["A", "B"], **columns)
    assert result == {"accuracy": 0.5, "unread": 0.5}


# Yes and no.


def test_pope_is_the_mean_over_categories():
    result = result_of(
        "pope",
        ["Yes, there is.", "No.", "There is not a dog. Yes", "Dogs"],
        ["yes", "yes", "no", "no"],
        categories=["random", "random", "popular", "popular"],
    )
    assert result["f1/random"] == pytest.approx(2 / 3)
    assert result["f1/popular"] == 0
    assert result["f1"] == pytest.approx(1 / 3)
    assert result["accuracy"] == 0.5
    assert result["yes_share"] == 0.5
    assert result["unread"] == 0.25


def test_mme_counts_pairs_with_one_question():
    result = result_of(
        "mme",
        ["yes", "no", "yes"],
        ["Yes", "No", "No"],
        categories=["count", "count", "count"],
        question_ids=["1", "1", "2"],
    )
    assert result["perception"] == pytest.approx(100 * 2 / 3 + 100)
    assert result["incomplete_pairs"] == 1


# Answers in words and numbers.


@pytest.mark.parametrize(
    ("prediction", "reference", "normalizer", "score"),
    [
        ("  Left. ", "left", "case_punctuation", 1),
        ("the left", "left", "case_punctuation", 0),
        ("The “Beatles”", "beatles", "triviaqa", 0),
        ("The ‘Beatles’", ["x", "beatles"], "triviaqa", 1),
        ("Rock_and_Roll", "rock and roll", "triviaqa", 1),
        ("Dax", "dax", "none", 0),
        ("Dax", "dax", "case", 1),
        ("It is 012 or 13", "12", "first_integer", 1),
        ("twelve", "12", "first_integer", 0),
        ("Yes, they match", "Yes", "yes_no", 1),
        ("They differ", "No", "yes_no", 1),
    ],
)
def test_exact_match(prediction, reference, normalizer, score):
    assert load("exact_match").score(prediction, reference, normalizer) == score


def test_anls_at_its_threshold():
    score = load("anls").score
    assert score("abcd", ["abxy"]) == 0.5
    assert score("abcde", ["abxyz"]) == 0
    assert score("", [""]) == 1


def test_chartqa_is_the_mean_of_its_halves():
    columns = {"categories": ["human_test", "human_test", "augmented_test"]}
    result = result_of("relaxed_accuracy", ["10", "0.5", "Yes"], ["10.5", "60%", "yes"], **columns)
    assert result == {
        "relaxed_accuracy": 0.75,
        "relaxed_accuracy/human_test": 0.5,
        "relaxed_accuracy/augmented_test": 1.0,
    }


def test_ocrbench_gives_points_of_1000():
    columns = {"datasets": ["svt", "HME100k"], "question_types": ["scene", "formula"]}
    result = result_of("ocrbench", ["It says ＳＴＯＰ", "x + Y"], [["stop"], ["x+y"]], **columns)
    assert result == {"accuracy": 0.5, "score": 500.0, "accuracy/scene": 1.0, "accuracy/formula": 0.0}


@pytest.mark.parametrize(
    ("response", "answer_type", "choices", "found"),
    [
        ("12", "integer", None, "12"),
        ("There are 3 rows of 4, so the answer is 12 in total of 2 parts.", "integer", None, "12"),
        ("3 rows of 4 make 12.", "integer", None, "12"),
        ("It costs $1,234.50", "float", None, "1234.50"),
        ("many", "integer", None, None),
        ("The answer is (B).", "text", ["red", "blue"], "(B)"),
        ("B. blue", "text", ["red", "blue"], "B"),
        ("I see that it is blue here", "text", ["red", "blue"], "blue"),
        ("One could say that it has both red and blue", "text", ["red", "blue"], None),
        ("So we get [1, 2]", "list", None, "[1, 2]"),
        ("The final answer is: north.", "text", None, "north"),
        ("One cannot say it from this picture alone", "text", None, None),
    ],
)
def test_mathvista_finds_the_final_answer(response, answer_type, choices, found):
    assert extract(response, answer_type, choices) == found


def test_mathvista_scores():
    columns = {
        "choices": [["red", "blue"], None, None],
        "answer_types": ["text", "float", "integer"],
        "precisions": [None, 1.0, None],
    }
    result = result_of("mathvista", ["(B)", "about 2.349", "cannot say"], ["blue", "2.3", "7"], **columns)
    assert result == {"accuracy": pytest.approx(2 / 3), "unread": pytest.approx(1 / 3)}


# Boxes.


def test_boxes_are_counted_over_the_set():
    result = result_of(
        "box_recall",
        ["It is at [0, 0, 500, 500].", "[0, 0, 100, 100] and [500, 500, 1000, 1000] and [0, 0, 500, 500]", "nowhere"],
        [[[0, 0, 50, 50]], [[0, 0, 10, 10], [0, 0, 50, 50]], [[0, 0, 50, 50]]],
        heights=[100, 100, 100],
        widths=[100, 100, 100],
    )
    assert result == {"recall": pytest.approx(0.5)}


# Log-likelihoods.


def test_choices_are_divided_by_characters_or_bytes():
    columns = {"choices": [["cat", "elephants"], ["ééé", "abcde"]]}
    metric = load("choice_likelihood")
    samples = metric.per_sample([[-3.0, -4.0], [-4.0, -5.5]], [1, 0], **columns)
    assert samples == [
        {"acc": 0.0, "acc_norm": 1.0, "acc_bytes": 1.0, "unanswered": 0.0},
        {"acc": 1.0, "acc_norm": 0.0, "acc_bytes": 1.0, "unanswered": 0.0},
    ]


def test_what_was_not_answered_is_wrong_whichever_choice_is_right():
    columns = {"choices": [["a", "b"]] * 4}
    result = result_of("choice_likelihood", [[], [], [-1.0, -2.0], [-2.0, -1.0]], [0, 1, 0, 1], **columns)
    assert result == {"acc": 0.5, "acc_norm": 0.5, "acc_bytes": 0.5, "unanswered": 0.5}
    measured = {"log_likelihoods": [[], [-2.0], []]}
    result = result_of("greedy_match", [[], [True], []], [["x"], ["y"], ["z", "w"]], **measured)
    assert result == pytest.approx({"acc": 1 / 3, "unanswered": 2 / 3, "perplexity": math.exp(2)})
    assert result_of("greedy_match", [[]], [["x"]], log_likelihoods=[[]]) == {"acc": 0.0, "unanswered": 1.0}


def test_greedy_match_and_perplexity():
    result = result_of(
        "greedy_match", [[False, True], [False]], [["x", "y"], ["z"]], log_likelihoods=[[-3.0, -1.0], [-2.0]]
    )
    assert result == {"acc": 0.5, "unanswered": 0.0, "perplexity": pytest.approx(math.exp(1.5))}
    assert result_of("greedy_match", [[True]], [["x"]]) == {"acc": 1.0, "unanswered": 0.0}
