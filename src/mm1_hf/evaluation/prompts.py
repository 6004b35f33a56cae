"""Builds what a model is asked from a sample and its demonstrations, and reads what the metric takes from its answers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from string import Formatter
from typing import Any

from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.requests import Answer, Part, Request, Turn
from mm1_hf.evaluation.samples import LETTERS, Sample
from mm1_hf.evaluation.tasks import Style, Task
from mm1_hf.evaluation.templates import IMAGE, Template, fields_of, named


def template_of(task: Task, style: Style | None = None, template: Template | str | None = None) -> Template:
    """
    The template by which a task's prompts are written.

    Args:
        task: the task.
        style: the style; unset, that of the task.
        template: a template, or the name of one, that replaces the task's.

    Raises:
        ValueError: there is no template of this name.
    """
    return named(template or (task.chat if (style or task.style) == "chat" else task.completion))


def prompt_hash(task: Task, style: Style | None = None, template: Template | str | None = None) -> str:
    """
    A hash of everything that decides how prompts are written and where answers end, beside the data themselves.

    Args:
        task: see [`template_of`].
        style: see [`template_of`].
        template: see [`template_of`].
    """
    written = asdict(template_of(task, style, template))
    content = [written, style or task.style, task.kind, task.stop, task.max_new_tokens]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def build_requests(
    task: Task,
    sample: Sample,
    shots: Sequence[Sample] = (),
    *,
    style: Style | None = None,
    template: Template | str | None = None,
    split_last: int | None = None,
) -> tuple[Request, ...]:
    """
    Writes the requests of a sample: one, or where the choice is between beginnings, one for each.

    Args:
        task: the task.
        sample: the sample, which has no `error`.
        shots: the demonstrations in their order. The query comes last.
        style:
            `"completion"` for a text to continue, or `"chat"`, where each demonstration is a user's turn and an
            assistant's. Unset, that of the task.
        template: a template, or the name of one, that replaces the task's.
        split_last:
            number of demonstrations, counted from the last one, whose images are split into tiles; those of the others
            are not (MM1, section 4: mixed resolution). The query's images are. Unset, the image processor's settings
            decide.

    Raises:
        ValueError: the template has fields that the sample lacks, or no place for its images.

    Example:

    ```python
    >>> from mm1_hf.evaluation.prompts import build_requests
    >>> from mm1_hf.evaluation.samples import Sample
    >>> from mm1_hf.evaluation.tasks import load_task

    >>> query = Sample("q", question="Where is it?")
    >>> shot = Sample("s", question="What is it?", answer="cat")
    >>> (request,) = build_requests(load_task("vqav2"), query, [shot], template="question_answer")
    >>> request.prompt
    ('Question: What is it?\\nAnswer: cat\\n\\nQuestion: Where is it?\\nAnswer:',)

    ```
    """
    style = style or task.style
    chosen = template_of(task, style, template)
    whole = None
    if split_last is not None:
        whole = frozenset(range(sum(len(shot.images) for shot in shots[: max(len(shots) - split_last, 0)])))
    continuations = ()
    if task.kind == "likelihood":
        texts = sample.choices or sample.references
        continuations = tuple(_answer(chosen, sample, text) for text in texts)
    write = _chat if style == "chat" else _completion
    if sample.contexts:
        prompts = [write(task, chosen, sample, shots, context) for context in sample.contexts]
        pairs = zip(prompts, continuations, strict=True)
        return tuple(Request(prompt, continuations=(text,), whole=whole) for prompt, text in pairs)
    prompt = write(task, chosen, sample, shots, sample.question)
    stop = task.stop if style == "completion" and not continuations else ()
    return (Request(prompt, task.max_new_tokens, stop, continuations, whole),)


def prediction(
    task: Task,
    sample: Sample,
    answers: Sequence[Answer],
    *,
    style: Style | None = None,
    template: Template | str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """
    Reads what the metric takes from the answers to a sample's requests.

    Args:
        task: the task.
        sample: the sample.
        answers: the answers, in the order of the requests.
        style: see [`build_requests`].
        template: see [`build_requests`].

    Returns:
        The prediction: a text, the log-likelihoods of the choices, or whether each accepted text is what greedy
        decoding gives. And the columns that the metric reads, by their names. Where there is no answer, the prediction
        is empty, which is wrong.
    """
    columns = dict(sample.columns)
    if task.kind != "likelihood":
        return _read_text(template_of(task, style, template), answers[0]), columns
    # Of one that failed, the others tell nothing.
    answered = [] if any(answer.error is not None for answer in answers) else answers
    values = [value for answer in answered for value in answer.log_likelihoods]
    if task.metric == "greedy_match":
        columns["log_likelihoods"] = values
        return [is_greedy for answer in answered for is_greedy in answer.greedy], columns
    return values, columns


def _read_text(template: Template, answer: Answer) -> str:
    text = "" if answer.error is not None else answer.text
    if template.answer_after and template.answer_after in text:
        text = text.rpartition(template.answer_after)[2].strip().removesuffix(".")
    return text.strip()


def _completion(
    task: Task, template: Template, sample: Sample, shots: Sequence[Sample], question: str
) -> tuple[Part, ...]:
    parts: list[Part] = [f"{template.instruction}\n"] if template.instruction else []
    for shot in shots:
        asked = shot.contexts[shot.references] if shot.contexts else shot.question
        parts += [*_query(task, template, shot, asked), _answer(template, shot, shot.answer), template.separator]
    return _joined([*parts, *_query(task, template, sample, question)])


def _chat(task: Task, template: Template, sample: Sample, shots: Sequence[Sample], question: str) -> tuple[Turn, ...]:
    turns = []
    for shot in shots:
        turns.append(Turn("user", _joined(_query(task, template, shot, shot.question))))
        turns.append(Turn("assistant", (_answer(template, shot, shot.answer),)))
    turns.append(Turn("user", _joined(_query(task, template, sample, question))))
    if template.instruction:
        turns[0] = Turn("user", _joined([f"{template.instruction}\n", *turns[0].parts]))
    return tuple(turns)


def _query(task: Task, template: Template, sample: Sample, question: str) -> list[Part]:
    values = _fields(sample) | {"question": question}
    images = list(sample.images)
    fields = fields_of(template.query)
    marks = sum(values[name].count(IMAGE) for name in fields if name in ("question", "options"))
    before = images[: len(images) - marks]
    if before and "image" not in fields:
        raise ValueError(
            f"The template {template.query!r} has no place for the images of the task {task.name}. Write {{image}} where "
            "they stand."
        )
    marked = iter(images[len(before) :])
    parts: list[Part] = []
    for number, line in enumerate(_lines(task, template.query, values, bool(before))):
        parts += ["\n"] if number else []
        for literal, name, _, _ in Formatter().parse(line):
            parts.append(literal)
            if name == "image":
                parts += before
            elif name in ("question", "options"):
                parts += _placed(values[name], marked)
            elif name is not None:
                parts.append(str(values[name]))
    return parts


def _placed(text: str, images: Any) -> list[Part]:
    """A text with the images at its marks."""
    first, *rest = text.split(IMAGE)
    parts: list[Part] = [first]
    for piece in rest:
        parts += [next(images), piece]
    return parts


def _fields(sample: Sample) -> dict[str, Any]:
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, sample.choices, strict=False))
    return {**{name: "" if value is None else value for name, value in sample.columns.items()}, "options": options}


def _lines(task: Task, text: str, values: Mapping[str, Any], has_images: bool) -> list[str]:
    """The lines of a query, without those whose fields are all empty."""
    lines = []
    for line in text.split("\n"):
        fields = fields_of(line)
        _require(task, text, fields, [*values, "image"])
        filled = [has_images if name == "image" else str(values[name]) != "" for name in fields]
        if any(filled) or not fields:
            lines.append(line)
    return lines


def _answer(template: Template, sample: Sample, answer: str) -> str:
    values = _fields(sample) | {"answer": answer}
    text = template.answer
    for name in fields_of(text):
        if name not in values:
            there = ", ".join(sorted(values))
            raise ValueError(
                f"The template's answer {text!r} has the field {name!r}, which sample {sample.id} lacks; it has {there}. "
                "Let the task keep a column under this name, or take another template."
            )
        if values[name] == "":
            text = text.replace(f"{{{name}}} ", "")
    return text.format(**values)


def _require(task: Task, text: str, fields: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(
            f"The template {text!r} has the field {unknown[0]!r}, which the samples of the task {task.name} lack; they have "
            f"{', '.join(sorted(known))}. Let the task keep a column under this name, or take another template."
        )


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with adjacent texts as one, without empty ones."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, ImagePart):
            joined.append(part)
        elif joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part:
            joined.append(part)
    return tuple(joined)
