"""Every task of the package reads data of its published form, writes prompts, and a right answer scores full marks."""

from pathlib import Path

import pytest
from datasets import disable_progress_bars
from evaluation_data import write_data

from mm1_hf.evaluation import metrics, tasks
from mm1_hf.evaluation.demonstrations import Demonstrations
from mm1_hf.evaluation.metrics.averages import GROUPS
from mm1_hf.evaluation.prompts import build_requests, prediction
from mm1_hf.evaluation.requests import Answer
from mm1_hf.evaluation.samples import read_samples
from mm1_hf.evaluation.tasks import load_task, task_names


disable_progress_bars()

TASKS = """
    coco nocaps textcaps vqav2 textvqa vizwiz gqa okvqa
    arc_easy arc_challenge piqa lambada winogrande hellaswag sciq triviaqa webqs
    scienceqa_img mmmu mathvista mme mmbench seed pope llava_wild mm_vet ai2d chartqa docvqa infovqa ocrbench realworldqa
    refcoco refcoco_plus refcocog flickr30k_entities nlvr2 blink muirbench
    vl_icl_open_mi vl_icl_clevr vl_icl_textocr vl_icl_operator_induction vl_icl_operator_induction_interleaved
    vl_icl_matching_mi vl_icl_open_mi_text vl_icl_clevr_text vl_icl_operator_induction_text
    vl_icl_operator_induction_interleaved_text vl_icl_matching_mi_text
    easy_vqa
"""
# Captions of which each has its own words score less than 10, the most that CIDEr gives.
FULL_MARKS = {"cider": 6.9, "mme": 200 / 14}


def right_answers(task, sample, requests):
    """What a model would say that is always right."""
    if task.kind != "likelihood":
        return [Answer(sample.answer)]
    if task.metric == "greedy_match":
        (request,) = requests
        hits = tuple(text.strip() == sample.answer for text in request.continuations)
        return [Answer(log_likelihoods=tuple(-1.0 for _ in hits), greedy=hits)]
    values = iter(0.0 if index == sample.references else -9.0 for index in range(len(sample.choices)))
    return [Answer(log_likelihoods=tuple(next(values) for _ in request.continuations)) for request in requests]


def test_the_tasks_are_those_of_the_papers():
    assert set(task_names()) == set(TASKS.split())


@pytest.mark.parametrize("name", task_names())
def test_a_task_reads_its_data_and_scores_them(name, tmp_path):
    task = load_task(name)
    data = None if name == "easy_vqa" else write_data(tmp_path, name)
    samples = read_samples(task, data=data, limit=20)
    demonstrations = Demonstrations(read_samples(task, data=data, shots=True))
    predictions, references, columns = [], [], []
    for sample in samples:
        assert sample.error is None
        assert sample.scored
        for style in ("completion", "chat"):
            shots = demonstrations.draw(sample, 2)
            requests = build_requests(task, sample, shots, style=style)
            assert all(sample.id != shot.id for shot in shots)
            expected = sum(len(shot.images) for shot in [*shots, sample])
            assert all(len(request.images) == expected for request in requests)
        requests = build_requests(task, sample)
        found, more = prediction(task, sample, right_answers(task, sample, requests))
        predictions.append(found)
        references.append(sample.references)
        columns.append(more)
    assert len(set(samples.ids)) == len(samples)
    if not task.metric:
        return
    metric = metrics.load(task.metric)
    given = {key: [each[key] for each in columns] for key in metric.SAMPLE_COLUMNS if key in columns[0]}
    groups = {key: [each[key] for each in columns] for key in metric.GROUP_COLUMNS if key in columns[0]}
    scores = metric.aggregate(metric.per_sample(predictions, references, **given, **task.options), **groups)
    assert scores[metric.HEADLINE] >= FULL_MARKS.get(task.metric, 1.0)


@pytest.mark.parametrize("name", task_names())
def test_a_task_file_is_short_and_says_where_the_data_are_from(name):
    path = Path(tasks.__file__).parent / f"{name}.yaml"
    task = load_task(name)
    assert len(path.read_text().splitlines()) <= 20
    assert task.citation
    assert task.licence
    assert task.data or task.source == "easy_vqa" or task.source == "flickr30k_entities"
    assert not task.benchmark or any(task.benchmark in group for group in GROUPS.values())


def test_every_form_of_submission_has_its_columns():
    needed = {"vqa": "question_id", "vizwiz": "question_id", "docvqa": "question_id", "captions": "image_id"}
    for name in task_names():
        task = load_task(name)
        if task.submission:
            assert needed[task.submission] in task.keep
            assert task.hidden
