"""A mixture of sources as an endless stream of packed batches that can be left and taken up again anywhere."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import datasets
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mm1_hf.data.documents import Document, Drops, Unusable
from mm1_hf.data.examples import Example, ExampleEncoder
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.packing import build_row, pack
from mm1_hf.data.records import Records, open_records


Unit = Literal["rows", "documents", "tokens"]

# What a batch carries beside the model's inputs; [`MM1Trainer`] takes both out.
SOURCES_KEY = "sources"
STATE_KEY = "mixture_state"


@dataclass(frozen=True)
class Source:
    """
    Args:
        name: for logs and messages.
        dataset: its records, at hand or streamed; images not decoded, as [`mm1_hf.data.readers.read`] leaves them.
        layout: what its records look like, a name in [`mm1_hf.data.layouts.LAYOUTS`].
        weight: its share of the mixture, relative to the others'.
    """

    name: str
    dataset: datasets.Dataset | datasets.IterableDataset
    layout: str
    weight: float


class Mixture(IterableDataset):
    """
    Packed batches without an end from several sources (MM1, section 3.3: every row is from one source, 45 % interleaved
    documents, 45 % caption pairs and 10 % text).

    The next row is always from the source that is furthest behind its weight, so the shares hold from the start. Each
    source begins a new pass, in another order, when it ends.

    The stream is made of `lanes` that each read, pack and mix for themselves; batch `i` of a rank comes from lane
    `i % lanes`. Data workers share the lanes out, so the batches do not depend on how many workers there are, as long as
    their number divides that of the lanes.

    A record that cannot become a document, and an example whose image turns out to be broken, is left out, counted and
    reported; too many stop the run.

    Args:
        sources: with positive weights and different names.
        encoder: makes examples; its `sequence_length` and `max_images` are the rows'.
        unit: what a weight counts: rows, documents or tokens (positions that are not padding).
        seed: of every order.
        lanes: see above.
        window: records of a source that a lane packs together. More fill rows better, and take more memory: their text
            as tokens and their images' files.
        max_dropped_share: share of a source's records that may be unusable.

    Raises:
        ValueError: no source, one without records, two of one name, an unknown layout or unit, or a weight that is not
            positive.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: ExampleEncoder,
        *,
        unit: Unit = "rows",
        seed: int = 0,
        lanes: int = 8,
        window: int = 512,
        max_dropped_share: float = 0.05,
    ):
        if not sources:
            raise ValueError("A mixture needs at least one source.")
        for source in sources:
            _check(source)
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            raise ValueError(f"Two sources of the mixture have the same name: {', '.join(sorted(names))}.")
        if unit not in get_args(Unit):
            raise ValueError(f"There is no unit {unit!r} for weights; choose one of {', '.join(get_args(Unit))}.")
        self.sources, self.encoder, self.unit = tuple(sources), encoder, unit
        self.seed, self.lanes, self.window, self.max_dropped_share = seed, lanes, window, max_dropped_share
        self.rank, self.world_size, self.rows_per_batch = 0, 1, 1
        self._state: dict[str, Any] = {"batches": 0, "lanes": {}}

    def split(self, rank: int, world_size: int, rows_per_batch: int) -> None:
        """
        Says whose batches these are. Ranks that share one batch, as those of a tensor-parallel group, count as one.

        Args:
            rank: this one's number among those with data of their own.
            world_size: how many they are.
            rows_per_batch: of one batch of this rank.
        """
        self.rank, self.world_size, self.rows_per_batch = rank, world_size, rows_per_batch

    @property
    def source_names(self) -> list[str]:
        """The sources' names, by the numbers in a batch's `sources`."""
        return [source.name for source in self.sources]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """
        Batches from the place of the state on: `input_ids`, `labels` and `segment_ids` `(rows, sequence)`, `pixel_values`
        `(tiles, 3, tile, tile)` if there are images, `sources` `(rows,)` and, as JSON, the state once it is consumed.

        Raises:
            ValueError: the number of data workers does not divide that of the lanes, or too much of a source is unusable.
        """
        worker = get_worker_info()
        number, first = (1, 0) if worker is None else (worker.num_workers, worker.id)
        if self.lanes % number:
            raise ValueError(
                f"{number} data workers cannot share {self.lanes} lanes out evenly. Set dataloader_num_workers to a "
                f"divisor of {self.lanes}, or the mixture's lanes to a multiple of {number}."
            )
        lanes: dict[int, _Lane] = {}
        batch = self._state["batches"] + first
        while True:
            index = batch % self.lanes
            if index not in lanes:
                lanes[index] = _Lane(self, index, self._state["lanes"].get(str(index)))
            rows = [lanes[index].next_row() for _ in range(self.rows_per_batch)]
            state = {"batch": batch, "lane": index, "state": lanes[index].state_dict()}
            yield _collate(rows) | {STATE_KEY: json.dumps(state)}
            batch += number

    def packed_examples(self) -> Iterator[tuple[str, list[Example]]]:
        """The rows that a single worker gives from the beginning on, as their source's name and their examples."""
        lanes = [_Lane(self, index, None) for index in range(self.lanes)]
        while True:
            for lane in lanes:
                for _ in range(self.rows_per_batch):
                    number, examples, _ = lane.next_examples()
                    yield self.source_names[number], examples

    def consumed(self, state: str) -> None:
        """
        Notes that a batch was trained on. Batches come in their order.

        Args:
            state: what the batch carries as `mixture_state`.
        """
        after = json.loads(state)
        self._state = {
            "batches": after["batch"] + 1,
            "lanes": self._state["lanes"] | {str(after["lane"]): after["state"]},
        }

    def shares(self) -> dict[str, float]:
        """Each source's observed share of what was consumed, in the mixture's unit."""
        amounts = dict.fromkeys(self.source_names, 0.0)
        for lane in self._state["lanes"].values():
            for name, amount in lane["amounts"].items():
                amounts[name] += amount
        total = sum(amounts.values())
        return {name: amount / total for name, amount in amounts.items()} if total else amounts

    def drops(self) -> Drops:
        """What was left out of what was consumed."""
        drops = Drops(max_share=1.0)
        for lane in self._state["lanes"].values():
            own = Drops(max_share=1.0)
            own.load_state_dict(lane["drops"])
            drops.merge(own)
        return drops

    def _signature(self) -> dict[str, Any]:
        return {
            "sources": {source.name: source.weight for source in self.sources},
            "unit": self.unit,
            "seed": self.seed,
            "lanes": self.lanes,
            "window": self.window,
            "sequence_length": self.encoder.sequence_length,
            "max_images": self.encoder.max_images,
            "rank": self.rank,
            "world_size": self.world_size,
            "rows_per_batch": self.rows_per_batch,
        }

    def state_dict(self) -> dict[str, Any]:
        """The place after the last consumed batch, for JSON."""
        return {**self._state, "mixture": self._signature()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Goes to a place.

        Args:
            state: what [`~Mixture.state_dict`] gave, here or in another process.

        Raises:
            ValueError: the state is that of another mixture, of other settings or of another number of ranks.
        """
        other = {
            name: (state["mixture"].get(name), value)
            for name, value in self._signature().items()
            if state["mixture"].get(name) != value
        }
        if other:
            differences = "; ".join(f"{name}: {saved} there, {now} here" for name, (saved, now) in other.items())
            raise ValueError(
                f"This checkpoint's data stream cannot be taken up by this mixture ({differences}). Continue with the "
                "settings and the number of ranks that it began with, or start a new run from its weights."
            )
        self._state = {"batches": state["batches"], "lanes": state["lanes"]}


def _check(source: Source) -> None:
    if not source.weight > 0:
        raise ValueError(
            f"The source {source.name} has the weight {source.weight}; give a positive one or leave it out."
        )
    if source.layout not in LAYOUTS:
        raise ValueError(
            f"The source {source.name} has the layout {source.layout!r}; choose one of {', '.join(LAYOUTS)}."
        )
    if isinstance(source.dataset, datasets.Dataset) and not len(source.dataset):
        raise ValueError(f"The source {source.name} is empty; give it records or leave it out.")


def _collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    # The order matters: accelerate takes a batch's size from its first entry.
    batch = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels", "segment_ids")}
    tiles = [row["pixel_values"] for row in rows if "pixel_values" in row]
    if tiles:
        batch["pixel_values"] = torch.cat(tiles)
    return batch | {SOURCES_KEY: torch.stack([row[SOURCES_KEY] for row in rows])}


class _Lane:
    """A mixture of its own, over its share of every source."""

    def __init__(self, mixture: Mixture, index: int, state: dict[str, Any] | None):
        self.mixture = mixture
        reader, readers = mixture.rank * mixture.lanes + index, mixture.world_size * mixture.lanes
        self.drops = Drops(max_share=mixture.max_dropped_share)
        self.sources = [
            _PackedSource(
                source,
                open_records(source.dataset, source.name, seed=mixture.seed, reader=reader, readers=readers),
                mixture,
                self.drops,
                f"{mixture.seed} {source.name} {reader}",
            )
            for source in mixture.sources
        ]
        # Lanes that all began with the same source would make long runs of it.
        draw = random.Random(f"{mixture.seed} {reader}")
        scale = mixture.encoder.sequence_length if mixture.unit == "tokens" else 1
        self.head_start = [scale * draw.random() for _ in self.sources]
        self.amounts = dict.fromkeys(mixture.source_names, 0)
        if state is not None:
            self.amounts = dict(state["amounts"])
            for source, name in zip(self.sources, mixture.source_names, strict=True):
                source.load_state_dict(state["sources"][name])
            self.drops.load_state_dict(state["drops"])

    def next_examples(self) -> tuple[int, list[Example], list[torch.Tensor]]:
        number = min(range(len(self.sources)), key=self._progress)
        examples, pixels = self.sources[number].next_row()
        self.amounts[self.mixture.source_names[number]] += _amount(examples, self.mixture.unit)
        return number, examples, pixels

    def next_row(self) -> dict[str, torch.Tensor]:
        number, examples, pixels = self.next_examples()
        row = build_row(examples, self.mixture.encoder.sequence_length)
        row[SOURCES_KEY] = torch.tensor(number)
        return row | ({"pixel_values": torch.cat(pixels)} if pixels else {})

    def _progress(self, number: int) -> float:
        source = self.mixture.sources[number]
        return (self.amounts[source.name] + self.head_start[number]) / source.weight

    def state_dict(self) -> dict[str, Any]:
        names = self.mixture.source_names
        states = {name: source.state_dict() for name, source in zip(names, self.sources, strict=True)}
        return {"amounts": self.amounts, "sources": states, "drops": self.drops.state_dict()}


def _amount(examples: Sequence[Example], unit: Unit) -> int:
    if unit == "rows":
        return 1
    if unit == "documents":
        return sum(example.begins for example in examples)
    return sum(len(example.input_ids) for example in examples)


class _PackedSource:
    """
    Rows of one source. A window of records is packed at once; the examples of rows that stay too empty wait for the next
    window. So two windows, a few numbers and the rows already given out are all that there is to remember: reading the
    windows again gives the same rows.
    """

    def __init__(self, source: Source, records: Records, mixture: Mixture, drops: Drops, seed: str):
        self.source, self.records, self.drops, self.seed = source, records, drops, seed
        self.encoder, self.window = mixture.encoder, mixture.window
        # By the record's place in its window and the piece's in the document.
        self.waiting: dict[tuple[int, int], Example] = {}
        self.waiting_from = self.window_from = records.state_dict()
        self.rows: list[list[Example]] = []
        self.windows = self.given = 0
        self.next_waiting: dict[tuple[int, int], Example] = {}

    def next_row(self) -> tuple[list[Example], list[torch.Tensor]]:
        while True:
            while self.given == len(self.rows):
                self._next_window()
            row = self.rows[self.given]
            self.given += 1
            examples, pixels = [], []
            for example in row:
                try:
                    if example.images:
                        pixels.append(self.encoder.pixel_values(example))
                    examples.append(example)
                except Unusable as reason:
                    self.drops.drop(self.source.name, reason)
            if examples:
                return examples, pixels

    def _next_window(self) -> None:
        self.waiting, self.waiting_from = self.next_waiting, self.window_from
        self.window_from = self.records.state_dict()
        self.windows += 1
        self.given = 0
        self._pack(self._read(self.drops))

    def _read(self, drops: Drops) -> dict[tuple[int, int], Example]:
        documents: list[tuple[int, Document]] = []
        for place in range(self.window):
            record, name = self.records.read()
            drops.seen(self.source.name)
            try:
                documents.append((place, LAYOUTS[self.source.layout](record, name)))
            except Unusable as reason:
                drops.drop(self.source.name, reason)
        examples = {}
        encoded = self.encoder.encode([document for _, document in documents])
        for (place, _), pieces in zip(documents, encoded, strict=True):
            if isinstance(pieces, Unusable):
                drops.drop(self.source.name, pieces)
            else:
                examples |= {(place, piece): example for piece, example in enumerate(pieces)}
        return examples

    def _pack(self, fresh: Mapping[tuple[int, int], Example]) -> None:
        pool = [*self.waiting.values(), *fresh.values()]
        packing = pack(
            [len(example.input_ids) for example in pool],
            [len(example.images) for example in pool],
            self.encoder.sequence_length,
            self.encoder.max_images,
            due=len(self.waiting),
        )
        draw = random.Random(f"{self.seed} {self.windows}")
        rows = [[pool[item] for item in draw.sample(row, len(row))] for row in packing.rows]
        self.rows = draw.sample(rows, len(rows))
        places = list(fresh)
        self.next_waiting = {
            place: fresh[place] for place in (places[item - len(self.waiting)] for item in packing.left)
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "windows": self.windows,
            "given": self.given,
            "window_from": self.window_from,
            "waiting_from": self.waiting_from,
            "waiting": list(self.waiting),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # What is read again was counted the first time.
        uncounted = Drops(max_share=1.0)
        self.windows, self.waiting_from, self.window_from = (
            state["windows"],
            state["waiting_from"],
            state["window_from"],
        )
        if state["waiting"]:
            self.records.load_state_dict(self.waiting_from)
            earlier = self._read(uncounted)
            self.waiting = {place: earlier[place] for place in map(tuple, state["waiting"])}
        self.records.load_state_dict(self.window_from)
        if self.windows:
            self._pack(self._read(uncounted))
        self.given = state["given"]
