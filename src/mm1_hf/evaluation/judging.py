"""
Answers that a language model judges: LLaVA-Bench (in the wild) and MM-Vet.

The prompts say in our words what the benchmarks' own ask for, on the same scales: a judge's scores move by points
between judges, versions of a judge and prompts, so that scores are comparable only where all of these are the same.
"""

import re
from collections.abc import Sequence
from typing import Any

from mm1_hf.evaluation.requests import Request, Turn
from mm1_hf.evaluation.samples import Sample
from mm1_hf.evaluation.tasks import Task


HEADLINE = "judge"
UNIT = "fraction"

_SCORES = re.compile(r"(\d+(?:\.\d+)?)")
_LOWEST, _HIGHEST = 1, 10

_LLAVA_WILD = """\
Two assistants answered a question about an image that you cannot see. The image is described here by a person.

[Description of the image]
{context}

[Question]
{question}

[Answer of assistant 1]
{reference}

[Answer of assistant 2]
{prediction}

Judge how helpful, relevant, accurate and detailed each answer is. Give each assistant a score from 1 to 10; a higher \
score is a better answer. Write on the first line nothing but the two scores, that of assistant 1 first, with a space \
between them. Explain them on the following lines, and do not let the order of the answers influence you."""

_MM_VET = """\
Compare an answer with the correct one, and say how right it is: a number from 0.0 (entirely wrong) to 1.0 (entirely \
right), in steps of 0.1. In the correct answer, <AND> stands between parts that are all required, and <OR> between \
alternatives. Of a requirement of two parts, an answer with one of them scores 0.5.

Question: What does the sign say, and what colour is it?
Correct answer: stop <AND> red
Answer: A blue sign that says STOP.
Score: 0.5

Question: Which animal is on the sofa?
Correct answer: cat <OR> kitten
Answer: There is a small kitten asleep on the sofa.
Score: 1.0

Question: What is x in the equation?
Correct answer: x = 3
Answer: x = 5
Score: 0.0

Question: {question}
Correct answer: {reference}
Answer: {prediction}
Write nothing but the score.
Score:"""

_PROMPTS = {"llava_wild": _LLAVA_WILD, "mm_vet": _MM_VET}


def judge_request(task: Task, sample: Sample, prediction: str) -> Request:
    """
    What the judge is asked about an answer.

    Args:
        task: a task with a judge.
        sample: the question.
        prediction: the answer.
    """
    text = _PROMPTS[task.judge].format(
        question=sample.question,
        prediction=prediction,
        reference=sample.references,
        context=sample.columns.get("context", ""),
    )
    return Request((Turn("user", (text,)),), max_new_tokens=512 if task.judge == "llava_wild" else 8)


def read_verdict(task: Task, text: str) -> dict[str, float] | None:
    """
    Reads a judge's answer.

    Args:
        task: a task with a judge.
        text: the judge's answer.

    Returns:
        For LLaVA-Bench the scores of the answer (`score`) and of the reference (`reference`), from 1 to 10; for MM-Vet
        the `score` from 0 to 1. `None` if the judge's answer cannot be read.
    """
    lines = text.strip().splitlines() or [""]
    if task.judge == "mm_vet":
        numbers = [float(number) for number in _SCORES.findall(lines[0])]
        return {"score": numbers[0]} if len(numbers) == 1 and numbers[0] <= 1 else None
    numbers = [float(number) for number in _SCORES.findall(lines[0])]
    if len(numbers) != 2 or not all(_LOWEST <= number <= _HIGHEST for number in numbers):
        return None
    return {"reference": numbers[0], "score": numbers[1]}


def aggregate(
    task: Task, verdicts: Sequence[dict[str, float] | None], categories: Sequence[Any] | None = None
) -> dict[str, float]:
    """
    The score of a task from the judge's verdicts.

    Args:
        task: a task with a judge.
        verdicts:
            what [`read_verdict`] returned for each question. Unread ones are left out of the score, and their share is
            given as `unread`.
        categories:
            the category of each question, to give the score of each category as well; a question of MM-Vet counts in
            all of the capabilities that its category lists.

    Returns:
        `judge`: for LLaVA-Bench the mean score of the answers, divided by that of the references, which may exceed 1;
        for MM-Vet the mean score. `judge/<category>` for each category.

    Raises:
        ValueError: no verdict could be read.
    """
    read = [verdict for verdict in verdicts if verdict is not None]
    if not read:
        raise ValueError(
            f"None of the {len(verdicts)} verdicts of the judge can be read, so there is no score. Take another judge."
        )
    groups: dict[str, list[dict[str, float]]] = {}
    for verdict, category in zip(verdicts, categories or [""] * len(verdicts), strict=True):
        if verdict is not None and category:
            for name in str(category).split(","):
                groups.setdefault(name.strip(), []).append(verdict)
    return {
        HEADLINE: _score(read),
        **{f"{HEADLINE}/{name}": _score(group) for name, group in groups.items()},
        "unread": 1 - len(read) / len(verdicts),
    }


def _score(verdicts: Sequence[dict[str, float]]) -> float:
    total = sum(verdict["score"] for verdict in verdicts)
    return total / sum(verdict.get("reference", 1.0) for verdict in verdicts)
