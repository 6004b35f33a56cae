"""Samples: the questions of a task with their images and references, made from the records of its data when asked for."""

import hashlib
import json
import os
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, overload

from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.data.media import images_in, record_image
from mm1_hf.data.raw_records import ERROR, FOLDER, READER_KEYS, WRONG_LAYOUT
from mm1_hf.data.wall import around_record
from mm1_hf.evaluation.odd_rows import PREPARERS, is_absent
from mm1_hf.evaluation.rows import Rows, open_rows
from mm1_hf.evaluation.tasks import Task
from mm1_hf.evaluation.templates import IMAGE


LETTERS = string.ascii_uppercase
# Metrics that want the list of accepted answers, also where a record has only one.
_LISTS = ("anls", "cider", "greedy_match", "vqa_accuracy")


@dataclass(frozen=True)
class Sample:
    """
    A question of a task.

    Args:
        id: its name, unique in its split.
        images:
            its images. The last ones stand at the marks `<image>` of the question and of the choices, in their order;
            those for which there is no mark come first.
        question: the question.
        references: what the metric compares the answer with; `None` if the data do not have it.
        choices: the options.
        columns: what else the metric, the prompt or the submission need, by their names there.
        answer: the answer as a demonstration says it.
        contexts: the beginnings to choose from, if the continuation is the same for all.
        pool: the demonstrations to draw from, if the question has its own. Those of a group are one shot.
        error: why the question cannot be asked, for example that its image is missing.
    """

    id: str
    images: tuple[ImagePart, ...] = ()
    question: str = ""
    references: Any = None
    choices: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    answer: str = ""
    contexts: tuple[str, ...] = ()
    pool: tuple[tuple["Sample", ...], ...] = ()
    error: str | None = None

    @property
    def scored(self) -> bool:
        """Whether there is a reference, without which an answer has no score."""
        return self.references is not None

    @property
    def marks(self) -> int:
        """Number of places in the question and the choices where an image stands."""
        return sum(text.count(IMAGE) for text in (self.question, *self.choices))


def read_samples(
    task: Task,
    split: str | None = None,
    data: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    shots: bool = False,
) -> "Samples":
    """
    Opens the questions of a task.

    Args:
        task: the task.
        split: the split; unset, that of the task.
        data:
            path of a local copy of the data: a folder as on the Hub, or as `save_to_disk` writes it; a folder with a
            file or folder for each split (parquet, Arrow, JSON lines); one such file; or a folder that holds one of
            these under the name of the task or the id of the data set. Unset, the data are read from the Hub.
        limit: the largest number of questions; the first ones are taken.
        shots: whether the demonstrations are meant.

    Returns:
        The questions, each of which is read when it is asked for.

    Raises:
        ValueError: the data are not there, cannot be read, lack a column, or hold no question.
    """
    chosen = task.demonstrations if shots else task
    split = split or chosen.split
    if chosen.split != task.split and data is not None and os.path.isfile(data):
        raise ValueError(
            f"{os.fspath(data)} is one file, which is taken for the split {task.split} of the task {task.name}; the "
            f"demonstrations are of the split {chosen.split}. Give a folder with a file for each split."
        )
    rows = open_rows(chosen, split, data, chosen.configs)
    images = None
    if chosen.join:
        images = open_rows(chosen, split, data, (chosen.join.config,))
    return Samples(chosen, split, rows, images, limit)


class Samples(Sequence[Sample]):
    """
    The questions of a split. A question is read when it is asked for, so that the images of all are never in memory.

    Args:
        task: the task.
        split: the split.
        rows: the records.
        images: the records of a second table with the images, if the task has one.
        limit: the largest number of questions.

    Raises:
        ValueError: a column is missing, or there is no question.
    """

    def __init__(
        self, task: Task, split: str, rows: Rows, images: Rows | None = None, limit: int | None = None
    ) -> None:
        self.task = task
        self.split = split
        self._rows = rows
        self._images = images
        places = self._find_places()
        self._places = places if limit is None else places[:limit]
        if not self._places:
            raise ValueError(f"{rows.source} has no question in the split {split}{self._only()}. Give other data.")
        self._check_columns()

    def _only(self) -> str:
        return f" with {', '.join(f'{name} {list(values)}' for name, values in self.task.only.items())}" * bool(
            self.task.only
        )

    @property
    def source(self) -> str:
        """Where the data come from: an id of the Hub or a path."""
        return self._rows.source

    @property
    def revision(self) -> str | None:
        """The commit of the Hub's data set, if it is known."""
        return self._rows.revision

    @cached_property
    def ids(self) -> list[str]:
        """The names of all questions. No image is read for them."""
        column = self.task.columns.id
        values = self._rows.column(_root(column, self._rows.names)) if column else []
        names = []
        for row, entry in self._places:
            value = values[row] if values else None
            name = f"{self.split}-{row}" if value is None else str(value)
            names.append(name if entry is None else f"{name}-{entry}")
        counts = Counter(names)
        return [
            f"{name}@{row}" if counts[name] > 1 else name for name, (row, _) in zip(names, self._places, strict=True)
        ]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the names, questions and references. It does not depend on the place or the format of the data."""
        found = self._rows.names
        columns = {
            root: self._rows.column(root)
            for path in (self.task.columns.question, self.task.columns.answer)
            if (root := _root(path, found)) in found
        }
        rows = sorted({row for row, _ in self._places})
        texts = {name: [values[row] for row in rows] for name, values in columns.items()}
        content = json.dumps([self.task.name, self.split, self.ids, texts], default=str, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        row, entry = self._places[index]
        name = f"{self._rows.source}, record {row}"
        identifier = self.ids[index]
        try:
            # A failure of the disk ends the run, and is not taken for one of this record.
            record = self._rows.read(row)
            with around_record(name):
                return self._sample(self._prepared(record, entry, name), identifier, name)
        except Unusable as reason:
            return Sample(identifier, error=str(reason))

    def _find_places(self) -> list[tuple[int, int | None]]:
        """The record of each question, and its place in the list of the column `each`."""
        rows = range(len(self._rows))
        for name, values in self.task.only.items():
            self._require([name], self._rows.names)
            column = self._rows.column(name)
            rows = [row for row in rows if str(column[row]) in values]
        if not self.task.each:
            return [(row, None) for row in rows]
        self._require([self.task.each], self._rows.names)
        lists = self._rows.column(self.task.each)
        return [(row, entry) for row in rows for entry in range(len(lists[row] or ()))]

    def _check_columns(self) -> None:
        columns = self.task.columns
        for rows, paths in (
            (self._images, _as_list(columns.image)),
            (self._images, [self.task.join.key] if self.task.join else []),
            (self._rows, [self.task.join.by] if self.task.join else []),
        ):
            if rows is not None:
                self._require([path for path in paths if path], rows.names)
        read = [columns.question, columns.answer, columns.spoken, columns.contexts, *self.task.keep.values()]
        read += _as_list(columns.choices)
        if self._images is None:
            read += _as_list(columns.image)
        known = set(self._rows.names)
        for row, entry in self._places[:10]:
            try:
                record = self._rows.read(row)
                with around_record(self._rows.source):
                    known |= set(self._prepared(record, entry, self._rows.source))
            except Unusable as reason:
                if isinstance(reason.__cause__, KeyError):
                    self._require([str(reason.__cause__.args[0])], self._rows.names)
                continue
            break
        else:
            raise ValueError(f"None of the first records of {self._rows.source} can be read. Give other data.")
        self._require([columns.id] if columns.id else [], self._rows.names)
        optional = {columns.answer, columns.spoken} if self.split in self.task.hidden else set()
        self._require([path for path in read if path and path not in optional], known)

    def _require(self, paths: Sequence[str], names: Any) -> None:
        for path in paths:
            if _root(path, names) not in names:
                there = ", ".join(sorted(name for name in names if name not in READER_KEYS))
                raise ValueError(
                    f"{self._rows.source} has no column {path.split('.')[0]!r}, which the task {self.task.name} reads; "
                    f"there are {there}. Give data of the published form, or a task that names these columns."
                )

    def _prepared(self, record: Mapping[str, Any], entry: int | None, name: str) -> Mapping[str, Any]:
        if entry is not None:
            record = {**record, self.task.each: record[self.task.each][entry]}
        prepare = PREPARERS.get(self.task.prepare)
        return {**record, **prepare(record, name)} if prepare else record

    def _sample(self, record: Mapping[str, Any], identifier: str, name: str) -> Sample:
        columns = self.task.columns
        choices = _choices(record, columns.choices)
        references, answer = self._reference(record, choices)
        images, error = self._read_images(record, name)
        kept = {key: _value(record, path) for key, path in self.task.keep.items()}
        options = list(choices) or None
        sample = Sample(
            identifier,
            images,
            _text(_value(record, columns.question)) if columns.question else "",
            None if self.split in self.task.hidden else references,
            choices,
            {"options": options, "choices": options, **kept},
            str(_value(record, columns.spoken)) if columns.spoken else answer,
            tuple(record[columns.contexts]) if columns.contexts else (),
            tuple(tuple(_shot(shot, record, f"{name}, a demonstration") for shot in group) for group in record["pool"])
            if "pool" in record
            else (),
            record.get(ERROR) or error,
        )
        if sample.error is None and sample.marks > len(images):
            raise Unusable(WRONG_LAYOUT, f"{name}: {sample.marks} marks {IMAGE} for {len(images)} images")
        return sample

    def _read_images(self, record: Mapping[str, Any], name: str) -> tuple[tuple[ImagePart, ...], str | None]:
        columns = self.task.columns
        if not columns.image:
            return (), None
        try:
            if self._images is not None and self.task.join:
                key = record[self.task.join.by]
                if key not in self._by_key:
                    raise Unusable("no image", f"{name}: there is no image {key!r:.100}")
                record = self._images.read(self._by_key[key])
            parts = [
                record_image(image, record, name)
                for value in map(partial(_value, record), _as_list(columns.image))
                for image in images_in(value, name)
            ]
        except Unusable as error:
            return (), str(error)
        if not parts:
            return (), f"no image: {name}"
        return tuple(parts), None

    @cached_property
    def _by_key(self) -> dict[Any, int]:
        assert self._images is not None and self.task.join is not None
        return {key: row for row, key in enumerate(self._images.column(self.task.join.key))}

    def _reference(self, record: Mapping[str, Any], choices: Sequence[str]) -> tuple[Any, str]:
        """What the metric compares with, and the answer of a demonstration."""
        value = _value(record, self.task.columns.answer) if self.task.columns.answer else None
        kind = self.task.answer_is
        if kind == "value":
            return value, ""
        if value is None or value in ("", []):
            return None, ""
        if kind == "letter":
            letter = str(value).strip().strip("().").upper()
            return letter, letter
        if kind == "index":
            index = int(value)
            if not 0 <= index < len(choices):
                raise Unusable(WRONG_LAYOUT, f"the answer is {index}, but there are {len(choices)} choices")
            if self.task.kind == "letters":
                return LETTERS[index], LETTERS[index]
            return (index if self.task.kind == "likelihood" else choices[index]), choices[index]
        accepted = [_text(each) for each in value if each is not None] if isinstance(value, list) else [_text(value)]
        if not any(accepted):
            return None, ""
        # The most frequent one, of equally frequent ones the first.
        likeliest = Counter(each for each in accepted if each).most_common(1)[0][0]
        as_list = isinstance(value, list) or self.task.metric in _LISTS
        return (accepted if as_list else accepted[0]), likeliest


def _shot(entry: Mapping[str, Any], record: Mapping[str, Any], name: str) -> Sample:
    """A demonstration that a question brings. Its files lie where those of the question do."""
    where = {FOLDER: record[FOLDER]} if FOLDER in record else {}
    content = json.dumps([entry["images"], entry["question"], entry["answer"]])
    error = None
    images: tuple[ImagePart, ...] = ()
    try:
        images = tuple(record_image(image, where, name) for image in entry["images"])
    except Unusable as reason:
        error = str(reason)
    return Sample(
        hashlib.sha256(content.encode()).hexdigest()[:16],
        images,
        entry["question"],
        entry["answer"],
        answer=entry["answer"],
        error=error,
    )


def _as_list(paths: str | tuple[str, ...]) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _root(path: str, names: Any) -> str:
    """The column that a path starts at: of several names the first that there is, or the first one."""
    options = [option.split(".")[0] if option not in names else option for option in path.split("|")]
    return next((option for option in options if option in names), options[0])


def _value(record: Mapping[str, Any], path: str) -> Any:
    """What stands at a path of a record. Inside of a list it is the list of what stands in each entry."""
    option = next((each for each in path.split("|") if each in record or each.split(".")[0] in record), path)
    if option in record:
        return record[option]
    value: Any = record
    for name in option.split("."):
        value = [each[name] for each in value] if isinstance(value, list) else value.get(name)
        if value is None:
            return None
    return value


def _choices(record: Mapping[str, Any], paths: str | tuple[str, ...]) -> tuple[str, ...]:
    """The options, from a column with a list, or from one column for each, of which the last ones may be empty."""
    if isinstance(paths, str):
        return tuple(map(str, (_value(record, paths) or ()) if paths else ()))
    values = [_value(record, path) for path in paths]
    while values and is_absent(values[-1]):
        values.pop()
    return tuple("" if is_absent(value) else str(value) for value in values)
