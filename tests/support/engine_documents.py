"""Documents on their way through the steps of a corpus, and what steps make of them."""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence

from datatrove.data import Document as EngineDocument
from datatrove.data import Media, MediaType

from mm1_hf.corpus.bridge import PLACE
from mm1_hf.corpus.stages import Stage


def document(id: str, text: str = "", *images: bytes | str) -> EngineDocument:
    """A document with images after its text: bytes, URLs and paths."""
    media = []
    for index, image in enumerate(images):
        medium = Media(str(index), MediaType.IMAGE, "", metadata={PLACE: len(text)})
        if isinstance(image, bytes):
            medium.media_bytes = image
        elif "://" in image or image.startswith("data:"):
            medium.url = image
        else:
            medium.path = image
        media.append(medium)
    return EngineDocument(text, id, media)


def counts(step) -> dict[str, int]:
    """What a step has counted."""
    return {label: int(stats.total) for label, stats in step.stats.stats.items()}


def passed(step, documents: Iterable[EngineDocument], rank: int = 0, world_size: int = 1) -> list[EngineDocument]:
    """The documents that a step passes on."""
    return list(step.run(iter(documents), rank, world_size))


def run_here(stages: Sequence[Stage], tasks: int) -> dict[str, dict[str, int]]:
    """Runs stages one after the other in this process, as an executor would. Returns the counts of their steps by name."""
    found: dict[str, Counter[str]] = {}
    for stage in stages:
        number = stage.tasks or tasks
        for rank in range(number):
            data = None
            steps = copy.deepcopy(list(stage.steps))
            for step in steps:
                data = step.run(data, rank, number)
            for _ in data or ():
                pass
            for step in steps:
                found.setdefault(step.name, Counter()).update(counts(step))
    return {name: dict(counted) for name, counted in found.items()}
