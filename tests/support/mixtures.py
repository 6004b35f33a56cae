"""Small mixtures whose records can be told apart, and runs over them."""

import io

import datasets
import numpy as np
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.data.examples import ExampleEncoder
from mm1_hf.data.mixture import Mixture, Source


PROCESSOR = tiny_mm1()[1]
PROCESSOR.image_processor.image_splitting = "none"
LENGTH = 48


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (value % 256, value // 256, 0)).save(file, "PNG")
    return file.getvalue()


def records(kind: str, number: int, longest: int = 12) -> list[dict]:
    """Records that can be told apart by their first word; broken ones are made by the tests."""
    draw = np.random.default_rng(len(kind) + number)
    made = []
    for index in range(number):
        words = f"{index:04d}" + "w" * int(draw.integers(1, longest))
        text, image = {"text": words, "image": None}, {"text": None, "image": png(index)}
        parts = {"text": [text], "caption": [image, text], "interleaved": [text, image, {**text, "text": "end"}]}[kind]
        made.append({"kind": kind, "parts": parts})
    return made


def source(kind: str, number: int = 60, weight: float = 1.0, streaming: int = 0, longest: int = 12) -> Source:
    dataset = datasets.Dataset.from_list(records(kind, number, longest))
    if streaming:
        dataset = dataset.to_iterable_dataset(num_shards=streaming)
    return Source(kind, dataset, "documents", weight)


def mixture(*sources: Source, **settings) -> Mixture:
    sources = sources or (
        source("caption", weight=0.45),
        source("interleaved", weight=0.45),
        source("text", weight=0.1),
    )
    settings = {"lanes": 4, "window": 16, **settings}
    return Mixture(sources, ExampleEncoder(PROCESSOR, LENGTH, 4), **settings)


def words(batches: list[dict]) -> list[str]:
    """The four digits that each document begins with."""
    found = []
    for batch in batches:
        for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
            for segment in range(1, int(segments.max()) + 1):
                own = ids[segments == segment]
                text = PROCESSOR.tokenizer.decode(own[own != PROCESSOR.image_token_id], skip_special_tokens=True)
                found.append(text[:4])
    return found
