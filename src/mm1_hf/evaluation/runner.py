"""Runs an evaluation: every question of every part is answered once, in any number of processes, whatever stops them."""

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from mm1_hf.data.identity import differences
from mm1_hf.evaluation.cells import Cell, EvaluationSettings, Subject, cells, prompt_digest
from mm1_hf.evaluation.journal import Entry, Journal
from mm1_hf.evaluation.judging import judge_request
from mm1_hf.evaluation.prompts import prediction
from mm1_hf.evaluation.requests import Answer, EvaluatedModel, Request
from mm1_hf.evaluation.results import RESULTS, write_results
from mm1_hf.evaluation.scoring import require_columns
from mm1_hf.training.machine import this_machine
from mm1_hf.training.output_folder import hold, on_main_process


RUN = "run.json"
_JOURNAL = "journal"
# Questions that are asked together if no batch size is given.
_CHUNK = 128
# What may change between a run and its continuation: it decides where and how fast it runs, not what is answered.
_FREE = ("batch_size", "device", "processes")

# Processes wait for each other at the end of the run, and their shares may take differently long.
_LONGEST_WAIT = timedelta(days=7)

Answers = dict[str, dict[int, Entry]]


def processes() -> PartialState:
    """
    This process and those that `accelerate launch` or `torchrun` started with it. To be called before a model is loaded,
    so that each process gets a device of its own.
    """
    return PartialState(cpu=this_machine().device.type == "cpu", timeout=_LONGEST_WAIT)


def evaluate(
    model: EvaluatedModel,
    subjects: Sequence[Subject],
    settings: EvaluationSettings,
    output: str | Path,
    *,
    judge: EvaluatedModel | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """
    Measures a model on tasks. Every answer is written to `output` as soon as it is there: if the run is stopped, the same
    call goes on with it and ends with the same scores. If it has ended, its results are returned.

    Several processes that were started by `accelerate launch` or `torchrun` share the questions. They need one folder
    that all of them can read.

    Args:
        model: the model. In several processes, each has its own.
        subjects: the tasks with their data.
        settings: shots, trials, seed and form of the prompts.
        output: folder of the run.
        judge: the model that scores the answers of tasks with a judge.
        batch_size: batch size of the model, which decides how many questions are asked together.

    Returns:
        The results, as in `results.json`.

    Raises:
        ValueError: the folder holds another run, a task cannot be asked or scored with these settings, or two tasks have
            the same name.
        OSError: an endpoint does not answer any more, or the folder cannot be written to.
    """
    _check(subjects, settings, judge)
    folder, state = Path(output), processes()
    run = {
        "model": dict(model.describe()),
        "judge": None if judge is None else dict(judge.describe()),
        "settings": asdict(settings),
        "tasks": {subject.task.name: subject.describe(settings.style) for subject in subjects},
        "chunk": max(_CHUNK, 2 * (batch_size or 0)),
    }
    with hold(folder):
        run, finished = on_main_process(lambda: _start(folder, run))
        if finished is not None:
            return finished
        began = time.perf_counter()
        journal = Journal(folder / _JOURNAL, state.process_index)
        parts = cells(subjects, settings)
        with journal, _resumable(folder, journal):
            _answer(model, parts, settings, journal, run)
            if judged := [replace(cell, judged=True) for cell in parts if cell.subject.task.judge]:
                assert judge is not None
                _answer(judge, judged, settings, journal, run)
        return on_main_process(
            lambda: write_results(
                folder, run, parts, settings, journal.read, state.num_processes, time.perf_counter() - began
            )
        )


def _check(subjects: Sequence[Subject], settings: EvaluationSettings, judge: EvaluatedModel | None) -> None:
    names = [subject.task.name for subject in subjects]
    if len(set(names)) < len(names):
        raise ValueError(f"The tasks are {', '.join(names)}; give each once, and tasks of one name different names.")
    for subject in subjects:
        if subject.task.judge and judge is None:
            raise ValueError(
                f"The answers to {subject.task.name} are scored by another model. Give the address of its endpoint as judge."
            )
        if not len(subject.samples):
            raise ValueError(f"The data of {subject.task.name} has no samples in its split {subject.task.split}.")
        # Too few demonstrations, a template that does not fit or a missing column should not be found out after hours.
        first = next((sample for sample in subject.samples if sample.error is None), None)
        if first is not None:
            requests, _ = Cell(subject, max(settings.shots), 0).ask(first, settings)
            if subject.task.metric:
                unanswered = [Answer(error="") for _ in requests]
                require_columns(subject.task, prediction(subject.task, first, unanswered, style=settings.style)[1])


def _start(folder: Path, run: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The run that the folder holds, which is this one, and its results if it has ended."""
    path = folder / RUN
    run = json.loads(json.dumps(run, default=str))
    if not path.exists():
        if (folder / _JOURNAL).exists():
            raise ValueError(f"{folder} has answers, but {RUN} is missing: give another folder, or remove this one.")
        part = path.with_suffix(".part")
        part.write_text(json.dumps(run, indent=1), encoding="utf-8")
        part.replace(path)
        return run, None
    saved = json.loads(path.read_text(encoding="utf-8"))
    if changed := differences(_decisive(saved), _decisive(run)):
        told = "; ".join(f"{name}: {before!r:.200} there, {now!r:.200} now" for name, (before, now) in changed.items())
        raise ValueError(
            f"{folder} holds a run with other settings ({told}). Go on with its own settings, or give another folder."
        )
    finished = folder / RESULTS
    return saved, json.loads(finished.read_text(encoding="utf-8")) if finished.exists() else None


def _decisive(run: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in run.items() if name != "chunk"}
    for name in ("model", "judge"):
        if kept[name] is not None:
            kept[name] = {key: value for key, value in kept[name].items() if key not in _FREE}
    return kept


@contextmanager
def _resumable(folder: Path, journal: Journal) -> Generator[None]:
    """Says, when an endpoint or the disk fails, what is saved and how to go on."""
    try:
        yield
    except OSError as error:
        saved = sum(map(len, journal.places().values()))
        raise OSError(
            f"{error} The answers to {saved} questions are saved in {folder}: give the same command again to go on."
        ) from error


def _answer(
    model: EvaluatedModel,
    parts: Sequence[Cell],
    settings: EvaluationSettings,
    journal: Journal,
    run: Mapping[str, Any],
) -> None:
    """Answers this process's share of what has not been answered yet, and waits for the other processes."""
    state = PartialState()
    saved = journal.places()
    given = journal.read({replace(cell, judged=False).name for cell in parts if cell.judged})
    # Every process must have read the same journal before one of them writes, because each finds its share for itself.
    state.wait_for_everyone()
    # In a batch of others, an answer in half precision may differ: only whole chunks are the same in every run. Behind an
    # endpoint, the batches are unknown in any case.
    whole = model.describe().get("kind") != "endpoint"
    chunks = _share(
        [
            (cell, rows)
            for cell in parts
            for rows in _open_chunks(cell, saved.get(cell.name, set()), run["chunk"], whole)
        ],
        state,
    )
    total = sum(len(rows) for _, rows in chunks)
    with tqdm(total=total, unit="question", disable=not (state.is_main_process and total)) as bar:
        for cell, rows in chunks:
            bar.set_description(cell.name)
            for entry in _ask(model, cell, rows, settings, given):
                journal.append(entry)
                bar.update()
            journal.sync()
    state.wait_for_everyone()


def _share(chunks: Sequence[tuple[Cell, list[int]]], state: PartialState) -> list[tuple[Cell, list[int]]]:
    """This process's chunks: each in turn goes to the process that has the fewest questions so far."""
    loads = [0] * state.num_processes
    mine = []
    for cell, rows in chunks:
        process = loads.index(min(loads))
        loads[process] += len(rows)
        if process == state.process_index:
            mine.append((cell, rows))
    return mine


def _open_chunks(cell: Cell, answered: Set[int], size: int, whole: bool) -> Iterator[list[int]]:
    number = len(cell.subject.samples)
    for start in range(0, number, size):
        rows = list(range(start, min(start + size, number)))
        missing = [row for row in rows if row not in answered]
        if missing:
            yield rows if whole else missing


def _ask(
    model: EvaluatedModel, cell: Cell, rows: Sequence[int], settings: EvaluationSettings, given: Answers
) -> Iterator[Entry]:
    """The answers about some samples, each as soon as all its requests are answered."""
    requests: list[Request] = []
    place_of: list[tuple[int, int]] = []
    entries: dict[int, Entry] = {}
    open_answers: dict[int, list[Answer | None]] = {}
    for row in rows:
        sample = cell.subject.samples[row]
        if sample.error is not None and not cell.judged:
            yield Entry(cell.name, row, sample.id, (), prompt_digest(()), (Answer(error=sample.error),))
            continue
        if cell.judged:
            judged = given[replace(cell, judged=False).name][row]
            said, _ = prediction(cell.subject.task, sample, judged.answers, style=settings.style)
            asked, shown = (judge_request(cell.subject.task, sample, said),), []
        else:
            asked, shown = cell.ask(sample, settings)
        shots = tuple(each.id for each in shown)
        entry = Entry(cell.name, row, sample.id, shots, prompt_digest(asked), ())
        entries[row], open_answers[row] = entry, [None] * len(asked)
        place_of += [(row, number) for number in range(len(asked))]
        requests += asked
    for index, answer in model.answers(requests):
        row, number = place_of[index]
        open_answers[row][number] = answer
        if all(each is not None for each in open_answers[row]):
            yield replace(entries[row], answers=tuple(each for each in open_answers[row] if each is not None))
