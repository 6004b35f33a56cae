"""Pairs to write captions of, and servers that write them."""

import json
from pathlib import Path
from typing import Any

from caption_server import Reply, prompt_of, said
from datatrove.data import Document as EngineDocument
from datatrove.data import Media, MediaType
from mixtures import png


def pair(index: int, alt_text: str | None = None) -> EngineDocument:
    """A pair on its way through the steps."""
    text = f"alt text {index}" if alt_text is None else alt_text
    medium = Media("0", MediaType.IMAGE, "", media_bytes=png(index), metadata={"place": 0})
    return EngineDocument(text, f"pair-{index}", [medium], {"kind": "caption", "characters": len(text)})


def write_pairs(folder: Path, number: int, files: int = 2) -> Path:
    """JSON lines of pairs whose alt texts hold their number, with the images beside them."""
    folder.mkdir(parents=True)
    lines: list[list[str]] = [[] for _ in range(files)]
    for index in range(number):
        (folder / f"{index}.png").write_bytes(png(index))
        record = {"image": f"{index}.png", "caption": f"Photo {index} of a small village in France"}
        lines[index % files].append(json.dumps(record))
    for file, own in enumerate(lines):
        (folder / f"{file}.jsonl").write_text("\n".join(own) + "\n", encoding="utf-8")
    return folder


def captioner(request: dict[str, Any]) -> Reply:
    """Describes an image by its colour, which names the pair."""
    if prompt_of(request) == "Hello":
        return said("Hi.")
    image, _ = request["messages"][0]["content"]
    return said(f"A wide view of a small village with {len(image['image_url']['url']) % 7} houses and a church.")


def fuser(request: dict[str, Any]) -> Reply:
    """Joins both texts."""
    if prompt_of(request) == "Hello":
        return said("Hi.")
    first, second = (
        line.partition(": ")[2] for line in prompt_of(request).splitlines() if line.startswith(("First:", "Second:"))
    )
    return said(f'Caption: "{first}, {second[0].lower()}{second[1:]}"')
