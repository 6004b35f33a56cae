"""
lmms-eval, as it is published, measures MM1: with its own command, through `mm1 serve`, and on tasks of all its forms. Its
chat models get this package's few-shot tasks with the images of the demonstrations.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from evaluation_data import picture, write_data
from generating import far_from_initial
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager
from PIL import Image
from tiny import tiny_mm1

import mm1_hf.evaluation.tasks
from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.cells import EvaluationSettings, Subject
from mm1_hf.evaluation.demonstrations import Demonstrations
from mm1_hf.evaluation.lmms_eval import TASKS, TEXT_TASKS
from mm1_hf.evaluation.lmms_eval.task import DATA
from mm1_hf.evaluation.models import MM1LocalModel, load_model
from mm1_hf.evaluation.prompts import build_requests
from mm1_hf.evaluation.requests import Request, Turn
from mm1_hf.evaluation.results import read_rows
from mm1_hf.evaluation.runner import evaluate
from mm1_hf.evaluation.samples import read_samples
from mm1_hf.evaluation.tasks import load_task


QUESTIONS = 16
SHOTS = (0, 2)
START_SECONDS = 300
PAIRS = [("red", "blue"), ("blue", "green"), ("green", "red")]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The command, on a model that has learned a little.


@pytest.fixture(scope="module")
def quickstart() -> str:
    return os.environ["MM1_QUICKSTART"]


@pytest.fixture(scope="module")
def ours(quickstart, tmp_path_factory) -> dict[int, tuple[float, list[str]]]:
    """By shots: the score of `mm1 eval --style chat`, and its answers."""
    folder, task = tmp_path_factory.mktemp("ours"), load_task("easy_vqa")
    subject = Subject(
        task, read_samples(task, limit=QUESTIONS), Demonstrations(read_samples(task, shots=True), seed=5)
    )
    results = evaluate(
        load_model(quickstart, dtype="float32", batch_size=8),
        [subject],
        EvaluationSettings(shots=SHOTS, style="chat"),
        folder,
    )
    rows = read_rows(folder)
    return {
        score["shots"]: (score["score"], [row["answer"] for row in rows if row["shots"] == score["shots"]])
        for score in results["scores"]
    }


def by_command(model: str, arguments: str, shots: int, folder: Path) -> tuple[float, list[str]]:
    """The score and the answers of `python -m lmms_eval`."""
    command = [sys.executable, "-m", "lmms_eval", "--model", model, "--model_args", arguments]
    command += ["--include_path", str(TASKS), "--tasks", "mm1_easy_vqa", "--num_fewshot", str(shots), "--seed", "5"]
    command += ["--limit", str(QUESTIONS), "--batch_size", "8", "--output_path", str(folder), "--log_samples"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (results,) = folder.rglob("*_results.json")
    (samples,) = folder.rglob("*_samples_*.jsonl")
    said = json.loads(results.read_text(encoding="utf-8"))
    assert said["n-shot"]["mm1_easy_vqa"] == shots
    answers = [json.loads(line)["filtered_resps"] for line in samples.read_text(encoding="utf-8").splitlines()]
    return said["results"]["mm1_easy_vqa"]["exact_match,none"], answers


@pytest.mark.parametrize("shots", SHOTS)
def test_the_command_gives_what_mm1_eval_gives(quickstart, ours, shots, tmp_path):
    found = by_command("mm1_hf", f"pretrained={quickstart},dtype=float32", shots, tmp_path)
    assert found == ours[shots]
    assert len(set(found[1])) > 1
    print(f"\n{shots} shots: exact match {found[0]:.4f} on {QUESTIONS} questions, by mm1 eval {ours[shots][0]:.4f}")


@contextlib.contextmanager
def served(folder: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mm1_hf.cli", "serve", folder, "--port", str(port), "--dtype", "float32"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < until, "the server does not start"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://localhost:{port}/health"):
                break
            time.sleep(0.5)
        yield f"http://localhost:{port}/v1"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def address(quickstart):
    with served(quickstart) as url:
        yield url


@pytest.mark.parametrize(
    ("model", "more"), [("openai", "timeout=600,num_concurrent=4"), ("async_openai", "num_cpus=4")]
)
def test_a_server_gives_what_mm1_eval_gives(quickstart, ours, address, model, more, tmp_path):
    arguments = f"model={quickstart},base_url={address},api_key=none,{more}"
    assert by_command(model, arguments, 2, tmp_path) == ours[2]


# Tasks of others, on a tiny model.


@pytest.fixture(scope="module")
def tiny():
    model, processor = tiny_mm1()
    return far_from_initial(model), processor


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    for part in tiny:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def local(tiny) -> MM1LocalModel:
    return MM1LocalModel(*tiny, batch_size=3)


UTILS = """
def images(doc):
    return [doc["first"], doc["second"]]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def rounds(doc, round_idx=None, previous_output=None, previous_round_info=None, **_):
    said = [{"type": "image", "url": doc["first"]}, {"type": "text", "text": doc["question"]}]
    if round_idx is None:
        return [{"role": "user", "content": said}]
    answered = [{"type": "text", "text": previous_output[0]}]
    asked = [{"type": "text", "text": f"Sure? {previous_round_info}"}]
    chat = [{"role": "user", "content": said}, {"role": "assistant", "content": answered}]
    chat.append({"role": "user", "content": asked})
    return chat, round_idx > int(doc["question"][-1]), previous_output, (previous_round_info or 0) + 1


def joined(doc, results):
    return {"said": results}


def all_of(items):
    return items
"""
COMMON = """
dataset_path: parquet
dataset_kwargs: {data_files: {test: data.parquet}}
test_split: test
doc_to_target: answer
"""
LOCAL_TASKS = {
    "free": """
        output_type: generate_until
        doc_to_visual: !function utils.images
        doc_to_text: !function utils.text
        generation_kwargs: {max_new_tokens: 9, until: ["e"], temperature: 0, do_sample: false}
        process_results: !function utils.joined
        metric_list: [{metric: said, aggregation: !function utils.all_of, higher_is_better: true}]
    """,
    "rounds": """
        output_type: generate_until_multi_round
        doc_to_text: !function utils.text
        doc_to_messages: !function utils.rounds
        generation_kwargs: {max_new_tokens: 5, until: []}
        process_results: !function utils.joined
        metric_list: [{metric: said, aggregation: !function utils.all_of, higher_is_better: true}]
    """,
    "choices": """
        output_type: multiple_choice
        doc_to_visual: !function utils.images
        doc_to_text: !function utils.text
        doc_to_choice: choices
        metric_list:
          - {metric: acc, aggregation: mean, higher_is_better: true}
          - {metric: acc_norm, aggregation: mean, higher_is_better: true}
    """,
}


def rows() -> list[dict[str, Any]]:
    return [
        {
            "first": Image.new("RGB", (30, 20), PAIRS[n % 3][0]),
            "second": Image.new("RGB", (20, 50), PAIRS[n % 3][1]),
            "question": f"Which colour? {n % 3}",
            "answer": n % 2,
            "choices": ["red or so", "bl"],
        }
        for n in range(7)
    ]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    Dataset.from_list(rows()).to_parquet(folder / "data.parquet")
    (folder / "utils.py").write_text(UTILS, encoding="utf-8")
    for name, text in LOCAL_TASKS.items():
        own = "\n".join(line.removeprefix(" " * 8) for line in text.splitlines())
        (folder / f"{name}.yaml").write_text(f"task: {name}{COMMON}{own}", encoding="utf-8")
    return folder


def run(model: Any, folder: Path, *names: str, **settings: Any) -> dict[str, Any]:
    if isinstance(model, str):
        settings["model_args"], model = f"pretrained={model},dtype=float32", "mm1_hf"
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    settings = {"batch_size": 3, "bootstrap_iters": 0, **settings}
    return simple_evaluate(model=model, tasks=list(names), task_manager=manager, **settings)


def chat(row: dict[str, Any]) -> tuple[Turn, ...]:
    return (Turn("user", (ImagePart(row["first"]), ImagePart(row["second"]), row["question"])),)


@pytest.mark.parametrize("simple", [False, True])
def test_a_task_of_several_images(saved, local, tasks, simple):
    found = run(saved, tasks, "free", force_simple=simple)
    prompts = [turn[0].parts if simple else turn for turn in map(chat, rows())]
    expected = [answer.text for answer in local.answer([Request(prompt, 9, ("e",)) for prompt in prompts])]
    assert found["results"]["free"]["said,none"] == [[text] for text in expected]
    assert len(set(expected)) > 1


def test_several_rounds(saved, local, tasks):
    found = run(saved, tasks, "rounds")["results"]["rounds"]["said,none"]
    expected = []
    for row in rows():
        first = Turn("user", (ImagePart(row["first"]), row["question"]))
        said = [local.answer([Request((first,), 5)])[0].text]
        # As often again as the question's number says.
        for told in range(int(row["question"][-1])):
            turns = (first, Turn("assistant", (said[0],)), Turn("user", (f"Sure? {told or None}",)))
            said.append(local.answer([Request(turns, 5)])[0].text)
        expected.append([said])
    assert found == expected


def test_choices_are_compared_by_their_log_likelihood(saved, local, tasks):
    found = run(saved, tasks, "choices", force_simple=True)["results"]["choices"]
    requests = [
        Request(chat(row)[0].parts, continuations=tuple(f" {choice}" for choice in row["choices"])) for row in rows()
    ]
    right = {"acc": 0, "acc_norm": 0}
    for row, answer in zip(rows(), local.answer(requests), strict=True):
        values = answer.log_likelihoods
        right["acc"] += values.index(max(values)) == row["answer"]
        normed = [value / len(choice) for value, choice in zip(values, row["choices"], strict=True)]
        right["acc_norm"] += normed.index(max(normed)) == row["answer"]
    assert {name: found[f"{name},none"] for name in right} == {name: count / 7 for name, count in right.items()}


# The few-shot tasks, for any chat model.


FEW_SHOT = "class: !function mm1_hf.evaluation.lmms_eval.task.FewShotTask\ntask: x\ndataset_path: {}\n"


class Recorder(lmms):
    """A chat model that keeps what it is asked."""

    is_simple = False

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[dict[str, Any]]] = []

    def generate_until(self, requests):
        for request in requests:
            _, messages_of, _, index, task, split = request.args
            self.asked.append(messages_of(self.task_dict[task][split][index]))
        return ["thing1"] * len(requests)

    def loglikelihood(self, requests):
        raise NotImplementedError

    def generate_until_multi_round(self, requests):
        raise NotImplementedError


@pytest.mark.parametrize("path", sorted(TASKS.iterdir()), ids=lambda path: path.stem)
def test_every_task_puts_its_demonstrations_before_the_question(path, tmp_path, monkeypatch):
    task = load_task(path.stem)
    data = None
    # Its own package holds it.
    if path.stem != "easy_vqa":
        data = write_data(tmp_path, path.stem)
        monkeypatch.setenv(DATA, str(data))
    samples = read_samples(task, data=data, limit=4)
    pool = Demonstrations(read_samples(task, data=data, shots=True), seed=3)
    model = Recorder()
    results = run(model, TASKS, f"mm1_{path.stem}", num_fewshot=1, fewshot_random_seed=3, limit=4)
    assert len(model.asked) == len(samples)
    for messages, sample in zip(model.asked, samples, strict=True):
        (request,) = build_requests(task, sample, pool.draw(sample, 1), style="chat")
        assert [message["role"] for message in messages] == [turn.role for turn in request.prompt]
        parts = [part for message in messages for part in message["content"]]
        images = [part["url"] for part in parts if part["type"] == "image"]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        assert texts == [part for turn in request.prompt for part in turn.parts if isinstance(part, str)]
        assert [image.tobytes() for image in images] == [
            part.load().convert("RGB").tobytes() for part in request.images
        ]
    found = results["results"][f"mm1_{path.stem}"]
    assert (found["errors,none"], found["unscored,none"]) == (0, 0)


@pytest.mark.parametrize("path", sorted(TEXT_TASKS.iterdir()), ids=lambda path: path.stem)
def test_texts_to_continue_give_what_mm1_eval_gives(path, saved, local, tmp_path, monkeypatch):
    task = load_task(path.stem)
    data = None
    if path.stem != "easy_vqa":
        data = write_data(tmp_path, path.stem)
        monkeypatch.setenv(DATA, str(data))
    shots = 1
    pool = Demonstrations(read_samples(task, data=data, shots=True), seed=3)
    subject = Subject(task, read_samples(task, data=data, limit=4), pool)
    ours = evaluate(local, [subject], EvaluationSettings((shots,), style="completion"), tmp_path / "ours")
    settings = {"num_fewshot": shots, "fewshot_random_seed": 3, "limit": 4, "force_simple": True}
    found = run(saved, TEXT_TASKS, f"mm1_text_{path.stem}", **settings)["results"][f"mm1_text_{path.stem}"]
    (score,) = ours["scores"]
    assert found[f"{score['metric']},none"] == pytest.approx(score["score"], abs=1e-6)
    assert (found["errors,none"], found["unscored,none"]) == (sum(score["errors"].values()), 0)


def test_what_cannot_be_asked_or_scored_is_counted_in_a_task_of_ones_own(tmp_path):
    """The task is a file, and its data are named in lmms-eval's."""
    answers = [["thing1"] * 10, ["thing1"] * 10, [], ["thing1"] * 10]
    images = [None, {"bytes": b"no image", "path": None}, picture(1), picture(2)]
    table = {"image": images, "question": list("abcd"), "question_id": list(range(4)), "answers": answers}
    Dataset.from_dict(table).to_parquet(tmp_path / "validation.parquet")
    own = (Path(mm1_hf.evaluation.tasks.__file__).parent / "textvqa.yaml").read_text(encoding="utf-8")
    (tmp_path / "own.json").write_text(json.dumps(yaml.safe_load(own)), encoding="utf-8")
    text = FEW_SHOT.format(tmp_path / "own.json") + f"dataset_kwargs: {{data: {tmp_path}}}\n"
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    found = run(Recorder(), tmp_path, "x")["results"]["x"]
    assert (found["errors,none"], found["unscored,none"]) == (2, 1)
    # One of the three that have a reference was asked, and answered rightly.
    assert found["vqa_accuracy,none"] == pytest.approx(1 / 3)


def test_what_is_not_answered_by_texts_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text(FEW_SHOT.format("sciq"), encoding="utf-8")
    with pytest.raises(ValueError, match="compares log-likelihoods"):
        run(Recorder(), tmp_path, "x")


def test_sampling_is_refused(saved, tasks):
    with pytest.raises(ValueError, match="decodes greedily"):
        run(saved, tasks, "free", gen_kwargs="temperature=1,do_sample=True")


def test_the_model_is_found_by_its_entry_point():
    assert get_model("mm1_hf").__module__ == "mm1_hf.evaluation.lmms_eval.model"
