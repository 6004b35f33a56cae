"""
Records of benchmarks whose columns cannot be read as they are. Each function returns the columns that it adds to a
record or replaces.
"""

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mm1_hf.data.documents import Unusable
from mm1_hf.data.media import record_image
from mm1_hf.data.raw_records import ERROR, WRONG_LAYOUT
from mm1_hf.evaluation.templates import IMAGE
from mm1_hf.grounding.regions import Box
from mm1_hf.grounding.text import RegionFormat


Record = Mapping[str, Any]

_SHORT = "Answer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_MMMU_IMAGE = re.compile(r"<image (\d+)>")
_ABSENT = ("", "nan", "n/a")


def is_absent(value: Any) -> bool:
    """
    Whether a cell of a table is empty: several benchmarks write the text "nan" or "N/A" there.

    Args:
        value: the cell.
    """
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip().lower() in _ABSENT)


def _arc(record: Record, name: str) -> dict[str, Any]:
    labels = record["choices"]["label"]
    if record["answerKey"] not in labels:
        raise Unusable(WRONG_LAYOUT, f"{name}: the answer is {record['answerKey']!r}, but the labels are {labels}")
    return {"answer_index": labels.index(record["answerKey"])}


def _sciq(record: Record, name: str) -> dict[str, Any]:
    # An empty support leaves its line break, as in lm-evaluation-harness.
    return {"prompt": f"{record['support'].lstrip()}\nQuestion: {record['question']}", "gold": 3}


def _hellaswag(record: Record, name: str) -> dict[str, Any]:
    context = f"{record['ctx_a']} {record['ctx_b'].capitalize()}"
    return {
        "query": _wikihow(f"{record['activity_label']}: {context}"),
        "choices": [_wikihow(ending) for ending in record["endings"]],
    }


def _wikihow(text: str) -> str:
    """Removes the marks of WikiHow's pages, as lm-evaluation-harness does."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _winogrande(record: Record, name: str) -> dict[str, Any]:
    before, blank, after = record["sentence"].partition("_")
    if not blank or record["answer"] not in ("1", "2", ""):
        raise Unusable(WRONG_LAYOUT, f"{name}: the sentence has no _, or the answer is {record['answer']!r}")
    return {
        "contexts": [before + record["option1"], before + record["option2"]],
        "choices": [after.strip()] * 2,
        "gold": int(record["answer"]) - 1 if record["answer"] else None,
    }


def _lambada(record: Record, name: str) -> dict[str, Any]:
    context, _, word = record["text"].rpartition(" ")
    return {"context": context, "word": [word]}


def _web_questions(record: Record, name: str) -> dict[str, Any]:
    """Of the accepted answers those of which no other one is the beginning: who gives that one gives it first."""
    kept: list[str] = []
    for answer in sorted(set(record["answers"])):
        if not kept or not answer.startswith(kept[-1]):
            kept.append(answer)
    return {"answers": kept}


def _science_qa(record: Record, name: str) -> dict[str, Any]:
    return {"hint": "" if is_absent(record["hint"]) else f"Context: {record['hint']}\n"}


def _mmbench(record: Record, name: str) -> dict[str, Any]:
    return {
        "hint": "" if is_absent(record["hint"]) else f"{record['hint']}\n",
        "answer": None if is_absent(record.get("answer")) else record["answer"],
        "index": int(record["index"]),
    }


def _mmmu(record: Record, name: str) -> dict[str, Any]:
    """The options are the text of a Python list, and marks with numbers say where which image stands."""
    options = [str(option) for option in _python_list(record["options"], name)]
    numbers = [int(number) for text in [record["question"], *options] for number in _MMMU_IMAGE.findall(text)]
    every = [number for number in range(1, 8) if not is_absent(record.get(f"image_{number}"))]
    if missing := sorted(set(numbers) - set(every)):
        raise Unusable("no image", f"{name}: the text refers to image {missing[0]}, which the record lacks")
    order = [number for number in every if number not in numbers] + numbers
    answer = record["answer"]
    if record["question_type"] == "open" and isinstance(answer, str) and answer.startswith("["):
        answer = [str(each) for each in _python_list(answer, name)]
    return {
        "images": [record[f"image_{number}"] for number in order],
        "question": _MMMU_IMAGE.sub(IMAGE, record["question"]),
        "options": [_MMMU_IMAGE.sub(IMAGE, option) for option in options],
        "answer": None if answer == "?" else answer,
        "request": _LETTER if options else _SHORT,
    }


def _python_list(text: Any, name: str) -> list[Any]:
    if isinstance(text, list):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise Unusable(WRONG_LAYOUT, f"{name}: {text!r:.100} is not the text of a list: {error}") from error
    if not isinstance(value, list):
        raise Unusable(WRONG_LAYOUT, f"{name}: {text!r:.100} is not the text of a list")
    return value


def _mathvista(record: Record, name: str) -> dict[str, Any]:
    # Their own request says "the final value", "the correct option letter" and so on; it is part of the query.
    return {
        "choices": record["choices"] or [],
        "answer": None if is_absent(record.get("answer")) else record["answer"],
    }


def _blink(record: Record, name: str) -> dict[str, Any]:
    return {"answer": None if record["answer"] == "hidden" else record["answer"]}


def _nlvr2(record: Record, name: str) -> dict[str, Any]:
    """Mantis's form has a question with options, the raw form a sentence that is true or false."""
    if "sentence" in record:
        return {
            "images": [record["left_image"], record["right_image"]],
            "question": f"Is the statement true of the two images? {record['sentence']}",
            "options": ["True", "False"],
            "answer": "A" if str(record["label"]).lower() in ("true", "1") else "B",
        }
    options = [re.sub(r"^\s*\(?[A-Z][).:]\s*", "", option) for option in record["options"]]
    answer = record["answer"].strip()
    lowered = [option.lower() for option in options]
    if answer.lower() in lowered:
        answer = "ABCDEFGH"[lowered.index(answer.lower())]
    return {"options": options, "answer": answer}


def _refcoco(record: Record, name: str) -> dict[str, Any]:
    """The box `[x, y, width, height]` of an object in pixels, as corners and as the text of an answer."""
    try:
        height, width = record_image(record["image"], record, name).size()
    except Unusable as error:
        # The answer to an image that cannot be read is empty, so that it scores nothing, whatever the image's size.
        return {"height": 1, "width": 1, "boxes": [_corners(record["bbox"])], "spoken": "", ERROR: str(error)}
    box = _corners(record["bbox"])
    return {
        "height": height,
        "width": width,
        "boxes": [box],
        "spoken": RegionFormat().write(Box(*box), height=height, width=width),
    }


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


PREPARERS: dict[str, Callable[[Record, str], dict[str, Any]]] = {
    "arc": _arc,
    "blink": _blink,
    "hellaswag": _hellaswag,
    "lambada": _lambada,
    "mathvista": _mathvista,
    "mmbench": _mmbench,
    "mmmu": _mmmu,
    "nlvr2": _nlvr2,
    "refcoco": _refcoco,
    "science_qa": _science_qa,
    "sciq": _sciq,
    "web_questions": _web_questions,
    "winogrande": _winogrande,
}
