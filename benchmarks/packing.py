"""
Measures how full packed rows of 4096 positions are, and how long packing takes: MM1's packing compared with padding,
and with TRL's packing strategies for text.

    python benchmarks/packing.py --output benchmarks/results/packing.json

The lengths are random numbers, not those of real data. Captions follow CC12M (20 words on average, with a long tail),
after one image of 144 tokens; documents follow OBELICS (815 text tokens and 2.5 images on average); text has a longer
tail.
"""

import argparse
import json
import platform
import random
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset

from mm1_hf import MM1ImageProcessor, MM1Processor
from mm1_hf.data.documents import Document
from mm1_hf.data.examples import ExampleEncoder
from mm1_hf.data.packing import pack
from mm1_hf.quickstart.embedded_parts import load_decoder


LENGTH, IMAGE_TOKENS, MAX_IMAGES = 4096, 144, 16
# Number of records that a mixture packs at once.
WINDOW = 512
RECORDS = 512 * 20
SENTENCE = "a small brown dog that runs along the beach with a stick in its mouth on a sunny day"


def captions(draw: np.random.Generator) -> tuple[list[int], list[int]]:
    """Lengths and numbers of images of pairs, with 26 tokens of text on average and an end-of-text token."""
    text = draw.lognormal(np.log(26) - 0.3, 0.77, RECORDS).clip(4, 512).astype(int)
    return (IMAGE_TOKENS + text + 1).tolist(), [1] * RECORDS


def interleaved(draw: np.random.Generator) -> tuple[list[int], list[int]]:
    """Lengths and numbers of images of whole documents, before documents longer than a row are cut."""
    text = draw.lognormal(np.log(815) - 0.5, 1.0, RECORDS).clip(32, 30_000).astype(int)
    images = draw.geometric(1 / 2.5, RECORDS).clip(1, 30)
    return (text + IMAGE_TOKENS * images + 1).tolist(), images.tolist()


def texts(draw: np.random.Generator) -> tuple[list[int], list[int]]:
    """Lengths and numbers of images (0) of text documents."""
    return draw.lognormal(np.log(900) - 0.72, 1.2, RECORDS).clip(16, 100_000).astype(int).tolist(), [0] * RECORDS


def cut(lengths: list[int], images: list[int], max_images: int | None) -> Iterator[tuple[int, int]]:
    """Cuts documents into pieces that fit a row, with their images spread evenly over the pieces."""
    for length, number in zip(lengths, images, strict=True):
        limit = number if max_images is None else max_images
        pieces = max(-(-length // LENGTH), -(-number // max(limit, 1)), 1)
        for piece in range(pieces):
            share = slice(piece, None, pieces)
            yield len(range(length)[share]), len(range(number)[share])


def ours(items: list[tuple[int, int]], max_images: int | None) -> dict[str, float]:
    """Packs one window after the other, as a mixture does."""
    rows = used = 0
    waiting: list[tuple[int, int]] = []
    start = time.process_time()
    for begin in range(0, len(items), WINDOW):
        pool = [*waiting, *items[begin : begin + WINDOW]]
        packing = pack(*zip(*pool, strict=True), LENGTH, max_images, due=len(waiting))
        rows += len(packing.rows)
        used += sum(pool[item][0] for row in packing.rows for item in row)
        waiting = [pool[item] for item in packing.left]
    seconds = time.process_time() - start
    images, positions = sum(number for _, number in items), sum(length for length, _ in items)
    # Every packing needs at least as many rows as the positions fill, and as the images fill.
    fewest = max(positions / LENGTH, images / max_images if max_images else 0)
    return {
        "used": used / (rows * LENGTH),
        "reachable": positions / (fewest * LENGTH),
        "microseconds_per_item": 1e6 * seconds / len(items),
    }


def padded(items: list[tuple[int, int]], batch: int = 8) -> float:
    """Share of positions that are not padding in batches with one item per row, padded to the longest item."""
    draw = random.Random(0)
    lengths = [length for length, _ in draw.sample(items, len(items))]
    groups = [lengths[begin : begin + batch] for begin in range(0, len(lengths), batch)]
    return sum(lengths) / sum(len(group) * max(group) for group in groups)


def trl(items: list[tuple[int, int]], strategy: str) -> dict[str, float]:
    """Packs the items with TRL, which knows only their lengths, not their images."""
    rows = datasets.Dataset.from_list([{"input_ids": [1] * length} for length, _ in items])
    start = time.process_time()
    packed = pack_dataset(rows, LENGTH, strategy, map_kwargs={"load_from_cache_file": False})
    seconds = time.process_time() - start
    used = sum(len(row) for row in packed["input_ids"])
    return {
        "used": used / (len(packed) * LENGTH),
        "kept": used / sum(length for length, _ in items),
        "microseconds_per_item": 1e6 * seconds / len(items),
    }


def tokenizing(lengths: list[int]) -> float:
    """Mean time in microseconds to make an example of a document whose text has one of these lengths in tokens."""
    _, tokenizer = load_decoder()
    words = SENTENCE.split()
    draw = random.Random(0)
    documents = [
        Document("text", (" ".join(draw.choices(words, k=max(int(length / 1.05), 1))),), "drawn") for length in lengths
    ]
    encoder = ExampleEncoder(_processor(tokenizer), LENGTH)
    encoder.encode(documents[:WINDOW])
    start = time.process_time()
    for begin in range(0, len(documents), WINDOW):
        encoder.encode(documents[begin : begin + WINDOW])
    return 1e6 * (time.process_time() - start) / len(documents)


def _processor(tokenizer: PreTrainedTokenizerBase) -> MM1Processor:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return MM1Processor(MM1ImageProcessor(image_splitting="none"), tokenizer)


def _hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    draw = np.random.default_rng(0)
    rows = []
    for name, source in tqdm({"captions": captions, "interleaved": interleaved, "text": texts}.items()):
        lengths, images = source(draw)
        for max_images in (MAX_IMAGES, None) if any(images) else (None,):
            items = list(cut(lengths, images, max_images))
            row = {"source": name, "max_images": max_images, "items": len(items), "ours": ours(items, max_images)}
            row["padded"] = {"used": padded(items)}
            if not any(images):
                # TRL gets whole documents: its strategies differ in what they do with documents longer than a row.
                whole = list(zip(lengths, images, strict=True))
                row |= {f"TRL {strategy}": trl(whole, strategy) for strategy in ("bfd", "bfd_split", "wrapped")}
            text = [length - IMAGE_TOKENS * number for length, number in items][: 8 * WINDOW]
            row["ours"]["share_of_tokenizing"] = row["ours"]["microseconds_per_item"] / tokenizing(text)
            rows.append(row)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "what": f"rows of {LENGTH} positions from windows of {WINDOW} records, CPU time of one process",
        "used": "share of the rows' positions that are not padding",
        "reachable": "the largest share that is possible with the limit on images per row",
        "kept": "share of the tokens that are kept in rows; all of them if not given",
        "share_of_tokenizing": "time of packing divided by the time of making examples of the text, without images",
        "python": platform.python_version(),
        **{package: version(package) for package in ("mm1_hf", "trl", "datasets", "tokenizers", "numpy")},
        "hardware": _hardware(),
        "commit": commit,
        "results": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(row["source"], f"at most {row['max_images']} images" if row["max_images"] else "")
        for name, figures in row.items():
            if isinstance(figures, dict):
                print(f"    {name:<16}", {figure: round(value, 4) for figure, value in figures.items()})


if __name__ == "__main__":
    main()
