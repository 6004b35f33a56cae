"""Runs the quickstart, from its embedded parts to its report."""

import platform
import random
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from mm1_hf.accounting.parameters import count_parameters, parameter_table
from mm1_hf.assemble import assemble, cast_parameters
from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.cells import EvaluationSettings, Subject
from mm1_hf.evaluation.models import MM1LocalModel
from mm1_hf.evaluation.results import read_rows
from mm1_hf.evaluation.runner import RUN, evaluate
from mm1_hf.evaluation.samples import Sample
from mm1_hf.evaluation.tasks import load_task
from mm1_hf.model.configuration_mm1 import MM1ConnectorConfig
from mm1_hf.quickstart.easy_vqa import Lesson, Picture, Question, epoch_batches, load_split, majority_answers
from mm1_hf.quickstart.embedded_parts import load_decoder, load_vision_encoder
from mm1_hf.quickstart.report import Example, KindAccuracy, QuickstartResults, write_report, write_results
from mm1_hf.quickstart.training import Batch, centre_features, encode_pictures, train
from mm1_hf.quickstart.words import described_pictures, teach_words
from mm1_hf.training.lora import lora_config
from mm1_hf.training.machine import this_machine


KINDS = ("overall", "shape", "colour", "yes/no")

# The encoder's last layer was tuned for another task; the layer before it describes images better.
_FEATURE_LAYER = -2
_IMAGE_SIZE = 112
_CONNECTOR: dict[str, Any] = {"num_tokens": 16, "hidden_size": 512}
_EXAMPLES = 24
_QUESTIONS_AT_ONCE = 64
# Steps on words alone, as a share of the steps with the decoder, which come after them.
_WORD_STEPS = 0.6
# Share of the steps and number of pictures per batch of each lesson.
_LESSONS: dict[Lesson, tuple[float, int]] = {"compare": (0.5, 6), "all": (0.5, 4)}


def quickstart(output: str, steps: int, questions: int, seed: int) -> None:
    """
    Assembles an MM1 from a DINOv2 encoder and SmolLM2, fine-tunes it on easy-VQA, measures it on held-out pictures,
    saves it and writes a report.

    Args:
        output: folder for the model, `report.html` and `results.json`.
        steps: number of training steps with the decoder, of 4 to 6 pictures each.
        questions: smallest number of held-out questions to measure on.
        seed: seed of the new connector's weights and of all random choices.

    Raises:
        ValueError: a package that contains an embedded part is not installed.
    """
    logging.set_verbosity_error()
    torch.manual_seed(seed)
    folder, seconds = Path(output), {}
    machine = this_machine()
    device, dtype = machine.device, machine.dtype

    with _timed(seconds, "assemble"):
        decoder, tokenizer = load_decoder()
        model, processor = assemble(
            load_vision_encoder(),
            decoder,
            MM1ConnectorConfig(**_CONNECTOR),
            tokenizer=tokenizer,
            image_size=_IMAGE_SIZE,
            vision_feature_layer=_FEATURE_LAYER,
            dtype=dtype,
        )
    # The trained weights stay in float32, whatever the dtype of the frozen parts.
    connector = model.to(device).model.connector
    cast_parameters(connector, torch.float32)

    training_pictures, held_out = load_split("train"), load_split("test")
    with _timed(seconds, "encode pictures"):
        batches = _batches(training_pictures, steps, seed)
        used = {picture.image_id: picture for batch in batches for picture, _ in batch}
        features = encode_pictures(model, processor, list(used.values()))
        centre_features(connector, features)
    with _timed(seconds, "train the connector on words"):
        described = described_pictures(used.values(), tokenizer, model.get_input_embeddings().weight.detach())
        teach_words(connector, features, described, round(_WORD_STEPS * steps), seed=seed)
    trainable: Any = get_peft_model(model, lora_config(model, "decoder+connector", r=16))
    parameters = count_parameters(trainable)
    print(f"\n{parameter_table(trainable)}\n")
    with _timed(seconds, "train"):
        losses = train(trainable, processor, features, batches, str(folder / "training"), seed)

    with _timed(seconds, "merge, save and reload"):
        merged = trainable.merge_and_unload()
        cast_parameters(merged, dtype)
        merged.save_pretrained(folder)
        processor.save_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").to(device).eval()
        processor = AutoProcessor.from_pretrained(folder)

    with _timed(seconds, "measure"):
        asked = _held_out(held_out, questions)
        accuracies, examples = _measure(model, processor, asked, training_pictures, seed, folder)
    report = folder / "report.html"
    results = QuickstartResults(
        parameters=parameters,
        accuracies=accuracies,
        losses=losses,
        examples=examples,
        seconds=seconds,
        environment=_environment(device, dtype, steps, seed),
        model_dir=str(folder),
    )
    write_report(report, results)
    write_results(folder / "results.json", results)
    _print_summary(accuracies, folder, report)


def _batches(pictures: list[Picture], steps: int, seed: int) -> list[Batch]:
    """
    One batch per step, in two lessons: first whether a named shape or colour is present, beside open questions, then
    also whether it is absent. The questions of a later lesson teach little to a model that has not learned the earlier
    one; a model that starts with them learns to guess instead of using the image.
    """
    batches = []
    for index, (lesson, (share, pictures_per_batch)) in enumerate(_LESSONS.items()):
        number = steps - len(batches) if lesson == "all" else round(share * steps)
        batches += islice(_epochs(pictures, seed + index, pictures_per_batch, lesson), number)
    return batches


def _epochs(pictures: list[Picture], seed: int, pictures_per_batch: int, lesson: Lesson) -> Iterator[Batch]:
    for epoch in count():
        yield from epoch_batches(pictures, pictures_per_batch, lesson, seed=seed + 1000 * epoch)


def _held_out(pictures: list[Picture], questions: int) -> list[tuple[Picture, Question]]:
    """All questions of the first pictures, in the published order, until there are at least `questions` questions."""
    asked = []
    for picture in pictures:
        if len(asked) >= questions:
            break
        asked.extend((picture, question) for question in picture.questions)
    return asked


def _measure(
    model,
    processor,
    asked: list[tuple[Picture, Question]],
    training_pictures: list[Picture],
    seed: int,
    folder: Path,
) -> tuple[dict[str, KindAccuracy], list[Example]]:
    pictures = list({picture.image_id: picture for picture, _ in asked}.values())
    images = {picture.image_id: picture.image() for picture in pictures}
    # The questions about a picture are asked about the next picture in a shuffled cycle, so that none keeps its own.
    shuffled = random.Random(seed).sample(pictures, len(pictures))
    other = {
        picture.image_id: images[following.image_id]
        for picture, following in zip(shuffled, shuffled[1:] + shuffled[:1], strict=True)
    }
    questions = [question for _, question in asked]
    evaluated = MM1LocalModel(model, processor, name=str(folder), batch_size=_QUESTIONS_AT_ONCE)
    answers = _answers(evaluated, asked, images, "easy_vqa", folder / "evaluation")
    blind_answers = _answers(evaluated, asked, other, "easy_vqa, images shuffled", folder / "evaluation-shuffled")
    majority = majority_answers(training_pictures)

    accuracies = {}
    for kind in KINDS:
        chosen = [index for index, question in enumerate(questions) if kind in ("overall", question.kind)]
        if chosen:
            accuracies[kind] = KindAccuracy(
                model=_share(answers[index] == questions[index].answer for index in chosen),
                shuffled=_share(blind_answers[index] == questions[index].answer for index in chosen),
                majority=_share(majority[questions[index].kind] == questions[index].answer for index in chosen),
                count=len(chosen),
            )
    examples = [
        Example(images[picture.image_id], question.text, given, question.answer)
        for (picture, question), given in zip(asked, answers, strict=True)
    ]
    wrong = [example for example in examples if example.answer != example.expected]
    right = [example for example in examples if example.answer == example.expected]
    chosen_wrong = _spread(wrong, min(len(wrong), _EXAMPLES // 4))
    return accuracies, _spread(right, _EXAMPLES - len(chosen_wrong)) + chosen_wrong


def _answers(
    model: MM1LocalModel,
    asked: list[tuple[Picture, Question]],
    images: dict[int, Image.Image],
    name: str,
    output: Path,
) -> list[str]:
    """What the runner of `mm1 eval` records as answers. An earlier quickstart's record in this folder is removed."""
    # The model learned to answer in the data set's own words, without a request to be short.
    task = replace(
        load_task("easy_vqa"), name=name, chat="chat", style="chat", options={"normalizer": "none"}, max_new_tokens=8
    )
    samples = [
        Sample(
            id=f"{index}-{picture.image_id}",
            images=(ImagePart(images[picture.image_id]),),
            question=question.text,
            references=question.answer,
            answer=question.answer,
        )
        for index, (picture, question) in enumerate(asked)
    ]
    if (output / RUN).exists():
        shutil.rmtree(output)
    evaluate(model, [Subject(task, samples)], EvaluationSettings(), output, batch_size=model.batch_size)
    return [row["answer"] for row in read_rows(output)]


def _share(hits: Iterator[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found)


def _spread(items: list, number: int) -> list:
    """Picks `number` evenly spaced items, or all if there are fewer."""
    return [items[index * len(items) // number] for index in range(min(number, len(items)))]


def _environment(device: torch.device, dtype: torch.dtype, steps: int, seed: int) -> dict[str, str]:
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = {name: version(name) for name in ("mm1_hf", "transformers", "torch", "peft")}
    return {
        "hardware": hardware,
        "precision": str(dtype).removeprefix("torch."),
        "python": platform.python_version(),
        **versions,
        "steps": str(steps),
        "seed": str(seed),
    }


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Generator[None, None, None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _print_summary(accuracies: dict[str, KindAccuracy], folder: Path, report: Path) -> None:
    print(f"\n{'held-out questions':<20}{'number':>8}{'model':>9}{'shuffled':>10}{'majority':>10}")
    for kind, accuracy in accuracies.items():
        print(
            f"{kind:<20}{accuracy.count:>8}{accuracy.model:>9.1%}{accuracy.shuffled:>10.1%}{accuracy.majority:>10.1%}"
        )
    print(
        "\n'shuffled' is the same model when each question is asked about another image: the difference comes from\n"
        "seeing the right image. Only 24 pairs of shape and colour exist in this data set, so the result shows that\n"
        "the pipeline works, but says nothing about real photographs.\n"
        f"\nreport: {report}\nmodel:  {folder}\n"
        f'ask:    mm1 ask --model {folder} --image FILE "What shape is in the image?"'
    )
