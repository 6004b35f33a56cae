"""The easy-VQA data set (Zhou, 2019; MIT licence): 5,000 drawn pictures of one coloured shape each, with questions."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from mm1_hf.quickstart.embedded_parts import package_folder


Kind = Literal["shape", "colour", "yes/no"]
Lesson = Literal["compare", "all"]

_SHAPES = frozenset({"circle", "rectangle", "triangle"})
_COLOURS = frozenset({"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"})


@dataclass(frozen=True)
class Question:
    """A question about a picture, with its answer."""

    text: str
    answer: str
    kind: Kind

    @property
    def is_negated(self) -> bool:
        """Whether a yes/no question asks if something is absent."""
        return not {"no", "not"}.isdisjoint(self.text.split())

    @property
    def names_what_is_shown(self) -> bool:
        """Whether a yes/no question names the shape or colour that the picture shows, and not another one."""
        return (self.answer == "yes") != self.is_negated


@dataclass(frozen=True)
class Picture:
    """A picture of 64 x 64 pixels with all its questions."""

    image_id: int
    path: Path
    questions: tuple[Question, ...]

    def image(self) -> Image.Image:
        """Opens the picture's file as an RGB image."""
        with Image.open(self.path) as image:
            return image.convert("RGB")


def load_split(split: Literal["train", "test"]) -> list[Picture]:
    """
    Loads the published training or test split, ordered by image id.

    Raises:
        ValueError: the package `easy-vqa`, which contains the data, is not installed.
    """
    folder = package_folder("easy_vqa", "easy-vqa==1.0") / "data" / split
    questions: dict[int, list[Question]] = {}
    for text, answer, image_id in json.loads((folder / "questions.json").read_text(encoding="utf-8")):
        questions.setdefault(image_id, []).append(Question(text, answer, kind_of(answer)))
    return [
        Picture(image_id, folder / "images" / f"{image_id}.png", tuple(asked))
        for image_id, asked in sorted(questions.items())
    ]


def kind_of(answer: str) -> Kind:
    """
    Derives the kind of a question from its answer.

    Raises:
        ValueError: no question of easy-VQA has this answer.
    """
    if answer in ("yes", "no"):
        return "yes/no"
    if answer in _SHAPES:
        return "shape"
    if answer in _COLOURS:
        return "colour"
    raise ValueError(
        f"No question of easy-VQA 1.0 has the answer {answer!r}: answers are yes, no, a shape or a colour. Install "
        "easy-vqa==1.0."
    )


def epoch_batches(
    pictures: Sequence[Picture], pictures_per_batch: int, lesson: Lesson, seed: int = 0
) -> Iterator[list[tuple[Picture, list[Question]]]]:
    """
    Yields the batches of one pass over the pictures in random order. Each picture comes with the questions that the
    lesson chooses for it; pictures without such a question are skipped, and an incomplete last batch is dropped.

    Args:
        pictures_per_batch: number of pictures in a batch.
        lesson:
            "compare" asks for the shape or the colour, and whether a named shape or colour is present. "all" asks for
            both, and whether a named shape or colour is present or absent. As many yes/no questions name what the
            picture shows as name something else. In the data set itself four in five name something else, so a model
            could score well by always assuming this.
        seed: seed of the order of the pictures and of the choice of questions.
    """
    draw = random.Random(seed)
    batch = []
    for picture in draw.sample(pictures, len(pictures)):
        open_questions = [question for question in picture.questions if question.kind != "yes/no"]
        yes_no = [question for question in picture.questions if question.kind == "yes/no"]
        if lesson == "compare":
            yes_no = [question for question in yes_no if not question.is_negated]
            open_questions = draw.sample(open_questions, min(1, len(open_questions)))
        shown = [question for question in yes_no if question.names_what_is_shown]
        other = [question for question in yes_no if not question.names_what_is_shown]
        number = min(len(shown), len(other), 2)
        questions = open_questions + draw.sample(shown, number) + draw.sample(other, number)
        if questions:
            batch.append((picture, questions))
        if len(batch) == pictures_per_batch:
            yield batch
            batch = []


def majority_answers(pictures: Sequence[Picture]) -> dict[Kind, str]:
    """The most frequent answer to each kind of question."""
    answers: dict[Kind, Counter[str]] = {}
    for picture in pictures:
        for question in picture.questions:
            answers.setdefault(question.kind, Counter())[question.answer] += 1
    return {kind: counts.most_common(1)[0][0] for kind, counts in answers.items()}
