"""The answers of a run on disk, so that a run that was stopped, even by `kill -9`, goes on where it was."""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mm1_hf.evaluation.requests import Answer


@dataclass(frozen=True)
class Entry:
    """
    What was asked about one sample, and what was answered.

    Args:
        cell: the part of the run: task, number of shots and trial, as [`mm1_hf.evaluation.cells.Cell`] writes them.
        index: place of the sample in the split, counted from 0.
        id: name of the sample.
        shots: names of the demonstrations.
        prompt: digest of the prompts.
        answers: answers to the requests of the sample, in their order.
    """

    cell: str
    index: int
    id: str
    shots: tuple[str, ...]
    prompt: str
    answers: tuple[Answer, ...]


class Journal:
    """
    Files of a run's folder to which every answer is appended as one line, one file for each process. Used in a `with`
    block for writing.

    Args:
        folder: folder of the files. It is created if it does not exist.
        process: index of this process.
    """

    def __init__(self, folder: Path, process: int) -> None:
        self._folder = folder
        self._path = folder / f"answers-{process}.jsonl"

    def read(self, cells: Collection[str]) -> dict[str, dict[int, Entry]]:
        """
        Reads the answers of some cells, by cell and index, from the files of all processes. A line that was cut when its
        process was killed is ignored.

        Args:
            cells: names of the cells. The answers of a large run do not all fit in memory.

        Raises:
            ValueError: a line that is not the last of its file cannot be read.
        """
        found: dict[str, dict[int, Entry]] = {cell: {} for cell in cells}
        for entry in self._entries():
            if entry.cell in found:
                found[entry.cell][entry.index] = entry
        return found

    def places(self) -> dict[str, set[int]]:
        """
        The places of the samples that were answered, by cell.

        Raises:
            ValueError: a line that is not the last of its file cannot be read.
        """
        found: dict[str, set[int]] = {}
        for entry in self._entries():
            found.setdefault(entry.cell, set()).add(entry.index)
        return found

    def _entries(self) -> Iterator[Entry]:
        for path in sorted(self._folder.glob("answers-*.jsonl")):
            yield from _entries(path)

    def __enter__(self) -> "Journal":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "a+b")
        _drop_cut_line(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, entry: Entry) -> None:
        """
        Writes one line. It survives the end of this process, but not that of the machine before [`~Journal.sync`].

        Args:
            entry: what was answered.
        """
        self._file.write(json.dumps(asdict(entry)).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Waits until the lines are on the disk."""
        os.fsync(self._file.fileno())


def _entries(path: Path) -> Iterator[Entry]:
    with path.open("rb") as lines:
        yield from _parsed(path, lines)


def _parsed(path: Path, lines: Iterable[bytes]) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):
        # The last line was cut.
        if not line.endswith(b"\n"):
            return
        try:
            yield _entry(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"Line {number} of {path} cannot be read: {error}. It was not written by this version of mm1_hf, or the "
                "disk is damaged. Remove the line, and its question is asked again."
            ) from error


def _entry(values: Mapping[str, Any]) -> Entry:
    return Entry(
        cell=values["cell"],
        index=values["index"],
        id=values["id"],
        shots=tuple(values["shots"]),
        prompt=values["prompt"],
        answers=tuple(_answer(each) for each in _listed(values["answers"])),
    )


def _listed(values: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r:.100} is not a list")
    return values


def _answer(values: Mapping[str, Any]) -> Answer:
    return Answer(values["text"], tuple(values["log_likelihoods"]), tuple(values["greedy"]), values["error"])


def _drop_cut_line(file: Any) -> None:
    file.seek(0)
    content = file.read()
    if not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
