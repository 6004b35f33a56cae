"""What a run consists of: its settings, its tasks with their data, and the parts that are answered one after the other."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mm1_hf.evaluation.demonstrations import Demonstrations
from mm1_hf.evaluation.prompts import build_requests, prompt_hash, template_of
from mm1_hf.evaluation.requests import Request
from mm1_hf.evaluation.samples import Sample
from mm1_hf.evaluation.tasks import Style, Task


@dataclass(frozen=True)
class EvaluationSettings:
    """
    What is asked of a model beside the tasks.

    Args:
        shots: numbers of demonstrations.
        trials: how often a task with demonstrations is repeated, each time with others.
        style: form of the prompts; unset, that of each task.
        split_last: number of demonstrations, counted from the last, whose images are split into tiles; the images of
            the others stay whole. Unset, the processor's settings hold for all.

    Raises:
        ValueError: a number is negative, there are no shots or trials, or a number of shots is given twice.
    """

    shots: tuple[int, ...] = (0,)
    trials: int = 1
    style: Style | None = None
    split_last: int | None = None

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots is {list(self.shots)}; give numbers from 0 on, each once, such as 0 4 8.")
        if self.trials < 1 or (self.split_last or 0) < 0:
            raise ValueError(
                f"trials is {self.trials} and split_last is {self.split_last}; give at least one trial, and no negative "
                "number."
            )


@dataclass(frozen=True)
class Subject:
    """
    A task with its data.

    Args:
        task: the task.
        samples: its questions. Other samples with the same ids may take their place, such as ones with shuffled images.
        demonstrations: what demonstrations are drawn from; None if there are none.
    """

    task: Task
    samples: Sequence[Sample]
    demonstrations: Demonstrations | None = None

    @property
    def shots(self) -> Demonstrations:
        """
        What demonstrations are drawn from.

        Raises:
            ValueError: there is nothing.
        """
        if self.demonstrations is None:
            raise ValueError(f"The task {self.task.name} has no demonstrations; ask for 0 shots.")
        return self.demonstrations

    def describe(self, style: Style | None) -> dict[str, Any]:
        """
        What the record says of the task, its prompts and its data.

        Args:
            style: form of the prompts; unset, that of the task.
        """
        chosen = style or self.task.style
        data = {name: getattr(self.samples, name, None) for name in ("source", "revision")}
        data["fingerprint"] = getattr(self.samples, "fingerprint", None) or _fingerprint(self.samples)
        return {
            "task": _as_json(asdict(self.task)),
            "style": chosen,
            "template": asdict(template_of(self.task, style=chosen)),
            "template_hash": prompt_hash(self.task, style=chosen),
            "decoding": {
                "do_sample": False,
                "max_new_tokens": self.task.max_new_tokens,
                "stop": list(self.task.stop) if chosen == "completion" else [],
            },
            "data": data | {"split": self.task.split, "samples": len(self.samples)},
            "demonstrations": self._describe_demonstrations(),
        }

    def _describe_demonstrations(self) -> dict[str, Any] | None:
        if self.demonstrations is None:
            return None
        # What was left out so far depends on what was drawn so far, and so not on the run alone.
        return {name: value for name, value in self.demonstrations.describe().items() if name != "left_out"}


def _fingerprint(samples: Sequence[Sample]) -> str:
    """What tells questions that a program made apart from others."""
    content = [[sample.id, sample.question, sample.references] for sample in samples]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


@dataclass(frozen=True)
class Cell:
    """
    A part of a run: all questions of a task with one number of demonstrations in one trial.

    Args:
        subject: the task with its data.
        shots: number of demonstrations.
        trial: index of the trial, counted from 0.
        judged: whether the judge is asked about the answers, and not the model about the questions.
    """

    subject: Subject
    shots: int
    trial: int
    judged: bool = False

    @property
    def name(self) -> str:
        """Name in the journal."""
        return f"{self.subject.task.name}, {self.shots} shots, trial {self.trial}" + (
            ", judged" if self.judged else ""
        )

    def ask(self, sample: Sample, settings: EvaluationSettings) -> tuple[tuple[Request, ...], list[Sample]]:
        """
        The requests about a sample, and the demonstrations in them.

        Args:
            sample: the sample.
            settings: settings of the run.

        Raises:
            ValueError: there are too few demonstrations.
        """
        shown: list[Sample] = []
        if self.shots:
            shown = self.subject.shots.draw(sample, self.shots, trial=self.trial)
        requests = build_requests(
            self.subject.task, sample, shown, style=settings.style, split_last=settings.split_last
        )
        return requests, shown


def cells(subjects: Sequence[Subject], settings: EvaluationSettings) -> list[Cell]:
    """
    The parts of a run in the order in which they are answered. Without demonstrations, and with retrieved ones, all
    trials would be the same, so there is one.

    Args:
        subjects: the tasks.
        settings: settings of the run.
    """
    return [
        Cell(subject, shots, trial)
        for subject in subjects
        for shots in settings.shots
        for trial in range(settings.trials if shots and subject.shots.how != "rices" else 1)
    ]


def prompt_digest(requests: Sequence[Request]) -> str:
    """
    A digest of the texts of some requests, with marks in the places of their images.

    Args:
        requests: the requests.
    """
    written = [[each.text, list(each.continuations), list(each.stop), each.max_new_tokens] for each in requests]
    return hashlib.sha256(json.dumps(written).encode()).hexdigest()[:16]
