"""
Demonstrations: which examples stand before a query. The query itself is never one of them.

Which ones are drawn depends on the seed, the trial and the query alone, not on the order of the calls or on the number
of processes.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.data.wall import results_or_reasons
from mm1_hf.evaluation.samples import Sample


How = Literal["random", "fixed", "rices"]
Embed = Callable[[list[ImagePart]], Any]

# Of random examples of the training split, as in OpenFlamingo. The images of a small pool are drawn again and again,
# so that a model can keep what it computed of them.
POOL_SIZE = 2048
_EXAMPLES_AT_ONCE = 64


class Demonstrations:
    """
    Draws demonstrations from a pool of examples.

    Args:
        pool: the examples, such as those of the training split; `None` if all samples bring their own.
        how:
            `"random"`: others for every query. `"fixed"`: the same for all queries of a trial; the query, if it is one
            of them, is replaced. `"rices"`: those whose images are most similar to the query's, the most similar one
            last (retrieval-based in-context example selection); the trial makes no difference.
        seed: seed of the pool and of what is drawn.
        size: largest number of examples in the pool, which are chosen at random; `None` for all.
        embed: for `"rices"`: returns `(images, width)`, an embedding of each of a list of images.

    Raises:
        ValueError: `"rices"` without `embed`.
    """

    def __init__(
        self,
        pool: Sequence[Sample] | None,
        *,
        how: How = "random",
        seed: int = 0,
        size: int | None = POOL_SIZE,
        embed: Embed | None = None,
    ) -> None:
        if how == "rices" and embed is None:
            raise ValueError("Retrieval needs embed, a function that returns an embedding for each image.")
        self.how = how
        self.seed = seed
        self._pool = pool
        self._embed = embed
        count = 0 if pool is None else len(pool)
        places = list(range(count))
        if size is not None and size < count:
            places = sorted(_generator("pool", seed).sample(places, size))
        self._places = places
        self._marks: dict[int, tuple[str, frozenset[str]]] = {}
        self._usable_places: dict[int, bool] = {}
        self._embeddings: tuple[list[int], np.ndarray] | None = None
        self._left_out: Counter[str] = Counter()

    def draw(self, sample: Sample, shots: int, trial: int = 0) -> list[Sample]:
        """
        The demonstrations of a query, in the order in which they stand before it. Of more shots the first are the same
        as of fewer, but for `"rices"`, where the last are.

        Args:
            sample: the query.
            shots: their number. A sample that brings its own may have groups of several that count as one.
            trial: number of the trial, which has draws of its own.

        Raises:
            ValueError: the pool has fewer examples that can be used.
        """
        if shots == 0:
            return []
        query = _mark(sample)
        if sample.pool:
            groups = [group for group in sample.pool if not any(_same(query, _mark(shot)) for shot in group)]
            if len(groups) < shots:
                raise self._too_few(len(groups), shots, sample)
            chosen = self._generator_of(sample, trial).sample(groups, len(groups))[:shots]
            return [shot for group in chosen for shot in group]
        if self._pool is None:
            raise ValueError(f"Sample {sample.id} brings no demonstrations, and there is no pool. Give a pool.")
        found: list[Sample] = []
        for place in self._ranked(sample) if self.how == "rices" else self._shuffled(sample, trial):
            example = self._usable(place)
            if example is not None and not _same(query, self._mark_of(place, example)):
                found.append(example)
                if len(found) == shots:
                    return found[::-1] if self.how == "rices" else found
        raise self._too_few(len(found), shots, sample)

    def describe(self) -> dict[str, Any]:
        """How demonstrations are drawn, from how many examples, and how many could not be used so far, by reason."""
        return {
            "how": self.how,
            "seed": self.seed,
            "pool": len(self._places),
            "pool_source": getattr(self._pool, "source", None),
            "pool_split": getattr(self._pool, "split", None),
            "left_out": dict(self._left_out),
        }

    def _too_few(self, number: int, shots: int, sample: Sample) -> ValueError:
        reasons = "".join(f", {count} {reason}" for reason, count in self._left_out.most_common())
        return ValueError(
            f"{shots} demonstrations were asked for, but for sample {sample.id} there are only {number} that can be used "
            f"(left out: the query itself{reasons}). Ask for fewer shots, or give more examples."
        )

    def _generator_of(self, sample: Sample, trial: int) -> random.Random:
        return _generator("draw", self.seed, trial, *(() if self.how == "fixed" else (sample.id,)))

    def _shuffled(self, sample: Sample, trial: int) -> Iterator[int]:
        """All places of the pool in random order, of which only the first ones are computed."""
        generator = self._generator_of(sample, trial)
        moved: dict[int, int] = {}
        for first in range(len(self._places)):
            drawn = generator.randrange(first, len(self._places))
            yield self._places[moved.get(drawn, drawn)]
            moved[drawn] = moved.get(first, first)

    def _ranked(self, sample: Sample) -> list[int]:
        """All places whose images can be read, the most similar to the query first."""
        if not sample.images:
            raise ValueError(f"Sample {sample.id} has no image, so none is similar to it. Draw at random instead.")
        places, embeddings = self._pool_embeddings()
        (query,) = self._embedded([sample])
        if isinstance(query, Unusable):
            # The answer to such a query is an error whatever its demonstrations are.
            return places
        # Rounded, so that the order of equal images does not depend on the order of additions.
        similarities = np.round(embeddings @ query, 5)
        return [places[index] for index in np.argsort(-similarities, kind="stable")]

    def _pool_embeddings(self) -> tuple[list[int], np.ndarray]:
        if self._embeddings is None:
            places: list[int] = []
            rows: list[np.ndarray] = []
            for start in range(0, len(self._places), _EXAMPLES_AT_ONCE):
                chunk = self._places[start : start + _EXAMPLES_AT_ONCE]
                examples = {place: example for place in chunk if (example := self._usable(place)) and example.images}
                for place, found in zip(examples, self._embedded(list(examples.values())), strict=True):
                    if isinstance(found, Unusable):
                        self._left_out[found.reason] += 1
                    else:
                        places.append(place)
                        rows.append(found)
            self._embeddings = places, np.stack(rows) if rows else np.zeros((0, 1))
        return self._embeddings

    def _embedded(self, samples: list[Sample]) -> list[np.ndarray | Unusable]:
        """The mean of each sample's images, of length 1, or why an image has none."""
        return results_or_reasons(self._means, samples, [sample.id for sample in samples])

    def _means(self, samples: list[Sample]) -> list[np.ndarray]:
        assert self._embed is not None
        rows = np.asarray(self._embed([image for sample in samples for image in sample.images]), np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        ends = np.cumsum([len(sample.images) for sample in samples])
        means = [part.mean(axis=0) for part in np.split(rows, ends[:-1])]
        return [mean / np.linalg.norm(mean) for mean in means]

    def _usable(self, place: int) -> Sample | None:
        assert self._pool is not None
        example = self._pool[place]
        if place not in self._usable_places:
            reason = _fault(example)
            self._usable_places[place] = reason is None
            if reason is not None:
                self._left_out[reason] += 1
        return example if self._usable_places[place] else None

    def _mark_of(self, place: int, example: Sample) -> tuple[str, frozenset[str]]:
        if place not in self._marks:
            self._marks[place] = _mark(example)
        return self._marks[place]


def _generator(*seeds: Any) -> random.Random:
    """A generator that depends on the values, and on nothing else: hashes of Python's strings differ between processes."""
    return random.Random(hashlib.sha256(repr(seeds).encode()).digest())


def _fault(example: Sample) -> str | None:
    """Why an example cannot be a demonstration: the questions before which it stands could not be answered."""
    if example.error is not None:
        return "with an error"
    if not example.answer:
        return "without an answer"
    try:
        for image in example.images:
            if not _is_address(image):
                image.load()
    except Unusable as error:
        return error.reason
    return None


def _mark(sample: Sample) -> tuple[str, frozenset[str]]:
    """By what a sample is recognised: its name, and its images or, without any, its question."""
    if not sample.images:
        # WinoGrande's questions come in pairs that differ only after the blank.
        text = "\0".join([sample.question, *sample.contexts, *(sample.choices if sample.contexts else ())])
        return sample.id, frozenset({hashlib.sha256(text.encode()).hexdigest()})
    return sample.id, frozenset(_digest(image) for image in sample.images)


def _is_address(image: ImagePart) -> bool:
    return isinstance(image.source, str) and image.source.startswith(("http://", "https://"))


def _digest(image: ImagePart) -> str:
    # An address is not downloaded for the comparison.
    if _is_address(image):
        content = str(image.source).encode()
    else:
        try:
            content = image.read()
        except Unusable:
            content = repr(image.source).encode()
    return hashlib.sha256(content).hexdigest()


def _same(one: tuple[str, frozenset[str]], other: tuple[str, frozenset[str]]) -> bool:
    # Samples with several images may share one of them, such as a digit, and still be different questions.
    return one[0] == other[0] or one[1] <= other[1] or other[1] <= one[1]
