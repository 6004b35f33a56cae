"""easy-VQA: 5,000 drawn pictures of one coloured shape each, with questions (MIT; Zhou, 2019)."""

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
Lesson = Literal["look", "compare", "all"]

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
        """Whether a yes/no question asks for what is missing."""
        return not {"no", "not"}.isdisjoint(self.text.split())

    @property
    def names_what_is_shown(self) -> bool:
        """Whether a yes/no question names the picture's own shape or colour."""
        return (self.answer == "yes") != self.is_negated


@dataclass(frozen=True)
class Picture:
    """A picture of 64 x 64 pixels with all its questions."""

    image_id: int
    path: Path
    questions: tuple[Question, ...]

    def image(self) -> Image.Image:
        """The picture itself, RGB."""
        with Image.open(self.path) as image:
            return image.convert("RGB")


def load_split(split: Literal["train", "test"]) -> list[Picture]:
    """
    The published training or test split, by the pictures' ids.

    Raises:
        ValueError: the package that carries it is not installed.
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
    What a question asks for, told by its answer.

    Raises:
        ValueError: no question of easy-VQA has this answer.
    """
    if answer in ("yes", "no"):
        return "yes/no"
    if answer in _SHAPES:
        return "shape"
    if answer in _COLOURS:
        return "colour"
    raise ValueError(f"No question of easy-VQA has the answer {answer!r}; is this another version of the data?")


def epoch_batches(
    pictures: Sequence[Picture], pictures_per_batch: int, lesson: Lesson, seed: int = 0
) -> Iterator[list[tuple[Picture, list[Question]]]]:
    """
    One pass over the pictures in random order, in full batches, each picture with its questions of a lesson; one that has
    none is left out.

    Args:
        pictures_per_batch: pictures of a batch.
        lesson:
            "look" asks what shape and what colour; "compare" whether there is this shape or colour; "all" everything,
            whether there is none among it. Yes/no questions name what the picture shows as often as what it does not:
            as they are drawn in the data, four in five name something else, and answering that alone pays.
        seed: of the order and of the choice.
    """
    draw = random.Random(seed)
    batch = []
    for picture in draw.sample(pictures, len(pictures)):
        open_questions = [question for question in picture.questions if question.kind != "yes/no"]
        if lesson == "look":
            questions = open_questions
        else:
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
