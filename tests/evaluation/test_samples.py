"""What becomes of a record: references, images, options, and what is said of records that cannot be used."""

import dataclasses
import json

import pytest
from datasets import Dataset, disable_progress_bars
from evaluation_data import picture, tables_of, write_data

from mm1_hf.data.documents import Unusable
from mm1_hf.evaluation.odd_rows import PREPARERS
from mm1_hf.evaluation.samples import read_samples
from mm1_hf.evaluation.tasks import load_task


disable_progress_bars()


def written(tmp_path, name, rows, split="test", config=""):
    """The samples of a task whose data are these rows."""
    folder = tmp_path / config / "data"
    folder.mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return read_samples(load_task(name), data=tmp_path)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    rows = [
        {name: value for name, value in row.items() if name != "answers"}
        for row in tables_of("textvqa")[("", "validation")]
    ]
    with pytest.raises(
        ValueError,
        match=r"no column 'answers', which the task textvqa reads; there are image, ocr_tokens, question, quest",
    ):
        written(tmp_path, "textvqa", rows, "validation")


def test_a_column_that_a_preparation_needs_is_named(tmp_path):
    rows = [
        {name: value for name, value in row.items() if name != "bbox"} for row in tables_of("refcoco")[("", "testA")]
    ]
    with pytest.raises(ValueError, match="no column 'bbox'"):
        written(tmp_path, "refcoco", rows, "testA")


def test_a_missing_column_of_the_second_table_is_named(tmp_path):
    write_data(tmp_path, "gqa")
    folder = tmp_path / "gqa" / "testdev_balanced_images" / "data"
    Dataset.from_list([{"id": "i0", "picture": picture(0)}]).to_parquet(folder / "testdev-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="no column 'image'"):
        read_samples(load_task("gqa"), data=tmp_path)


def test_an_image_that_the_second_table_lacks_is_the_samples_error(tmp_path):
    write_data(tmp_path, "gqa")
    folder = tmp_path / "gqa" / "testdev_balanced_images" / "data"
    Dataset.from_list([{"id": "i0", "image": picture(0)}]).to_parquet(folder / "testdev-00000-of-00001.parquet")
    samples = read_samples(load_task("gqa"), data=tmp_path)
    assert [sample.error is None for sample in samples] == [True, True, False, False]
    assert "there is no image 'i1'" in samples[2].error
    assert samples[2].scored


def test_an_empty_reference_is_kept_and_not_scored(tmp_path):
    rows = tables_of("textvqa")[("", "validation")]
    rows[0]["answers"], rows[1]["answers"] = [], None
    samples = written(tmp_path, "textvqa", rows, "validation")
    assert [sample.scored for sample in samples] == [False, False, True]
    assert all(sample.error is None for sample in samples)


def test_a_hidden_split_has_no_references(tmp_path):
    samples = read_samples(load_task("vqav2@testdev"), data=write_data(tmp_path, "vqav2") / "vqav2")
    assert [(sample.scored, sample.columns["question_id"]) for sample in samples] == [(False, n) for n in range(3)]


def test_a_missing_image_is_the_samples_error(tmp_path):
    rows = tables_of("textvqa")[("", "validation")]
    rows[1]["image"] = None
    samples = written(tmp_path, "textvqa", rows, "validation")
    assert [sample.error is None for sample in samples] == [True, False, True]
    assert samples[1].error.startswith("no image")
    assert samples[1].scored


def test_an_undecodable_image_is_found_by_who_opens_it_and_never_decoded_here(tmp_path):
    lines = [
        {
            "id": "1",
            "image": "data:image/png;base64,AAAA",
            "question": "What?",
            "answers": ["a"] * 10,
            "question_id": 1,
        }
    ]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (sample,) = read_samples(load_task("textvqa"), data=tmp_path)
    assert sample.error is None
    with pytest.raises(Unusable, match="corrupt image"):
        sample.images[0].load()


def test_an_unreadable_picture_with_a_box_scores_nothing_whatever_its_size(tmp_path):
    line = {"question_id": "1", "image": "data:image/png;base64,AAAA", "answer": ["it"], "bbox": [1, 1, 2, 2]}
    (tmp_path / "testA.jsonl").write_text(json.dumps(line))
    (sample,) = read_samples(load_task("refcoco"), data=tmp_path)
    assert "corrupt image" in sample.error
    assert sample.references == [[1, 1, 3, 3]]
    assert (sample.columns["heights"], sample.columns["widths"]) == (1, 1)


def test_a_broken_line_is_one_samples_error(tmp_path):
    good = {"url": "u", "question": "where?", "answers": ["there"]}
    (tmp_path / "test.jsonl").write_text(
        f"{json.dumps(good)}\n{{broken\n{json.dumps({'url': 'v', 'question': 'why?'})}\n"
    )
    samples = read_samples(load_task("webqs"), data=tmp_path)
    assert [sample.error is None for sample in samples] == [True, False, False]
    assert [sample.scored for sample in samples] == [True, False, False]


def test_no_record_can_be_read(tmp_path):
    (tmp_path / "test.jsonl").write_text("{broken\n{broken\n")
    with pytest.raises(ValueError, match="None of the first records"):
        read_samples(load_task("webqs"), data=tmp_path)


def test_no_question_is_left_by_the_filter(tmp_path):
    rows = [{**row, "data_type": "video"} for row in tables_of("seed")[("", "test")]]
    with pytest.raises(ValueError, match=r"no question in the split test with data_type \['image'\]"):
        written(tmp_path, "seed", rows)


def test_names_that_are_not_unique_get_the_number_of_the_record(tmp_path):
    rows = tables_of("textvqa")[("", "validation")]
    rows[2]["question_id"] = 0
    assert written(tmp_path, "textvqa", rows, "validation").ids == ["0@0", "1", "0@2"]


def test_the_limit_takes_the_first_questions(tmp_path):
    task = load_task("refcoco")
    data = write_data(tmp_path, "refcoco")
    assert read_samples(task, data=data, limit=3).ids == ["0-0", "0-1", "1-0"]
    assert [sample.id for sample in read_samples(task, data=data)[-2:]] == ["2-0", "2-1"]


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    rows = tables_of("textvqa")[("", "validation")]
    samples = written(tmp_path / "a", "textvqa", rows, "validation")
    same = written(tmp_path / "b", "textvqa", rows, "validation")
    changed = [dict(row) for row in rows]
    changed[0]["question"] = "Which?"
    assert samples.fingerprint == same.fingerprint
    assert samples.fingerprint != written(tmp_path / "c", "textvqa", changed, "validation").fingerprint
    shorter = read_samples(load_task("textvqa"), data=tmp_path / "a", limit=2)
    assert samples.fingerprint != shorter.fingerprint


def test_a_demonstration_says_the_most_frequent_answer(tmp_path):
    rows = tables_of("textvqa")[("", "validation")]
    rows[0]["answers"] = ["b"] * 4 + ["a"] * 5 + ["c"]
    rows[1]["answers"] = ["b"] * 5 + ["a"] * 5
    assert [sample.answer for sample in written(tmp_path, "textvqa", rows, "validation")][:2] == ["a", "b"]


def test_images_of_mmmu_stand_where_the_marks_say(tmp_path):
    first = tables_of("mmmu")[("", "validation")][0]
    first["image_3"] = picture(99)
    first["question"] = "Compare <image 2> with <image 1>."
    first["options"] = "['like <image 2>', 'no']"
    (sample,) = written(tmp_path, "mmmu", [first], "validation")
    assert sample.question == "Compare <image> with <image>."
    assert sample.choices == ("like <image>", "no")
    # The third image has no mark, and comes first.
    colours = [image.load().convert("RGB").getpixel((0, 0))[0] for image in sample.images]
    assert colours == [99, 2, 1, 2]
    assert sample.columns["question_types"] == "multiple-choice"


def test_an_open_question_of_mmmu_has_several_answers_and_another_request(tmp_path):
    samples = read_samples(load_task("mmmu"), data=write_data(tmp_path, "mmmu"))
    assert samples[1].references == ["seven", "7"]
    assert samples[1].columns["options"] == []
    assert samples[1].columns["request"] == "Answer the question using a single word or phrase."


def test_more_marks_than_images_is_the_samples_error(tmp_path):
    rows = tables_of("muirbench")[("", "test")]
    rows[0]["question"] = "<image> <image> and <image>?"
    samples = written(tmp_path, "muirbench", rows)
    assert "5 marks <image> for 3 images" in samples[0].error
    assert samples[1].error is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [("[1, 2", "is not the text of a list"), ("{'a': 1}", "is not the text of a list"), ("f()", "not the")],
)
def test_options_are_read_as_a_list_and_never_run(text, reason):
    record = tables_of("mmmu")[("", "validation")][0] | {"options": text}
    with pytest.raises(Unusable, match=reason):
        PREPARERS["mmmu"](record, "record 0")


@pytest.mark.parametrize(
    ("prepare", "record", "expected"),
    [
        # Worked by hand, by the rules of lm-evaluation-harness.
        (
            "hellaswag",
            {
                "activity_label": "Roof",
                "ctx_a": "A man [header] is up.",
                "ctx_b": "he Starts",
                "endings": [" a [title] b", "c [x]  d"],
            },
            {"query": "Roof: A man is up. He starts", "choices": ["a. b", "c  d"]},
        ),
        (
            "winogrande",
            {"sentence": "The cup fits the box since _ is small .", "option1": "cup", "option2": "box", "answer": "1"},
            {
                "contexts": ["The cup fits the box since cup", "The cup fits the box since box"],
                "choices": ["is small ."] * 2,
                "gold": 0,
            },
        ),
        ("lambada", {"text": "a b  c"}, {"context": "a b ", "word": ["c"]}),
        (
            "web_questions",
            {"answers": ["New York City", "New York", "Boston", "New York"]},
            {"answers": ["Boston", "New York"]},
        ),
        ("sciq", {"support": "  s", "question": "q"}, {"prompt": "s\nQuestion: q", "gold": 3}),
        ("arc", {"choices": {"label": ["1", "2"]}, "answerKey": "2"}, {"answer_index": 1}),
        ("mmbench", {"hint": "nan", "answer": "nan", "index": "7"}, {"hint": "", "answer": None, "index": 7}),
        ("mmbench", {"hint": "h", "answer": "B", "index": 7}, {"hint": "h\n", "answer": "B", "index": 7}),
        ("blink", {"answer": "hidden"}, {"answer": None}),
        ("science_qa", {"hint": "h"}, {"hint": "Context: h\n"}),
        (
            "nlvr2",
            {"options": ["(A) True", "B. False"], "answer": "false"},
            {"options": ["True", "False"], "answer": "B"},
        ),
        (
            "nlvr2",
            {"left_image": 1, "right_image": 2, "sentence": "Two dogs.", "label": "True"},
            {
                "images": [1, 2],
                "question": "Is the statement true of the two images? Two dogs.",
                "options": ["True", "False"],
                "answer": "A",
            },
        ),
    ],
)
def test_odd_records_are_prepared(prepare, record, expected):
    assert PREPARERS[prepare](record, "record 0") == expected


@pytest.mark.parametrize(
    ("prepare", "record"),
    [
        ("winogrande", {"sentence": "no blank", "answer": "1"}),
        ("winogrande", {"sentence": "a _", "answer": "3"}),
        ("arc", {"choices": {"label": ["A"]}, "answerKey": "E"}),
    ],
)
def test_records_without_an_answer_are_refused(prepare, record):
    with pytest.raises(Unusable):
        PREPARERS[prepare](record, "record 0")


def test_an_index_without_a_choice_is_the_samples_error(tmp_path):
    rows = tables_of("ai2d")[("", "test")]
    rows[0]["answer"] = "4"
    samples = written(tmp_path, "ai2d", rows)
    assert "the answer is 4, but there are 4 choices" in samples[0].error
    assert samples[1].references == "B"


def test_only_the_last_options_may_be_missing(tmp_path):
    rows = tables_of("mmbench")[("en", "dev")][:1]
    rows[0] |= {"A": "one", "B": "nan", "C": "three", "D": "nan"}
    (sample,) = written(tmp_path, "mmbench", rows, "dev", "en")
    assert sample.choices == ("one", "", "three")


def test_an_option_of_a_list_may_be_called_nan(tmp_path):
    rows = tables_of("ai2d")[("", "test")]
    rows[0]["options"] = ["nan", "N/A", "x", "y"]
    assert written(tmp_path, "ai2d", rows)[0].choices == ("nan", "N/A", "x", "y")


def test_vl_icl_brings_demonstrations_that_depend_on_the_query(tmp_path):
    samples = read_samples(
        load_task("vl_icl_operator_induction"), data=write_data(tmp_path, "vl_icl_operator_induction")
    )
    # Plus, minus and times: the first, second and third answer of a demonstration.
    assert [[shot.answer for (shot,) in sample.pool] for sample in samples] == [
        [str(n + place) for n in range(4)] for place in range(3)
    ]


def test_a_made_up_name_comes_with_one_other_name(tmp_path):
    for name in ("vl_icl_open_mi", "vl_icl_open_mi_text"):
        for sample in read_samples(load_task(name), data=write_data(tmp_path / name, name)):
            answers = {tuple(shot.answer for shot in group) for group in sample.pool}
            assert len(answers) == 1
            assert sample.answer in answers.pop()


def test_easy_vqa_is_a_whole_task_without_a_download():
    samples = read_samples(load_task("easy_vqa"))
    assert len(samples) == 9673
    assert samples[0].images[0].size() == (64, 64)
    assert samples.ids[-1] == "test-9672"


def test_a_task_is_data_alone():
    assert json.dumps(dataclasses.asdict(load_task("mmmu")))
