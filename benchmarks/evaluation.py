"""
Measures the time per question of an evaluation: `mm1 eval` compared with unmodified lmms-eval, with the same model, prompts
and data, in one process.

    .venv-lmms/bin/python benchmarks/evaluation.py --output benchmarks/results/evaluation.json

`make test-lmms` creates the environment, which holds lmms-eval 0.7.3. The questions are easy-VQA's, asked as chats with 0
and 4 demonstrations, which both take from this package's few-shot tasks; the answers have 8 tokens at most. lmms-eval's
model is its own class for models of transformers (`huggingface`), at the best of some batch sizes.

Two sets of questions stand for two kinds of data: some with several questions for each picture, as in VQA, and some with
one, as in captioning. The demonstrations are drawn from a pool as large, in proportion to the questions, as the 2,048
examples of a whole run are to easy-VQA's 9,673 and to COCO's 5,000 questions: so the demonstrations' pictures come again
as often as there.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import easy_vqa
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from mm1_hf import MM1ForConditionalGeneration, MM1Processor
from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.cells import EvaluationSettings, Subject
from mm1_hf.evaluation.demonstrations import POOL_SIZE, Demonstrations
from mm1_hf.evaluation.environment import environment
from mm1_hf.evaluation.lmms_eval import TASKS
from mm1_hf.evaluation.models import MM1LocalModel
from mm1_hf.evaluation.requests import Request
from mm1_hf.evaluation.results import read_rows
from mm1_hf.evaluation.runner import evaluate
from mm1_hf.evaluation.samples import read_samples
from mm1_hf.evaluation.tasks import load_task


SHOTS = (0, 4)
# By kind of data: questions of a whole run, and whether they share pictures.
KINDS = {"several questions for a picture": (9673, True), "one question for a picture": (5000, False)}
TASK = "mm1_easy_vqa"
OURS, RIVAL, WARM = "mm1 eval", "lmms-eval", "mm1 eval, pictures known"

Timing = tuple[float, float]


def write_data(folder: Path, questions: int, whole: int, shared: bool) -> None:
    """Writes a part of easy-VQA in its own layout, so that both harnesses read the same."""
    package = Path(easy_vqa.__file__).parent / "data"
    pool = max(round(questions * POOL_SIZE / whole), 2 * max(SHOTS))
    for split, number in (("test", questions), ("train", pool)):
        rows = json.loads((package / split / "questions.json").read_text(encoding="utf-8"))
        if split == "train" or not shared:
            # One for each picture, not always its first.
            rows = [own[place % len(own)] for place, own in enumerate(_by_picture(rows))]
        place = folder / "data" / split
        (place / "images").mkdir(parents=True)
        (place / "questions.json").write_text(json.dumps(rows[:number]), encoding="utf-8")
        for picture in {row[2] for row in rows[:number]}:
            shutil.copy(package / split / "images" / f"{picture}.png", place / "images")


def _by_picture(rows: list[Any]) -> list[list[Any]]:
    pictures: dict[Any, list[Any]] = {}
    for row in rows:
        pictures.setdefault(row[2], []).append(row)
    return list(pictures.values())


def timed(run: Callable[[], Any]) -> tuple[Timing, Any]:
    """Seconds of the processor, of all threads, and of the clock; and what the function returns."""
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return (time.process_time() - processor, time.perf_counter() - wall), result


class Ours:
    """`mm1 eval` from the opened data to the report, without loading the model."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        self._model = MM1ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
        self._folder, self._batch_size = folder, batch_size

    def model(self) -> MM1LocalModel:
        """The model with nothing computed yet, but for how many tiles it may encode together."""
        local = MM1LocalModel(
            self._model,
            MM1Processor.from_pretrained(self._folder),
            batch_size=self._batch_size,
            name=str(self._folder),
        )
        # A picture that no question has.
        local.answer([Request((ImagePart(Image.new("RGB", (8, 8))),), 1)])
        return local

    def answers(self, data: Path, shots: int, model: MM1LocalModel) -> tuple[Timing, list[str]]:
        """How long it took, and the answers."""
        return timed(lambda: self._answers(data, shots, model))

    def _answers(self, data: Path, shots: int, model: MM1LocalModel) -> list[str]:
        task = load_task("easy_vqa")
        pool = Demonstrations(read_samples(task, data=data, shots=True))
        settings = EvaluationSettings((shots,), style="chat")
        with tempfile.TemporaryDirectory() as folder:
            evaluate(model, [Subject(task, read_samples(task, data=data), pool)], settings, folder)
            return [row["answer"] for row in read_rows(Path(folder))]


class Rival:
    """lmms-eval's own loop over the requests, without what it does before and after it."""

    def __init__(self, folder: Path) -> None:
        from lmms_eval.models.chat import huggingface  # ty: ignore[import-not-found]
        from lmms_eval.tasks import TaskManager  # ty: ignore[import-not-found]

        # Version 0.7.3 compares names of model types with classes, and so loads every model without a head.
        huggingface.AutoModel = AutoModelForImageTextToText
        self._model = huggingface.Huggingface(str(folder), device="cpu", device_map="cpu", batch_size=1)
        # lmms-eval throws the model away after each run.
        self._weights = self._model._model
        # For prompts of several lengths.
        self._model.processor.tokenizer.padding_side = "left"
        self._tasks = TaskManager(include_path=str(TASKS), include_defaults=False)

    def answers(self, data: Path, shots: int, batch_size: int) -> tuple[Timing, list[str]]:
        """How long it took, and the answers."""
        from lmms_eval.evaluator import simple_evaluate  # ty: ignore[import-not-found]

        loop, taken = type(self._model).generate_until, []

        def generate_until(requests: Any) -> Any:
            timing, answers = timed(lambda: loop(self._model, requests))
            taken.append(timing)
            return answers

        self._model._model, self._model.generate_until = self._weights, generate_until
        os.environ["MM1_DATA"] = str(data)
        self._model.batch_size_per_gpu = batch_size
        results = simple_evaluate(
            self._model,
            tasks=[TASK],
            task_manager=self._tasks,
            num_fewshot=shots,
            fewshot_random_seed=0,
            batch_size=batch_size,
            bootstrap_iters=0,
            log_samples=True,
        )
        return taken[0], [sample["filtered_resps"][0] for sample in results["samples"][TASK]]


def measure(ours: Ours, rival: Rival, data: Path, batch_sizes: list[int], rounds: int) -> dict[str, Any]:
    """The times of both on one set of questions."""
    questions = len(read_samples(load_task("easy_vqa"), data=data))
    tried = {size: rival.answers(data, 0, size)[0] for size in batch_sizes}
    best = min(tried, key=lambda size: tried[size][0])
    timings: dict[tuple[str, int], list[Timing]] = {}
    answers: dict[tuple[str, int], list[str]] = {}
    for turn in range(rounds):
        for shots in SHOTS:
            model = ours.model()
            cases: list[tuple[str, Callable[[], tuple[Timing, list[str]]]]] = [
                (OURS, lambda shots=shots, model=model: ours.answers(data, shots, model)),
                (WARM, lambda shots=shots, model=model: ours.answers(data, shots, model)),
                (RIVAL, lambda shots=shots: rival.answers(data, shots, best)),
            ]
            # In the second case, the pictures of the first are known.
            for name, run in cases if turn % 2 == 0 else [cases[2], *cases[:2]]:
                timing, answers[name, shots] = run()
                timings.setdefault((name, shots), []).append(timing)
    return {
        "questions": questions,
        "pictures": len({sample.images[0].source for sample in read_samples(load_task("easy_vqa"), data=data)}),
        "pool": len(read_samples(load_task("easy_vqa"), data=data, shots=True)),
        "lmms_eval_batch_sizes": {str(size): timing[0] / questions for size, timing in tried.items()},
        "lmms_eval_best_batch_size": best,
        "same_answers": {
            str(shots): sum(map(str.__eq__, answers[OURS, shots], answers[RIVAL, shots])) / questions
            for shots in SHOTS
        },
        **ratios(timings, questions),
    }


def ratios(timings: dict[tuple[str, int], list[Timing]], questions: int) -> dict[str, Any]:
    """
    Seconds per question, and what they say.

    Args:
        timings: by who is measured and number of shots, the times of all rounds.
        questions: number of questions.
    """
    result: dict[str, Any] = {}
    for place, kind in enumerate(("processor", "wall")):
        seconds = {key: statistics.median(each[place] for each in own) / questions for key, own in timings.items()}
        text = seconds[WARM, SHOTS[1]] - seconds[WARM, SHOTS[0]]
        result[f"{kind}_seconds_of_a_question"] = {
            name: {str(shots): seconds[name, shots] for shots in SHOTS} for name in (OURS, RIVAL, WARM)
        }
        result[f"times_lmms_eval_{kind}"] = {
            str(shots): seconds[RIVAL, shots] / seconds[OURS, shots] for shots in SHOTS
        }
        result[f"shots_beyond_text_{kind}"] = (seconds[OURS, SHOTS[1]] - text) / seconds[OURS, SHOTS[0]]
    return result | {
        "rounds": {
            f"{name}, {shots} shots": [[each / questions for each in timing] for timing in own]
            for (name, shots), own in timings.items()
        }
    }


def in_proportion(folder: Path, output: Path, side: int, tokens: int, layers: int) -> Path:
    """
    Writes a model with random weights whose encoder does about as much work for a picture as its decoder, as MM1-3B's
    (378 pixels, 144 tokens, ViT-H) does.
    """
    processor = MM1Processor.from_pretrained(folder)
    config = MM1ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).config
    config.vision_config.image_size = side
    config.connector_config.num_tokens = tokens
    config.connector_config.grid_size = side // config.vision_config.patch_size
    config.text_config.num_hidden_layers = layers
    torch.manual_seed(0)
    MM1ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(output)
    image = processor.image_processor
    image.size = {"height": side, "width": side}
    processor.num_image_tokens = tokens
    processor.save_pretrained(output)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the quickstart's model")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--questions", type=int, default=48, help="number of questions (default: 48)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: 3)")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[4, 16, 48], help="of lmms-eval (default: 4 16 48)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "what": (
            "seconds per question: of mm1 eval all from the opened data to the report, of lmms-eval its loop over the "
            "requests; without loading the model; median of the rounds"
        ),
        "how": (
            "One process and one thread; in each round all run one after the other, lmms-eval first in every second round. "
            "The machine had other work, so the processor's seconds are what to compare."
        ),
        "load_before": os.getloadavg(),
        "shots": SHOTS,
        "lmms_eval": version("lmms_eval"),
        "environment": environment(),
        "models": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {
            "encoder and decoder in MM1-3B's proportion": in_proportion(options.model, folder / "model", 224, 64, 8),
            "quickstart": options.model,
        }
        for kind, (whole, shared) in KINDS.items():
            write_data(folder / kind, options.questions, whole, shared)
        for model, path in models.items():
            ours, rival = Ours(path, max(options.batch_sizes)), Rival(path)
            for kind in KINDS:
                found = measure(ours, rival, folder / kind, options.batch_sizes, options.rounds)
                result["models"].setdefault(model, {})[kind] = found
                print(
                    model,
                    kind,
                    json.dumps({key: value for key, value in found.items() if key != "rounds"}),
                    flush=True,
                )
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
