"""Data that are not in a form which `datasets` reads: each source reads files as they are published."""

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mm1_hf.data.documents import Unusable
from mm1_hf.data.media import local_file
from mm1_hf.data.raw_records import FOLDER, parse_json
from mm1_hf.grounding.regions import Box
from mm1_hf.grounding.text import RegionFormat


Record = dict[str, Any]

_PHRASE = re.compile(r"\[/EN#(\d+)/(\S+) ([^\]]+)\]")
# Of a file of annotations. Those of the data are a few kB; a larger one is not a list of boxes.
_MOST_BYTES = 1 << 20
_OPERATORS = ("+", "-", "x")


def _easy_vqa(folder: Path | None, config: str, split: str) -> list[Record]:
    """easy-VQA: the installed package, or a folder with its `data/`."""
    if folder is None:
        spec = find_spec("easy_vqa")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError("The data are in the package easy-vqa. Run: pip install --no-deps easy-vqa==1.0")
        folder = Path(next(iter(spec.submodule_search_locations)))
    place = _existing(folder / "data" / split, "the folder data/ of the package easy-vqa==1.0")
    rows = _json(place / "questions.json", "the folder data/ of the package easy-vqa==1.0")
    return [
        {
            "id": f"{split}-{index}",
            "image": f"images/{image}.png",
            "question": question,
            "answer": answer,
            "kind": "yes/no" if answer in ("yes", "no") else "open",
            FOLDER: str(place),
        }
        for index, (question, answer, image) in enumerate(rows)
    ]


def _flickr30k_entities(folder: Path | None, config: str, split: str) -> list[Record]:
    """Flickr30k Entities: a record for each phrase with boxes. All boxes of a phrase are merged into one, as in Ferret."""
    what = (
        "`Sentences/`, `Annotations/` and the list of the split (`test.txt`) from "
        "github.com/BryanPlummer/flickr30k_entities, and the pictures, which are given out on request, as "
        "`flickr30k-images/`"
    )
    if folder is None:
        raise ValueError(f"They are not on the Hub. Give a folder (data) with {what}")
    names = _existing(folder / f"{split}.txt", what).read_text(encoding="utf-8").split()
    return [row for name in names for row in _phrases(folder, name, what)]


def _phrases(folder: Path, name: str, what: str) -> list[Record]:
    sentences = _existing(_inside(folder, f"Sentences/{name}.txt"), what).read_text(encoding="utf-8").splitlines()
    file = _existing(_inside(folder, f"Annotations/{name}.xml"), what)
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file} is larger than {_MOST_BYTES} bytes. Give the published file")
    root = ElementTree.fromstring(file.read_bytes())
    width, height = (int(root.findtext(f"size/{side}", "0")) for side in ("width", "height"))
    boxes: dict[str, list[Box]] = {}
    for item in root.iter("object"):
        corners = [item.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
        if all(corners):
            for identifier in item.findall("name"):
                boxes.setdefault(identifier.text or "", []).append(Box(*(float(corner or 0) for corner in corners)))
    rows = []
    for number, sentence in enumerate(sentences):
        for place, (identifier, kind, phrase) in enumerate(_PHRASE.findall(sentence)):
            if identifier not in boxes:
                continue
            box = _merged(boxes[identifier])
            rows.append(
                {
                    "id": f"{name}-{number}-{place}",
                    "image": f"flickr30k-images/{name}.jpg",
                    "phrase": phrase,
                    "kind": kind.split("/")[0],
                    "boxes": [list(box)],
                    "spoken": RegionFormat().write(box, height=height, width=width),
                    "height": height,
                    "width": width,
                    FOLDER: str(folder),
                }
            )
    return rows


def _merged(boxes: list[Box]) -> Box:
    return Box(
        min(box.x1 for box in boxes),
        min(box.y1 for box in boxes),
        max(box.x2 for box in boxes),
        max(box.y2 for box in boxes),
    )


def _vl_icl(folder: Path | None, config: str, split: str) -> list[Record]:
    """VL-ICL: the queries of a task, each with the demonstrations among which its own are drawn."""
    what = (
        "the data set ys-zong/VL-ICL of the Hub, whose archives have to be unpacked: hf download ys-zong/VL-ICL --repo-type "
        "dataset --local-dir FOLDER, then run its unzip.sh there"
    )
    if folder is None:
        raise ValueError(f"They have to be on this machine. Give a folder (data) with {what}")
    queries = _json(folder / config / "query.json", what)
    support = _json(folder / config / "support.json", what)
    return [
        {
            "id": str(query.get("id", index)),
            "images": _paths(query),
            "question": query["question"],
            "answer": str(query["answer"]),
            "pool": _pool(query, support, str(query.get("id", index))),
            FOLDER: str(folder),
        }
        for index, query in enumerate(queries)
    ]


def _paths(entry: Mapping[str, Any]) -> list[str]:
    images = entry.get("image") or []
    return [images] if isinstance(images, str) else list(images)


def _pool(query: Mapping[str, Any], support: Any, name: str) -> list[list[Record]]:
    """
    The demonstrations of a query, in groups that are drawn as one shot: a made-up name comes with an example of
    another one, and a pair of equal images with a pair of unequal ones.
    """
    if "classes" in query and "support" in query:
        return _named_things(query, name)
    if isinstance(support, list) and support and "same" in support[0]:
        return [[_shot(entry["same"]), _shot(entry["diff"])] for entry in support]
    if "operator" in query:
        index = _OPERATORS.index(query["operator"])
        return [[_shot({**entry, "answer": entry["answer"][index]})] for entry in support]
    return [[_shot(entry)] for entry in support]


def _named_things(query: Mapping[str, Any], name: str) -> list[list[Record]]:
    # The other name and the order stay the same for all shots of a query: otherwise they would tell nothing.
    choice = random.Random(hashlib.sha256(name.encode()).digest())
    other = choice.choice([each for each in query["classes"] if each != query["answer"]])
    order = choice.sample([query["answer"], other], 2)
    things = [query["support"][each] for each in order]
    groups = zip(*(thing.get("images") or thing["captions"] for thing in things), strict=False)
    if "images" in things[0]:
        written = [[{"image": item, "question": "This is a"} for item in group] for group in groups]
    else:
        # The twin without pictures has descriptions in their place.
        written = [[{"question": f"{item} This is a"} for item in group] for group in groups]
    return [
        [_shot({**entry, "answer": answer}) for entry, answer in zip(group, order, strict=True)] for group in written
    ]


def _shot(entry: Mapping[str, Any]) -> Record:
    return {"images": _paths(entry), "question": entry["question"], "answer": str(entry["answer"])}


def _json(path: Path, what: str) -> Any:
    text = _existing(path, what).read_bytes()
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Give {what}") from error


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        raise ValueError(f"There is no {path}. Give a folder (data) with {what}")
    return path


def _inside(folder: Path, name: str) -> Path:
    """A file that a list names, which must be in the folder of the data."""
    try:
        return Path(local_file(name, str(folder)))
    except Unusable as error:
        raise ValueError(f"The data name a file outside of their folder: {error}. Give the published lists") from error


SOURCES: dict[str, Callable[[Path | None, str, str], list[Record]]] = {
    "easy_vqa": _easy_vqa,
    "flickr30k_entities": _flickr30k_entities,
    "vl_icl": _vl_icl,
}
