"""Few-shot questions: which of two classes a picture shows, whose names only the demonstrations tell."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.cells import Subject
from mm1_hf.evaluation.demonstrations import Demonstrations
from mm1_hf.evaluation.samples import Sample
from mm1_hf.evaluation.tasks import Task
from mm1_hf.evaluation.templates import Template


# Demonstrations of each of the two classes.
MOST_SHOTS = 4
CONTROLS = ("as they are", "shuffled", "dropped")


@dataclass(frozen=True)
class Question:
    """
    A query, its answer, and its demonstrations in groups of two, one of each class.

    Args:
        classes: indices of the two classes.
        query: file of the query's picture.
        answer: the name of its class.
        groups: pictures' files and names.
    """

    classes: tuple[int, int]
    query: bytes
    answer: str
    groups: tuple[tuple[tuple[bytes, str], ...], ...]


def questions(pictures: Sequence[Sequence[bytes]], names: Sequence[str], number: int, seed: int = 0) -> list[Question]:
    """
    Draws questions. No picture is in a question twice, each class of a question has a name that is drawn for this
    question alone, and the order of the two classes in a group is drawn too.

    Args:
        pictures: files of the pictures of each class, at least one more than `MOST_SHOTS`.
        names: the names to draw from.
        number: number of questions.
        seed: seed of all draws.
    """
    draw = random.Random(seed)
    made = []
    for _ in range(number):
        classes = draw.sample(range(len(pictures)), 2)
        called = draw.sample(list(names), 2)
        shown = [draw.sample(list(pictures[each]), MOST_SHOTS + 1) for each in classes]
        groups = []
        for shot in range(MOST_SHOTS):
            pair = [(shown[side][shot], called[side]) for side in range(2)]
            groups.append(tuple(draw.sample(pair, 2)))
        asked = draw.randrange(2)
        made.append(Question((classes[0], classes[1]), shown[asked][-1], called[asked], tuple(groups)))
    return made


def subject(name: str, asked: Sequence[Question], control: str) -> Subject:
    """
    The questions as a task for the evaluation.

    Args:
        name: name of the pictures.
        asked: the questions.
        control: what is done to the demonstrations' pictures, of `CONTROLS`. Shuffled ones are those of another
            question, with other classes, so that they tell nothing about the query.
    """
    task = Task(
        name=f"{name}, pictures {control}",
        split="test",
        metric="exact_match",
        completion=Template("{image}"),
        data=(name,),
        max_new_tokens=2,
        options={"normalizer": "none"},
    )
    samples = []
    for index, question in enumerate(asked):
        donor = question if control != "shuffled" else _other(asked, index)
        samples.append(
            Sample(
                id=str(index),
                images=(ImagePart(question.query),),
                references=question.answer,
                answer=question.answer,
                pool=tuple(
                    tuple(
                        Sample(
                            id=f"{index}-{shot}-{place}",
                            images=() if control == "dropped" else (ImagePart(donor.groups[shot][place][0]),),
                            answer=called,
                        )
                        for place, (_, called) in enumerate(group)
                    )
                    for shot, group in enumerate(question.groups)
                ),
            )
        )
    return Subject(task, samples, Demonstrations(None))


def _other(asked: Sequence[Question], index: int) -> Question:
    """The next question that has neither of the two classes."""
    following = [*asked[index + 1 :], *asked[:index]]
    return next(each for each in following if not {*each.classes} & {*asked[index].classes})
