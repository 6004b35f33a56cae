"""
Measures the three passes that drop images which repeat in a data set: time, memory and disk, and whether they drop
exactly what a count of all images at once says. A `Counter` of Python, which holds everything in memory, counts a
tenth of the images for comparison.

    python -m benchmarks.image_repeats --output benchmarks/results/image_repeats.json

The pages are made up: 10 images each, 70 % of which are on one page only; the others are drawn from a pool with a long
tail, so that some are on a large part of all pages. Only the addresses are counted; the hashes of the files take the
same path.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datatrove.data import Document, Media, MediaType

from benchmarks.measuring import commit, hardware
from mm1_hf.corpus.bridge import PLACE
from mm1_hf.corpus.image_steps import address_key, address_keys
from mm1_hf.corpus.repeats import CountHashes, DropRepeatedImages, FindRepeats


IMAGES, PER_PAGE, TASKS = 10_000_000, 10, 10
SHARED, POOL, TAIL = 0.3, 2_000_000, 1.2
LIMIT = 10


def draw(task: int, pages: int) -> np.ndarray:
    """The images of a task's pages, `(pages, PER_PAGE)`, as numbers: those of the pool, and above them those of one page."""
    rng = np.random.default_rng(task)
    own = POOL + task * pages * PER_PAGE + np.arange(pages * PER_PAGE).reshape(pages, PER_PAGE)
    shared = np.minimum(rng.zipf(TAIL, own.shape), POOL) - 1
    return np.where(rng.random(own.shape) < SHARED, shared, own)


def made_pages(task: int, pages: int) -> Iterator[Document]:
    for number, images in enumerate(draw(task, pages).tolist()):
        media = [
            Media("", MediaType.IMAGE, f"https://images.example/{image}.jpg", metadata={PLACE: 0}) for image in images
        ]
        yield Document("", f"{task}/{number}", media)


def exact_counts(pages: int) -> tuple[int, int]:
    """How many images are on more than `LIMIT` pages, and how often they are shown in all, counted at once."""
    found = np.concatenate([draw(task, pages) for task in range(TASKS)])
    ordered = np.sort(found, axis=1)
    first = np.concatenate([np.ones((len(found), 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    on_pages = np.bincount(ordered[first])
    return int((on_pages > LIMIT).sum()), int((on_pages[found] > LIMIT).sum())


def measured(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Calls a function in a process of its own. Memory is what the process takes beyond its start."""
    receiving, sending = multiprocessing.Pipe(duplex=False)

    def call() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.perf_counter()
        result = function(*arguments)
        seconds, processor = time.perf_counter() - begin, time.process_time()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        sending.send(
            {"seconds": seconds, "processor_seconds": processor, "peak_bytes": memory * 1024, "result": result}
        )

    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    # Otherwise a process that dies would be waited for without an end.
    sending.close()
    found = receiving.recv()
    process.join()
    return found


def run_tasks(step: Callable[[], Any], pages: int | None) -> dict[str, int]:
    """Runs all tasks of a step one after the other. Returns what it has counted."""
    counted: Counter[str] = Counter()
    for task in range(TASKS):
        made = step()
        for _ in made.run(iter(()) if pages is None else made_pages(task, pages), task, TASKS):
            pass
        counted.update({label: int(stats.total) for label, stats in made.stats.stats.items()})
    return dict(counted)


def counter_of_python(pages: int) -> dict[str, int]:
    counter: Counter[bytes] = Counter()
    for page in made_pages(0, pages):
        counter.update(address_keys(page))
    return {"different hashes": len(counter)}


def plain_pages(pages: int) -> dict[str, int]:
    """What making the pages takes, which the passes over them include."""
    return {"images": sum(len(page.media) for task in range(TASKS) for page in made_pages(task, pages))}


def disk(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"number of images (default: {IMAGES:,})")
    parser.add_argument("--folder", help="where the files between the passes go (default: the temporary folder)")
    options = parser.parse_args(arguments)
    pages = options.images // PER_PAGE // TASKS
    if pages < 1:
        parser.error(f"--images must be at least {PER_PAGE * TASKS}")

    load = os.getloadavg()[0]
    repeated, shown = exact_counts(pages)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        runs, repeats = os.path.join(folder, "runs"), os.path.join(folder, "repeats")
        passes = {"pages alone": measured(plain_pages, pages)}
        passes["count hashes"] = measured(run_tasks, lambda: CountHashes(runs, address_keys), pages)
        passes["find repeats"] = measured(run_tasks, lambda: FindRepeats(runs, repeats, LIMIT), None)
        passes["drop images"] = measured(run_tasks, lambda: DropRepeatedImages(repeats, address_key), pages)
        files = {"runs": disk(runs), "repeats": disk(repeats)}
        rival = measured(counter_of_python, pages)
    found = passes["find repeats"]["result"]["repeated hashes"]
    dropped = passes["drop images"]["result"].get("image dropped: repeated in the data set", 0)
    if (found, dropped) != (repeated, shown):
        raise ValueError(
            f"The passes found {found} repeated images and dropped {dropped}; a count at once says {repeated} and {shown}."
        )
    images = pages * PER_PAGE * TASKS
    ours = passes["count hashes"]["processor_seconds"] + passes["find repeats"]["processor_seconds"]
    result = {
        "what": "images that repeat in a data set, found and dropped in three passes with files between them",
        "hardware": {**hardware(torch.device("cpu")), "load_before": load},
        "python": platform.python_version(),
        "numpy": np.__version__,
        "datatrove": version("datatrove"),
        "commit": commit(),
        "images": images,
        "pages": pages * TASKS,
        "tasks": TASKS,
        "limit": LIMIT,
        "different_images": passes["find repeats"]["result"]["different hashes"],
        "repeated_images": found,
        "images_dropped": dropped,
        "equal_to_a_count_at_once": True,
        "passes": passes,
        "disk_bytes": files,
        "counter_of_python": {"images": images // TASKS, **rival},
        "summary": {
            "counted_images_per_processor_second": round(images / ours),
            "peak_bytes": max(each["peak_bytes"] for each in passes.values()),
            "disk_bytes_per_image": round(sum(files.values()) / images, 2),
            "counter_bytes_per_different_image": round(rival["peak_bytes"] / rival["result"]["different hashes"], 1),
        },
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
