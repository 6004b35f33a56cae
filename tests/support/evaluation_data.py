"""Tiny data sets with the very columns of the published ones, one for each task, written as the Hub's parquet files."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image


Row = dict[str, Any]
# By configuration and split; the empty name is the only configuration.
Tables = dict[tuple[str, str], list[Row]]


def picture(number: int, size: tuple[int, int] = (8, 6)) -> Image.Image:
    """A picture of one colour, another one for every number."""
    return Image.new("RGB", size, (number % 256, number * 7 % 256, number // 256))


def _rows(make: Any, count: int = 3, start: int = 0) -> list[Row]:
    return [make(number) for number in range(start, start + count)]


def _captions(column: str, captions: int, **names: Any) -> Any:
    return lambda n: {
        **{name: kind(n) for name, kind in names.items()},
        column: [f"a thing of colour {n} in version {each}" for each in range(captions)],
    }


def _answers(n: int) -> list[str]:
    return [f"thing{n}"] * 8 + ["other", "another"]


def _vqa(n: int) -> Row:
    return {"image": picture(n), "question": f"What is thing {n}?", "question_id": n, "answers": _answers(n)}


def _vqav2(n: int) -> Row:
    answers = [
        {"answer": answer, "answer_confidence": "yes", "answer_id": each + 1}
        for each, answer in enumerate(_answers(n))
    ]
    kinds = {"question_type": "what is", "answer_type": "other", "multiple_choice_answer": f"thing{n}"}
    return {**_vqa(n), **kinds, "answers": answers, "image_id": n + 1000}


def _arc(n: int) -> Row:
    labels = ["1", "2", "3", "4"] if n % 2 else ["A", "B", "C", "D"]
    choices = {"text": [f"choice {each} of {n}" for each in range(4)], "label": labels}
    return {"id": f"arc{n}", "question": f"Which is {n}?", "choices": choices, "answerKey": labels[n % 4]}


def _hellaswag(n: int) -> Row:
    return {
        "ind": n,
        "activity_label": "Baking",
        "ctx_a": f"A cook [substeps] takes bowl {n}.",
        "ctx_b": "the cook",
        "ctx": "",
        "endings": [f"mixes it {each} times [title] Then rests." for each in range(4)],
        "label": str(n % 4),
    }


def _mcq(n: int) -> Row:
    return {"image": picture(n), "question": f"Which is {n}?", "answer": "ABCD"[n % 4]}


def _mmbench(n: int) -> Row:
    return {
        **_mcq(n),
        "index": str(n),
        "hint": "nan" if n % 2 else "Look at the colour.",
        "A": "one",
        "B": "two",
        "C": "three",
        "D": "nan" if n % 4 != 3 else "four",
        "category": "colour",
        "L2-category": "attribute",
        "source": "own",
        "split": "dev",
        "comment": None,
    }


def _mmmu(n: int) -> Row:
    options = ["<image 2>", "a circle", "a square", "none"] if n != 1 else []
    return {
        "id": f"validation_Art_{n}",
        "question": f"What belongs to <image 1>, number {n}?",
        "options": str(options),
        **{f"image_{each}": picture(10 * n + each) if each <= 2 else None for each in range(1, 8)},
        "answer": "ABCD"[n % 4] if options else "['seven', '7']",
        "question_type": "multiple-choice" if options else "open",
    }


def _mathvista(n: int) -> Row:
    choices = ["5", "6"] if n % 2 else None
    return {
        "pid": str(n),
        "question": f"What is the sum {n}?",
        "image": f"images/{n}.jpg",
        "decoded_image": picture(n),
        "choices": choices,
        "unit": None,
        "precision": None if n % 2 else 1.0,
        "answer": "6" if n % 2 else "1.5",
        "question_type": "multi_choice" if n % 2 else "free_form",
        "answer_type": "text" if n % 2 else "float",
        "metadata": {"split": "testmini"},
        "query": f"Hint: Answer.\nQuestion: What is the sum {n}?",
    }


def _refcoco(n: int) -> Row:
    return {
        "question_id": str(n),
        "image": picture(n, (100, 50)),
        "question": "Please carefully observe the area.",
        "answer": [f"the left thing {n}", f"thing {n}"],
        "segmentation": [1.0, 2.0],
        "bbox": [10.0 + n, 5.0, 40.0, 20.0],
        "iscrowd": 0,
        "file_name": f"{n}.jpg",
    }


def _blink(n: int) -> Row:
    return {
        "idx": f"val_{n}",
        "prompt": f"Which picture is {n}?\nSelect from the following options.\n(A) the first\n(B) the second",
        "question": f"Which picture is {n}?",
        "choices": ["the first", "the second"],
        "answer": f"({'AB'[n % 2]})",
        **{f"image_{each}": picture(10 * n + each) if each <= 2 else None for each in range(1, 5)},
        "sub_task": "Counting",
    }


def _muirbench(n: int) -> Row:
    return {
        "idx": str(n),
        "task": "Counting",
        "image_relation": "Pair",
        "image_type": "Drawing",
        "question": f"<image> Which one is like number {n}?",
        "options": ["<image>", "<image>", "None of them"],
        "answer": "ABC"[n % 3],
        "image_list": [picture(10 * n + each) for each in range(3)],
    }


def _science_qa(n: int) -> Row:
    return {
        "image": picture(n),
        "question": f"Which is {n}?",
        "choices": ["iron", "wood"],
        "answer": n % 2,
        "hint": "" if n % 2 else "The passage.",
        "solution": f"It is {n}.",
    }


def tables_of(task: str) -> Tables:
    """
    The tables of a task of the package.

    Args:
        task: its name.
    """
    name = task.removeprefix("vl_icl_") if task.startswith("vl_icl_") else task
    one = {
        "coco": {
            ("", split): _rows(
                _captions("sentences", 5, image=picture, filename=lambda n: f"COCO_val2014_{n:012}.jpg", imgid=int),
                4,
                first,
            )
            for split, first in (("test", 0), ("train", 10))
        },
        "nocaps": {("", "validation"): _rows(_captions("annotations_captions", 10, image=picture, image_id=int), 4)},
        "textcaps": {
            ("", split): _rows(_captions("caption_str", 5, image=picture, image_id=str), 3, first)
            for split, first in (("val", 0), ("train", 10))
        },
        "vqav2": {
            ("", "validation"): _rows(_vqav2),
            ("full", "train"): _rows(_vqav2, 6, 10),
            ("", "testdev"): [{**row, "answers": None} for row in _rows(_vqav2)],
        },
        "textvqa": {
            ("", split): [{**row, "ocr_tokens": ["stop"]} for row in _rows(_vqa, 3, first)]
            for split, first in (("validation", 0), ("train", 10))
        },
        "vizwiz": {("", "val"): _rows(_vqa, 4)},
        "okvqa": {("", "val2014"): _rows(_vqa, 4)},
        "gqa": {
            (f"{split}_balanced_{kind}", split): rows
            for split, first in (("testdev", 0), ("train", 10))
            for kind, rows in (
                (
                    "instructions",
                    [
                        {"id": str(n), "imageId": f"i{n // 2}", "question": f"What is {n}?", "answer": f"thing{n}"}
                        for n in range(first, first + 4)
                    ],
                ),
                ("images", [{"id": f"i{n}", "image": picture(n)} for n in range(first // 2, first // 2 + 2)]),
            )
        },
        "arc_easy": {("ARC-Easy", "test"): _rows(_arc, 4), ("ARC-Easy", "train"): _rows(_arc, 4, 10)},
        "arc_challenge": {("ARC-Challenge", "test"): _rows(_arc, 4), ("ARC-Challenge", "train"): _rows(_arc, 4, 10)},
        "piqa": {
            ("", split): [
                {"goal": f"Open box {n}", "sol1": "pull the lid", "sol2": "sing", "label": n % 2}
                for n in range(first, first + 3)
            ]
            for split, first in (("validation", 0), ("train", 10))
        },
        "lambada": {("default", "test"): [{"text": f"She opened box {n} and found a cat{n}"} for n in range(3)]},
        "winogrande": {
            ("winogrande_xl", split): [
                {
                    "sentence": f"Ann thanked Bea because _ had helped {n} times.",
                    "option1": "Ann",
                    "option2": "Bea",
                    "answer": str(1 + n % 2),
                }
                for n in range(first, first + 3)
            ]
            for split, first in (("validation", 0), ("train", 10))
        },
        "hellaswag": {("", "validation"): _rows(_hellaswag), ("", "train"): _rows(_hellaswag, 3, 10)},
        "sciq": {
            ("", split): [
                {
                    "question": f"What is {n}?",
                    "support": "" if n % 2 else " Some text.",
                    "distractor1": "a",
                    "distractor2": "b",
                    "distractor3": "c",
                    "correct_answer": f"d{n}",
                }
                for n in range(first, first + 3)
            ]
            for split, first in (("test", 0), ("train", 10))
        },
        "triviaqa": {
            ("rc.nocontext", split): [
                {
                    "question_id": f"t{n}",
                    "question": f"Who is number {n}",
                    "answer": {"aliases": [f"Person {n}", f"P. {n}"], "value": f"Person {n}"},
                }
                for n in range(first, first + 3)
            ]
            for split, first in (("validation", 0), ("train", 10))
        },
        "webqs": {
            ("", split): [
                {
                    "url": f"u{n}",
                    "question": f"where is {n}?",
                    "answers": [f"Place {n} North", f"Place {n}", "Elsewhere"],
                }
                for n in range(first, first + 3)
            ]
            for split, first in (("test", 0), ("train", 10))
        },
        "scienceqa_img": {
            ("ScienceQA-IMG", "test"): _rows(_science_qa),
            ("ScienceQA-IMG", "train"): _rows(_science_qa, 3, 10),
        },
        "mmmu": {("", "validation"): _rows(_mmmu), ("", "dev"): _rows(_mmmu, 3, 10)},
        "mathvista": {("", "testmini"): _rows(_mathvista, 4)},
        "mme": {
            ("", "test"): [
                {
                    "image": picture(n // 2),
                    "question": f"Is it {n}? Please answer yes or no.",
                    "answer": "No" if n % 2 else "Yes",
                    "category": ("existence", "numerical_calculation")[n // 4],
                    "question_id": f"existence/{n // 2}.jpg",
                }
                for n in range(8)
            ]
        },
        "mmbench": {
            ("en", "dev"): [
                *_rows(_mmbench),
                *({**row, "index": str(int(row["index"]) + 1000000)} for row in _rows(_mmbench, 1)),
            ]
        },
        "seed": {
            ("", "test"): [
                {
                    **_mcq(n),
                    "image": [picture(n)] * (8 if n == 1 else 1),
                    **{f"choice_{letter}": f"choice {letter}" for letter in "abcd"},
                    "data_type": "video" if n == 1 else "image",
                    "question_id": str(n),
                }
                for n in range(4)
            ]
        },
        "pope": {
            ("", "test"): [
                {
                    "image": picture(n),
                    "question": f"Is there a thing {n} in the image?",
                    "answer": "no" if n % 2 else "yes",
                    "category": ("adversarial", "popular", "random")[n // 2],
                    "question_id": str(n),
                    "image_source": f"COCO_val2014_{n}",
                }
                for n in range(6)
            ]
        },
        "llava_wild": {
            ("", "train"): [
                {
                    "image": picture(n),
                    "question": f"Describe {n}.",
                    "caption": f"A thing {n}.",
                    "gpt_answer": f"It is {n}.",
                    "category": ("conv", "detail", "complex")[n],
                }
                for n in range(3)
            ]
        },
        "mm_vet": {
            ("", "test"): [
                {
                    "image": picture(n),
                    "question": f"What is {n}?",
                    "answer": f"{n} <AND> red",
                    "capability": "ocr,math",
                    "question_id": f"v1_{n}",
                }
                for n in range(3)
            ]
        },
        "ai2d": {("", "test"): [{**_mcq(n), "options": ["w", "x", "y", "z"], "answer": str(n % 4)} for n in range(4)]},
        "chartqa": {
            ("", "test"): [
                {**_mcq(n), "answer": f"{n + 1}.5", "type": "augmented_test" if n % 2 else "human_test"}
                for n in range(4)
            ]
        },
        "docvqa": {("DocVQA", "validation"): [{**_vqa(n), "questionId": str(n)} for n in range(3)]},
        "infovqa": {("InfographicVQA", "validation"): [{**_vqa(n), "questionId": str(n)} for n in range(3)]},
        "ocrbench": {
            ("", "test"): [
                {
                    "image": picture(n),
                    "question": f"What is written in {n}?",
                    "answer": [f"word{n}"],
                    "dataset": "IIIT5K",
                    "question_type": "Regular Text Recognition",
                }
                for n in range(3)
            ]
        },
        "realworldqa": {
            ("", "test"): [
                {**_mcq(n), "answer": ("A", "left", "3")[n], "question": f"Which? {n}\nA. x\nB. y"} for n in range(3)
            ]
        },
        "refcoco": {("", "testA"): _rows(_refcoco)},
        "refcoco_plus": {("", "testA"): _rows(_refcoco)},
        "refcocog": {("", "test"): _rows(_refcoco)},
        "nlvr2": {
            ("nlvr2", "test"): [
                {
                    "images": [picture(2 * n), picture(2 * n + 1)],
                    "question": f"Are there {n} dogs in both?",
                    "options": ["(A) True", "(B) False"],
                    "answer": "AB"[n % 2] if n else "True",
                    "question_type": "multi-choice",
                }
                for n in range(3)
            ]
        },
        "muirbench": {("", "test"): _rows(_muirbench)},
    }
    if name == "blink":
        # One row for each of the fourteen configurations.
        from mm1_hf.evaluation.tasks import load_task

        return {(config, "val"): _rows(_blink, 1, n) for n, config in enumerate(load_task("blink").configs)}
    return one[name]


def write_data(folder: Path, task: str, form: str = "parquet") -> Path:
    """
    Writes the data of a task, each configuration in a folder of its own.

    Args:
        folder: where to write; a folder with the task's name is made there.
        task: the task's name.
        form: "parquet" for files as the Hub has them, or "disk" for those of `save_to_disk`.

    Returns:
        `folder`.
    """
    own = folder / task
    if task.startswith("vl_icl_"):
        _write_vl_icl(own, task)
    elif task == "flickr30k_entities":
        _write_flickr(own)
    elif task != "easy_vqa":
        for (config, split), rows in tables_of(task).items():
            dataset = Dataset.from_list(rows)
            if form == "disk":
                dataset.save_to_disk(own / config / split)
            else:
                (own / config / "data").mkdir(parents=True, exist_ok=True)
                dataset.to_parquet(own / config / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def _write_flickr(folder: Path) -> None:
    for name in ("Sentences", "Annotations", "flickr30k-images"):
        (folder / name).mkdir(parents=True)
    (folder / "test.txt").write_text("11\n12\n")
    for n in (11, 12):
        sentences = f"[/EN#1/people A man {n}] on [/EN#2/animals two horses] .\n[/EN#3/scene A field] .\n"
        (folder / "Sentences" / f"{n}.txt").write_text(sentences)
        objects = [(1, 0, 0, 20, 30), (2, 10, 10, 30, 40), (2, 50, 5, 90, 45)]
        boxes = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
            "</object>"
            for name, a, b, c, d in objects
        )
        (folder / "Annotations" / f"{n}.xml").write_text(
            f"<annotation><size><width>100</width><height>50</height></size>{boxes}"
            "<object><name>3</name><scene>1</scene></object></annotation>"
        )
        picture(n, (100, 50)).save(folder / "flickr30k-images" / f"{n}.jpg")


_FOLDERS = {
    "clevr_text": "clevr_simple_text",
    "open_mi_text": "open_mi_captioned",
    "operator_induction_text": "math_induction_text",
    "operator_induction_interleaved_text": "math_induction_text_interleaved",
}


def _write_vl_icl(folder: Path, task: str) -> None:
    name = task.removeprefix("vl_icl_")
    kind, is_text = name.removesuffix("_text"), name.endswith("_text")
    inner = _FOLDERS.get(name, name)
    (folder / inner).mkdir(parents=True)

    def entry(n: int, images: int, question: str, answer: Any, **rest: Any) -> Row:
        paths = [f"{inner}/{n}-{each}.png" for each in range(images)]
        for each, path in enumerate(paths):
            picture(10 * n + each).save(folder / path)
        shown = {} if is_text else {"image": paths}
        return {"id": n, **shown, "question": f"{n}: {question}" if is_text else question, "answer": answer, **rest}

    support: Any = {}
    if kind == "open_mi":
        queries = []
        for n in range(3):
            classes = ["dax", "blicket", "perpo"]
            things = {}
            for each, name_ in enumerate(classes):
                shots = [entry(100 * n + 10 * each + k + 50, 1, "", "").get("image", [""])[0] for k in range(2)]
                texts = [f"a thing of kind {each} number {k}." for k in range(2)]
                things[name_] = {"captions": texts} if is_text else {"images": shots}
            queries.append(entry(n, 1, "This is a", classes[n], classes=classes, support=things))
    elif kind == "matching_mi":
        queries = [entry(n, 2, "Are they alike?", ("yes", "no")[n % 2]) for n in range(3)]
        support = [
            {
                "same": entry(10 + n, 2, "Are they alike?", "yes"),
                "diff": entry(20 + n, 2, "Are they alike?", "no"),
            }
            for n in range(3)
        ]
    elif kind.startswith("operator"):
        images = 2 if kind.endswith("interleaved") else 1
        queries = [entry(n, images, "What is the result?", 3 + n, operator="+-x"[n]) for n in range(3)]
        support = [entry(10 + n, images, "What is the result?", [n, n + 1, n + 2]) for n in range(4)]
    else:
        queries = [entry(n, 1, "colour: red", n) for n in range(3)]
        support = [entry(10 + n, 1, "colour: red", n) for n in range(4)]
    (folder / inner / "query.json").write_text(json.dumps(queries))
    (folder / inner / "support.json").write_text(json.dumps(support))
