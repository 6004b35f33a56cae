"""
Tasks:
    what is asked in an evaluation, as small declarative files. [`load_task`] reads one, and [`Task`] says what it may
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mm1_hf.evaluation import metrics
from mm1_hf.evaluation.odd_rows import PREPARERS
from mm1_hf.evaluation.sources import SOURCES
from mm1_hf.evaluation.templates import Template, named
from mm1_hf.training.entries import from_entries, read_entries


ENTRY_POINTS = "mm1_hf.tasks"
JUDGES = ("llava_wild", "mm_vet")
_EXTENSIONS = (".yaml", ".yml", ".json")

Kind = Literal["generate", "letters", "likelihood"]
Style = Literal["completion", "chat"]


@dataclass(frozen=True)
class Columns:
    """
    Where a record holds what a sample needs. A column is a name, or the names of a value inside (`choices.text`;
    inside of a list, the value of each entry), and several names with `|` between them mean the first that the data
    have.

    Args:
        question: the question.
        image: the image or images: one column, or several; what is empty is left out.
        answer: the reference, or the list of accepted ones.
        choices: a column with the list of options, or one column for each option; missing ones are left out.
        id: what names the record. Unset, it is named by its split and its place in it.
        spoken: the answer as a demonstration says it. Unset, it is derived from the reference.
        contexts: the beginnings, if the choice is between beginnings and not between continuations (WinoGrande).
    """

    question: str = ""
    image: str | tuple[str, ...] = ()
    answer: str = ""
    choices: str | tuple[str, ...] = ()
    id: str = ""
    spoken: str = ""
    contexts: str = ""


@dataclass(frozen=True)
class Join:
    """
    A second table that holds the images of the first (GQA).

    Args:
        config: configuration of the second table. It has the same split.
        key: its column that names the image.
        by: the column of the first table that names the image.
    """

    config: str
    key: str
    by: str


@dataclass(frozen=True)
class Shots:
    """
    Where the demonstrations come from.

    Args:
        split: their split.
        data: ids of their data sets on the Hub, in order of trial. Unset, those of the task.
        config: configurations, in the same form as the task's. Unset, those of the task.
        join: their table of images. Unset, that of the task.
    """

    split: str
    data: tuple[str, ...] = ()
    config: str | tuple[str, ...] = ()
    join: Join | None = None


@dataclass(frozen=True)
class Task:
    """
    A task of an evaluation.

    Args:
        name: its name, that of its file.
        split: the split that is evaluated.
        metric: name of a metric in `mm1_hf.evaluation.metrics`; empty if a judge scores the answers.
        completion: the prompt that a model continues, as a template or the name of one.
        chat: the request in a chat, as a template or the name of one.
        columns: where the records hold what a sample needs.
        data: ids of the data set on the Hub. The first that can be loaded is read.
        config: configurations of the data set; several are read one after the other.
        shots: where the demonstrations come from. Unset, from the split that is evaluated.
        source: what reads the data, if they are no data set of the Hub's usual forms: a key of `SOURCES`.
        prepare: what changes a record before its columns are read: a key of `PREPARERS`.
        join: a second table that holds the images.
        only: values that a column must have, for records to be read at all.
        each: a column with a list, each entry of which makes a sample of its own.
        keep: columns that the metric, the prompt or the submission need, by the names that they have there.
        kind:
            "generate" for a text, "letters" for the letter of an option, "likelihood" for the log-likelihood of given
            texts.
        answer_is:
            whether `columns.answer` holds the answer's text, its index among the choices, its letter, or a value that
            only the metric reads.
        style: how the prompt is written unless one asks for the other: as a text to continue, or as a chat.
        options: options of the metric.
        judge: which judge scores the answers, of `JUDGES`.
        stop: what ends an answer in completion style.
        max_new_tokens: maximum length of an answer in tokens.
        benchmark: name of the benchmark in the groups of `mm1_hf.evaluation.metrics.averages`.
        submission: form of the file for the server that holds the answers.
        hidden: splits whose answers only that server has.
        citation: the paper.
        licence: licence of the data, as far as it is known.
        note: what a reader of the scores has to know.

    Raises:
        ValueError: entries contradict each other, or name something that does not exist.
    """

    name: str
    split: str
    metric: str = ""
    completion: str | Template = "vqa"
    chat: str | Template = "chat_short"
    columns: Columns = field(default_factory=Columns)
    data: tuple[str, ...] = ()
    config: str | tuple[str, ...] = ()
    shots: Shots | None = None
    source: str = ""
    prepare: str = ""
    join: Join | None = None
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)
    each: str = ""
    keep: dict[str, str] = field(default_factory=dict)
    kind: Kind = "generate"
    answer_is: Literal["text", "index", "letter", "value"] = "text"
    style: Style = "completion"
    options: dict[str, Any] = field(default_factory=dict)
    judge: str = ""
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 0
    benchmark: str = ""
    submission: str = ""
    hidden: tuple[str, ...] = ()
    citation: str = ""
    licence: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if bool(self.metric) == bool(self.judge):
            raise ValueError("A task has either a metric or a judge: give one of the two entries.")
        for what, given, known in (
            ("metric", self.metric, metrics.NAMES),
            ("judge", self.judge, JUDGES),
            ("source", self.source, tuple(SOURCES)),
            ("prepare", self.prepare, tuple(PREPARERS)),
        ):
            if given and given not in known:
                raise ValueError(f"There is no {what} {given!r}. Give one of {', '.join(known)}.")
        if (self.kind == "likelihood") != (self.max_new_tokens == 0):
            raise ValueError(
                f"The task is of kind {self.kind} with max_new_tokens {self.max_new_tokens}. Give the length of an answer, "
                "or kind: likelihood, which generates nothing."
            )
        if not self.data and not self.source:
            raise ValueError("A task needs data: the ids of its data set on the Hub.")
        if self.shots is None and self.split in self.hidden:
            raise ValueError(f"The split {self.split} is hidden. Give a split of the demonstrations (shots.split).")
        named(self.completion)
        named(self.chat)

    @property
    def configs(self) -> tuple[str, ...]:
        """The configurations that are read; an empty name stands for the data set's only one."""
        return _as_tuple(self.config) or ("",)

    @property
    def demonstrations(self) -> "Task":
        """The task that reads the demonstrations: the same one, with their data set and split."""
        if self.shots is None:
            return self
        return replace(
            self,
            data=self.shots.data or self.data,
            config=self.shots.config or self.config,
            split=self.shots.split,
            join=self.shots.join or self.join,
            shots=None,
            hidden=(),
        )


def load_task(name_or_path: str | os.PathLike[str]) -> Task:
    """
    Reads a task.

    Args:
        name_or_path:
            name of a task of this package or of an installed one, or path of a task's file (YAML or JSON). After an
            `@`, another split to be evaluated, such as one whose answers only a server has: `vqav2@testdev`.

    Raises:
        ValueError: there is no such task, or its file has an unknown or a wrong entry.

    Example:

    ```python
    >>> from mm1_hf.evaluation.tasks import load_task

    >>> task = load_task("vqav2@testdev")
    >>> task.split, task.metric, task.submission
    ('testdev', 'vqa_accuracy', 'vqa')

    ```
    """
    given, split = os.fspath(name_or_path), ""
    if not given.endswith(_EXTENSIONS):
        given, _, split = given.partition("@") if "/" not in given else given.rpartition("@")
    path = Path(given) if given.endswith(_EXTENSIONS) else _file_of(given)
    try:
        values = read_entries(path)
    except OSError as error:
        raise ValueError(
            f"The task's file {path} cannot be read: {error.strerror}. Give the path of a file."
        ) from error
    task = from_entries(Task, {"name": path.stem, **values} if isinstance(values, Mapping) else values, str(path))
    return replace(task, name=f"{task.name}@{split}", split=split) if split else task


def task_names() -> tuple[str, ...]:
    """The names of all tasks of this package and of those that are installed."""
    return tuple(_files())


def _file_of(name: str) -> Path:
    files = _files()
    if name not in files:
        near = get_close_matches(name, files, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"There is no task {name!r}.{meant} Give the path of a task's file, or one of {', '.join(files)}."
        )
    if len(files[name]) > 1:
        raise ValueError(
            f"Several installed packages have a task {name!r}. Give the path of one of the files: "
            f"{', '.join(map(str, files[name]))}."
        )
    return files[name][0]


@cache
def _files() -> dict[str, list[Path]]:
    """The files of each name."""
    found: dict[str, list[Path]] = {}
    for folder in [Path(__file__).parent, *_folders()]:
        for path in sorted(folder.iterdir()):
            if path.suffix in _EXTENSIONS:
                found.setdefault(path.stem, []).append(path)
    return dict(sorted(found.items()))


def _folders() -> list[Path]:
    """The folders of the installed packages that have tasks. The packages themselves are not imported."""
    folders = []
    for entry in entry_points(group=ENTRY_POINTS):
        spec = find_spec(entry.value)
        if spec is None or spec.submodule_search_locations is None:
            raise ValueError(
                f"The entry point {entry.name} of the group {ENTRY_POINTS} is {entry.value!r}, which is not a package. Give "
                "the name of a package whose folder holds the tasks' files, or uninstall what brought it."
            )
        folders += map(Path, spec.submodule_search_locations)
    return folders


def _as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return ((value,) if value else ()) if isinstance(value, str) else value
