"""lm-evaluation-harness, as it is published, gives an MM1 the scores that this package gives it on the tasks of TextCore."""

import random
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import yaml
from datasets import Dataset
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny import tiny_mm1

from mm1_hf.evaluation.cells import EvaluationSettings, Subject
from mm1_hf.evaluation.models import MM1LocalModel
from mm1_hf.evaluation.prompts import build_requests
from mm1_hf.evaluation.runner import evaluate
from mm1_hf.evaluation.samples import read_samples
from mm1_hf.evaluation.tasks import load_task


QUESTIONS = 40
LEARNED = 12
TEXT = "the cat sat on a mat and dog ran to tree while bird sang loud songs of old times near blue river stones"
WORDS = TEXT.split()
# The harness's own file of each task.
FILES = {
    "arc_easy": "arc/arc_easy",
    "arc_challenge": "arc/arc_challenge",
    "piqa": "piqa/piqa",
    "sciq": "sciq/sciq",
    "hellaswag": "hellaswag/hellaswag",
    "winogrande": "winogrande/default",
    "lambada": "lambada/lambada_openai",
    "webqs": "webqs/webqs",
    "triviaqa": "triviaqa/default",
}
# Ours by theirs, where the names differ.
OURS = {"exact_match": "acc", "exact_match,remove_whitespace": "exact_match"}


def rows(task: str) -> list[dict[str, Any]]:
    """Records with the columns of the published data set, of words chosen at random."""
    draw = random.Random(task)

    def words(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    def several(number: int) -> list[str]:
        return [words(1, 4) for _ in range(number)]

    def arc(n: int) -> dict[str, Any]:
        labels = list("ABCD" if n % 2 else "1234")
        choices = {"text": several(4), "label": labels}
        return {"id": f"a{n}", "question": f"{words(3, 9)}?", "choices": choices, "answerKey": draw.choice(labels)}

    make = {
        "arc_easy": arc,
        "arc_challenge": arc,
        "piqa": lambda n: {
            "goal": words(3, 9),
            "sol1": words(2, 6),
            "sol2": words(2, 6),
            "label": draw.randrange(2),
        },
        "sciq": lambda n: {
            "question": f"{words(3, 9)}?",
            "support": words(0, 9),
            **{name: words(1, 2) for name in ("distractor1", "distractor2", "distractor3", "correct_answer")},
        },
        "hellaswag": lambda n: {
            "ind": n,
            "activity_label": words(1, 2),
            "ctx_a": words(3, 9),
            "ctx_b": words(1, 3),
            "ctx": "",
            "endings": [f"{words(2, 5)} [title] {words(1, 2)}" for _ in range(4)],
            "label": str(draw.randrange(4)),
        },
        "winogrande": lambda n: {
            "sentence": f"{words(2, 5)} _ {words(2, 5)}",
            "option1": words(1, 1),
            "option2": words(1, 2),
            "answer": draw.choice("12"),
        },
        "lambada": lambda n: {"text": words(5, 9)},
        "webqs": lambda n: {"url": f"u{n}", "question": f"{words(3, 6)}?", "answers": several(3)},
        "triviaqa": lambda n: {
            "question_id": f"t{n}",
            "question": words(3, 6),
            "answer": {"aliases": several(3), "value": words(1, 2)},
        },
    }[task]
    return [make(n) for n in range(QUESTIONS)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The records in the layout of the Hub, and beside them the harness's tasks, reading these files."""
    folder = tmp_path_factory.mktemp("data")
    for name, path in FILES.items():
        task = load_task(name)
        file = folder / name / task.configs[0] / "data" / f"{task.split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        Dataset.from_list(rows(name)).to_parquet(file)
        other = {"validation_split": None} if task.split == "test" else {"test_split": None}
        entries = {
            "include": str(Path(lm_eval.__file__).parent / "tasks" / f"{path}.yaml"),
            "task": f"local_{name}",
            "tag": None,
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {task.split: str(file)}},
            "training_split": None,
            **other,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def taught(data):
    """A tiny model that knows the answers to some questions whose answers must be said word for word."""
    torch.set_num_threads(1)
    model, processor = tiny_mm1()
    texts = []
    for name in ("lambada", "webqs", "triviaqa"):
        task = load_task(name)
        for sample in read_samples(task, data=data, limit=LEARNED):
            (request,) = build_requests(task, sample)
            answer = request.continuations[0] if request.continuations else f" {sample.references[0]}"
            texts.append(f"{request.prompt[0]}{answer}\n")
    inputs = processor.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    model.train()
    for _ in range(250):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.03:
            break
    return model.eval(), processor


@pytest.fixture(scope="module")
def theirs(taught, data) -> dict[str, Any]:
    model, processor = taught
    harness = HFLM(pretrained=model, tokenizer=processor.tokenizer, batch_size=8, backend="causal", device="cpu")
    manager = TaskManager(include_path=str(data), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=harness, tasks=[f"local_{name}" for name in FILES], task_manager=manager, bootstrap_iters=0
    )
    return found["results"]


@pytest.fixture(scope="module")
def ours(taught, data, tmp_path_factory) -> dict[str, dict[str, float]]:
    subjects = [Subject(task, read_samples(task, data=data)) for task in map(load_task, FILES)]
    local = MM1LocalModel(*taught, batch_size=8)
    results = evaluate(local, subjects, EvaluationSettings(), tmp_path_factory.mktemp("ours"))
    return {score["task"]: score["all"] for score in results["scores"]}


@pytest.mark.parametrize("name", FILES)
def test_scores_are_equal(theirs, ours, name):
    compared = {}
    for key, value in theirs[f"local_{name}"].items():
        metric = key.removesuffix(",none")
        if "," in key and "stderr" not in key:
            compared[metric] = value
            assert ours[name][OURS.get(metric, metric)] == pytest.approx(value, rel=1e-4), metric
    assert any(compared.values())
    print(f"\n{name}: {', '.join(f'{metric} {value:.4g}' for metric, value in compared.items())}")
