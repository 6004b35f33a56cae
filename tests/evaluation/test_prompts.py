"""Prompts are equal, byte by byte, to worked examples, and answers are read as the metrics take them."""

import dataclasses

import pytest
from evaluation_data import picture

from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.prompts import build_requests, prediction, prompt_hash, template_of
from mm1_hf.evaluation.requests import Answer, Turn
from mm1_hf.evaluation.samples import Sample
from mm1_hf.evaluation.tasks import load_task
from mm1_hf.evaluation.templates import TEMPLATES, Template


A, B, C, D = (ImagePart(picture(number)) for number in range(4))
CAT = Sample("1", (A,), "What animal is it?", ["cat"] * 10, answer="cat")
DOG = Sample("2", (B,), "Is it old?", ["no"] * 10, answer="no")
QUERY = Sample("3", (C,), "What colour is it?", ["red"] * 10, answer="red")
LETTERS = Sample("4", (C,), "Which one?", "B", ("iron", "wood"), {"hint": "Context: A chair.\n"}, "B")


def only(requests):
    (request,) = requests
    return request


# Completion: MM1's prompts.


def test_captions_are_photos_of_something():
    coco = load_task("coco")
    shot = Sample("1", (A,), references=["a cat"], answer="a cat on a mat")
    request = only(build_requests(coco, Sample("3", (C,), references=["a dog"]), [shot]))
    assert request.prompt == (A, " A photo of a cat on a mat\n", C, " A photo of")
    assert (request.stop, request.max_new_tokens, request.continuations) == (("\n",), 30, ())


def test_questions_have_short_answers():
    request = only(build_requests(load_task("vqav2"), QUERY, [CAT, DOG]))
    assert request.prompt == (
        A,
        " Question: What animal is it? Short answer: cat\n",
        B,
        " Question: Is it old? Short answer: no\n",
        C,
        " Question: What colour is it? Short answer:",
    )
    assert request.stop == ("\n", ".", ",", "Question")
    assert request.whole is None


def test_without_shots_there_is_the_query_alone():
    assert only(build_requests(load_task("vqav2"), QUERY)).prompt == (C, " Question: What colour is it? Short answer:")


@pytest.mark.parametrize(("split_last", "whole"), [(None, None), (0, (0, 1, 2)), (1, (0,)), (2, ()), (9, ())])
def test_images_of_the_first_shots_are_not_split(split_last, whole):
    pair = dataclasses.replace(DOG, images=(B, D))
    request = only(build_requests(load_task("vqav2"), QUERY, [CAT, pair], split_last=split_last))
    assert len(request.images) == 4
    assert request.whole == (None if whole is None else frozenset(whole))


# Completion: TextCore, by the prompts of lm-evaluation-harness.


@pytest.mark.parametrize(
    ("task", "sample", "prompt", "continuations"),
    [
        (
            "arc_easy",
            Sample("1", question="What is ice?", references=1, choices=("wood", "water")),
            "Question: What is ice?\nAnswer:",
            (" wood", " water"),
        ),
        (
            "piqa",
            Sample("1", question="Open a box", references=0, choices=("Lift the lid.", "Sing.")),
            "Question: Open a box\nAnswer:",
            (" Lift the lid.", " Sing."),
        ),
        ("lambada", Sample("1", question="a b", references=["c"]), "a b", (" c",)),
        (
            "hellaswag",
            Sample("1", question="Roof: A man is up. He", references=0, choices=("falls.", "sings.")),
            "Roof: A man is up. He",
            (" falls.", " sings."),
        ),
        (
            "sciq",
            Sample("1", question="Some text.\nQuestion: What?", references=3, choices=("a", "b", "c", "d")),
            "Some text.\nQuestion: What?\nAnswer:",
            (" a", " b", " c", " d"),
        ),
        (
            "webqs",
            Sample("1", question="where is it?", references=["Here", "There"]),
            "Question: where is it?\nAnswer:",
            (" Here", " There"),
        ),
        ("triviaqa", Sample("1", question="Who is it", references=["Ann"]), "Question: Who is it?\nAnswer:", ()),
    ],
)
def test_textcore_is_asked_as_in_lm_evaluation_harness(task, sample, prompt, continuations):
    request = only(build_requests(load_task(task), sample))
    assert (request.prompt, request.continuations) == ((prompt,), continuations)
    assert bool(request.max_new_tokens) == (task == "triviaqa")


def test_winogrande_chooses_between_beginnings():
    sample = Sample(
        "1", references=1, choices=("is small.",) * 2, contexts=("since cup", "since box"), answer="is small."
    )
    first, second = build_requests(load_task("winogrande"), sample, [sample])
    assert first.prompt == ("since box is small.\n\nsince cup",)
    assert second.prompt == ("since box is small.\n\nsince box",)
    assert first.continuations == second.continuations == (" is small.",)


def test_shots_of_textcore_are_parted_by_an_empty_line():
    shot = Sample("2", question="What is wood?", references=0, choices=("soft", "water"), answer="soft")
    query = Sample("1", question="What is ice?", references=1, choices=("wood", "water"))
    request = only(build_requests(load_task("arc_easy"), query, [shot]))
    assert request.prompt == ("Question: What is wood?\nAnswer: soft\n\nQuestion: What is ice?\nAnswer:",)


# Chats: LLaVA's requests.


def test_a_chat_asks_for_a_word_or_a_phrase():
    request = only(build_requests(load_task("vqav2"), QUERY, [CAT], style="chat"))
    suffix = "\nAnswer the question using a single word or phrase."
    assert request.prompt == (
        Turn("user", (A, f"What animal is it?{suffix}")),
        Turn("assistant", ("cat",)),
        Turn("user", (C, f"What colour is it?{suffix}")),
    )
    assert request.stop == ()


@pytest.mark.parametrize(
    ("task", "sample", "text"),
    [
        (
            "scienceqa_img",
            LETTERS,
            "Context: A chair.\nWhich one?\nA. iron\nB. wood\n"
            "Answer with the option's letter from the given choices directly.",
        ),
        (
            "scienceqa_img",
            dataclasses.replace(LETTERS, columns={"hint": ""}),
            "Which one?\nA. iron\nB. wood\nAnswer with the option's letter from the given choices directly.",
        ),
        (
            "seed",
            LETTERS,
            "Which one?\nA. iron\nB. wood\nAnswer with the option's letter from the given choices directly.",
        ),
        (
            "vizwiz",
            QUERY,
            "What colour is it?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
            "Answer the question using a single word or phrase.",
        ),
        ("coco", QUERY, "Provide a one-sentence caption for the provided image."),
        ("mme", QUERY, "What colour is it?"),
        (
            "refcoco",
            dataclasses.replace(QUERY, question="the left cup"),
            "What is the location of the left cup in the image?",
        ),
    ],
)
def test_requests_of_chats(task, sample, text):
    request = only(build_requests(load_task(task), sample, style="chat"))
    assert request.prompt == (Turn("user", (C, text)),)


def test_an_open_question_of_mmmu_has_no_line_of_options():
    open_question = Sample("1", (A,), "What is <image>?", "7", columns={"request": "Answer briefly."})
    request = only(build_requests(load_task("mmmu"), open_question))
    assert request.prompt == (Turn("user", ("What is ", A, "?\nAnswer briefly.")),)


def test_images_stand_at_the_marks_of_question_and_options():
    sample = Sample("1", (A, B, C, D), "Is <image> like", "A", ("this <image>", "<image>"))
    request = only(build_requests(load_task("muirbench"), sample))
    suffix = "\nAnswer with the option's letter from the given choices directly."
    assert request.prompt == (Turn("user", (A, "Is ", B, " like\nA. this ", C, "\nB. ", D, suffix)),)


def test_marks_of_options_that_are_not_shown_give_their_images_no_place():
    sample = Sample("1", (A, B), "Which?", "A", ("<image>", "none"))
    request = only(build_requests(load_task("muirbench"), sample, template="chat"))
    assert request.prompt == (Turn("user", (A, B, "Which?")),)


def test_a_chat_may_have_likelihoods():
    sample = Sample("1", question="What is ice?", references=1, choices=("wood", "water"))
    request = only(build_requests(load_task("arc_easy"), sample, style="chat"))
    assert (request.prompt, request.continuations) == ((Turn("user", ("What is ice?",)),), ("wood", "water"))


# VL-ICL: the instruction comes once.


def test_an_instruction_comes_once():
    task = load_task("vl_icl_open_mi")
    instruction = "Induce the concept from the examples, and answer with a single word or phrase.\n"
    shot = Sample("1", (A,), "This is a", "dax", answer="dax")
    query = Sample("2", (B,), "This is a", "blicket")
    request = only(build_requests(task, query, [shot]))
    assert request.prompt == (instruction, A, "\nThis is a\nAnswer: dax\n", B, "\nThis is a\nAnswer:")
    chat = only(build_requests(task, query, [shot], style="chat"))
    assert chat.prompt == (
        Turn("user", (instruction, A, "This is a")),
        Turn("assistant", ("dax",)),
        Turn("user", (B, "This is a")),
    )


# Chain of thought.


def test_a_thought_precedes_the_answer():
    task = load_task("scienceqa_img")
    shot = dataclasses.replace(LETTERS, id="0", columns={"rationale": "Chairs burn."})
    request = only(build_requests(task, LETTERS, [shot], style="completion", template="thought"))
    asked = " Question: Which one?\nA. iron\nB. wood\nLet's think step by step."
    assert request.prompt == (C, f"{asked} Chairs burn. The answer is B.\n\n", C, asked)
    bare = dataclasses.replace(shot, columns={"rationale": ""})
    request = only(build_requests(task, LETTERS, [bare], style="completion", template="thought"))
    assert request.prompt[1] == f"{asked} The answer is B.\n\n"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It burns. The answer is B.", "B"),
        (" The answer is A? No. The answer is (B).\n", "(B)"),
        ("B", "B"),
    ],
)
def test_the_answer_follows_the_thought(text, answer):
    task = load_task("scienceqa_img")
    assert prediction(task, LETTERS, [Answer(text)], template="chat_thought")[0] == answer


# Overriding.


def test_a_template_replaces_the_tasks():
    own = Template("{image}{question} =>", " {answer}", separator=";")
    request = only(build_requests(load_task("vqav2"), QUERY, [CAT], template=own))
    assert request.prompt == (A, "What animal is it? => cat;", C, "What colour is it? =>")
    assert template_of(load_task("vqav2"), "completion", own) == own


def test_braces_are_text_in_questions_and_can_be_written_in_templates():
    query = dataclasses.replace(QUERY, question="What is {x}?")
    request = only(build_requests(load_task("vqav2"), query, template=Template("{image}{{}} {question}")))
    assert request.prompt == (C, "{} What is {x}?")


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (
            "chat_letter_hint",
            "has the field 'hint', which the samples of the task vqav2 lack; they have image, options, quest",
        ),
        ("question_answer", "has no place for the images of the task vqav2"),
        ("nothing", "There is no template 'nothing'"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(template, match):
    with pytest.raises(ValueError, match=match):
        build_requests(load_task("vqav2"), QUERY, template=template)


def test_an_answers_field_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="the field 'rationale', which sample 1 lacks"):
        build_requests(load_task("vqav2"), QUERY, [CAT], template="thought")


@pytest.mark.parametrize(
    ("query", "answer", "match"),
    [
        ("no field", " {answer}", "at least one field"),
        ("{question.text}", " {answer}", "only names in braces"),
        ("{question:>10}", " {answer}", "only names in braces"),
        ("{0}", " {answer}", "only names in braces"),
        ("{question", " {answer}", "expected '}'"),
        ("{question}", " {question}", "needs the field {answer}"),
    ],
)
def test_templates_are_checked(query, answer, match):
    with pytest.raises(ValueError, match=match):
        Template(query, answer)


def test_the_hash_changes_with_all_that_decides_a_prompt():
    task = load_task("vqav2")
    hashes = {
        prompt_hash(task),
        prompt_hash(task, "chat"),
        prompt_hash(task, template="chat"),
        prompt_hash(dataclasses.replace(task, stop=("\n",))),
        prompt_hash(dataclasses.replace(task, max_new_tokens=5)),
    }
    assert len(hashes) == 5
    assert prompt_hash(task) == prompt_hash(load_task("vqav2"))
    assert prompt_hash(task) == prompt_hash(task, "completion", TEMPLATES["vqa"])


# What the metric takes.


def test_a_text_is_stripped():
    assert prediction(load_task("vqav2"), QUERY, [Answer(" red ")])[0] == "red"


def test_an_error_is_an_empty_text():
    assert prediction(load_task("vqav2"), QUERY, [Answer("red", error="no")])[0] == ""


def test_likelihoods_of_all_requests_are_joined():
    task = load_task("winogrande")
    sample = Sample("1", references=1, choices=("x", "x"), contexts=("a", "b"), columns={"choices": ["x", "x"]})
    answers = [Answer(log_likelihoods=(-1.0,)), Answer(log_likelihoods=(-2.0,))]
    assert prediction(task, sample, answers) == ([-1.0, -2.0], {"choices": ["x", "x"]})


def test_of_an_error_nothing_is_chosen():
    sample = Sample("1", question="q", references=0, choices=("a", "b"))
    assert prediction(load_task("piqa"), sample, [Answer(error="too long")]) == ([], {})
    # One of two contexts is too long.
    answers = [Answer(log_likelihoods=(-1.0,)), Answer(error="too long")]
    sample = Sample("1", references=0, choices=("x", "x"), contexts=("a", "b"))
    assert prediction(load_task("winogrande"), sample, answers) == ([], {})


def test_greedy_texts_come_with_their_likelihoods():
    task = load_task("webqs")
    sample = Sample("1", question="q", references=["a", "b"])
    answers = [Answer(log_likelihoods=(-1.0, -2.0), greedy=(False, True))]
    assert prediction(task, sample, answers) == ([False, True], {"log_likelihoods": [-1.0, -2.0]})
    assert prediction(task, sample, [Answer(error="too long")]) == ([], {"log_likelihoods": []})
