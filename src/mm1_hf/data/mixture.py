"""Mixes several sources into an endless stream of packed batches, which can be resumed after any batch."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import datasets
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mm1_hf.data.documents import Document, Drops, Unusable, merged_drops
from mm1_hf.data.examples import Example, ExampleEncoder
from mm1_hf.data.identity import dataset_identity, differences, listed, processor_identity
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.packing import build_row, pack
from mm1_hf.data.raw_records import Record
from mm1_hf.data.records import Records, open_records
from mm1_hf.data.shared_images import take_apart
from mm1_hf.data.two_captions import drawn_caption
from mm1_hf.data.wall import result_or_reason


Unit = Literal["rows", "documents", "tokens"]

# Entries of a batch that are not inputs of the model. [`MM1Trainer`] removes both.
SOURCES_KEY = "sources"
STATE_KEY = "mixture_state"


@dataclass(frozen=True)
class Source:
    """
    One data set of a mixture.

    Args:
        name: name of the source in logs and error messages.
        dataset: the records, indexed or streamed, with images not decoded, as [`mm1_hf.data.readers.read`] returns
            them.
        layout: name of the layout of the records, a key of [`mm1_hf.data.layouts.LAYOUTS`].
        weight: share of the source in the mixture, relative to the weights of the other sources.
        origin: where the records come from and how they are read, such as `{"path": ...}`. A run can only be resumed
            if this has not changed.
        synthetic_share: probability, from 0 to 1, with which the synthetic caption of a record is drawn in place of its
            alt text. It is drawn anew for every record in every epoch. For records of the layout `two_captions` alone;
            unset, the alt text is used.
        separate_exchanges: whether the exchanges of a conversation are separate examples, which do not see each other and
            share the conversation's images in a row; see [`mm1_hf.data.shared_images.take_apart`].
    """

    name: str
    dataset: datasets.Dataset | datasets.IterableDataset
    layout: str
    weight: float
    origin: Mapping[str, Any] = field(default_factory=dict)
    synthetic_share: float | None = None
    separate_exchanges: bool = False


class Mixture(IterableDataset):
    """
    An endless stream of packed batches from several sources (MM1, section 3.3: every row comes from one source; 45 %
    are interleaved documents, 45 % caption pairs and 10 % text).

    The next row always comes from the source that is furthest behind its weight, so that the shares are right from the
    start. When a source ends, it begins a new epoch in another order.

    The stream consists of several lanes, each of which reads, packs and mixes independently. Batch `i` of a rank comes
    from lane `i % lanes`. The lanes are divided among the data workers, so that the batches do not depend on the
    number of workers, as long as this number divides the number of lanes.

    Records that cannot become a document, whatever the reason, and examples with an image that turns out to be corrupt
    are dropped, counted and logged. Too many of them stop the run.

    Args:
        sources: the sources, with positive weights and different names.
        encoder: turns documents into examples. Its `sequence_length` and `max_images` apply to the rows.
        unit: what the weights count: rows, documents or tokens (positions that are not padding).
        seed: seed of all random orders.
        lanes: number of lanes.
        window: number of records of a source that a lane packs together. More records fill the rows better, but take
            more memory for their tokens and their image files.
        max_dropped_share: largest share of a source's records that may be dropped.

    Raises:
        ValueError: there is no source, a source has no records, two sources have the same name, a layout or the unit
            is unknown, a weight is not positive, or a `synthetic_share` is not between 0 and 1.
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
        self._records: dict[str, dict[str, Any]] | None = None

    def split(self, rank: int, world_size: int, rows_per_batch: int) -> None:
        """
        Sets the rank that the batches are for. Ranks that share one batch, for example those of a tensor-parallel
        group, count as one rank.

        Args:
            rank: index of this rank, counted from 0.
            world_size: number of ranks.
            rows_per_batch: number of rows in one batch of this rank.
        """
        self.rank, self.world_size, self.rows_per_batch = rank, world_size, rows_per_batch

    @property
    def source_names(self) -> list[str]:
        """The names of the sources. The numbers in `sources` of a batch are indices of this list."""
        return [source.name for source in self.sources]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """
        Yields the batches after the last consumed one: `input_ids`, `labels` and `segment_ids` `(rows, sequence)`,
        `pixel_values` `(tiles, 3, tile, tile)` if there are images, `sources` `(rows,)`, and `mixture_state`, the
        state of the lane after the batch, as JSON.

        Raises:
            ValueError: the number of data workers does not divide the number of lanes, or too many records of a source
                were dropped.
        """
        worker = get_worker_info()
        number, first = (1, 0) if worker is None else (worker.num_workers, worker.id)
        if self.lanes % number:
            raise ValueError(
                f"{number} data workers cannot share {self.lanes} lanes evenly. Set dataloader_num_workers to a "
                f"divisor of {self.lanes}, or the number of lanes of the mixture to a multiple of {number}."
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
        """Yields the rows from the start of the stream, in order, each as the name of its source and its examples."""
        lanes = [_Lane(self, index, None) for index in range(self.lanes)]
        while True:
            for lane in lanes:
                for _ in range(self.rows_per_batch):
                    number, examples, _ = lane.next_examples()
                    yield self.source_names[number], examples

    def consumed(self, state: str) -> None:
        """
        Marks a batch as trained on. To be called for every batch, in the order of the stream.

        Args:
            state: the value of `mixture_state` in the batch.
        """
        after = json.loads(state)
        self._state = {
            "batches": after["batch"] + 1,
            "lanes": self._state["lanes"] | {str(after["lane"]): after["state"]},
        }

    def shares(self) -> dict[str, float]:
        """The share of each source in the consumed batches, counted in the unit of the mixture."""
        amounts = dict.fromkeys(self.source_names, 0.0)
        for lane in self._state["lanes"].values():
            for name, amount in lane["amounts"].items():
                amounts[name] += amount
        total = sum(amounts.values())
        return {name: amount / total for name, amount in amounts.items()} if total else amounts

    def drops(self) -> Drops:
        """The counts of the dropped records, up to the last consumed batch."""
        return merged_drops(lane["drops"] for lane in self._state["lanes"].values())

    def _signature(self) -> dict[str, Any]:
        if self._records is None:
            self._records = {source.name: dataset_identity(source.dataset) for source in self.sources}
        return {
            "sources": {
                source.name: {"weight": source.weight, "layout": source.layout, **source.origin}
                | ({} if source.synthetic_share is None else {"synthetic_share": source.synthetic_share})
                | ({"separate_exchanges": True} if source.separate_exchanges else {})
                | self._records[source.name]
                for source in self.sources
            },
            # A tie between sources is broken by their order.
            "order of the sources": self.source_names,
            "unit": self.unit,
            "seed": self.seed,
            "lanes": self.lanes,
            "window": self.window,
            "sequence_length": self.encoder.sequence_length,
            "max_images": self.encoder.max_images,
            "processor": processor_identity(self.encoder.processor),
            "rank": self.rank,
            "world_size": self.world_size,
            "rows_per_batch": self.rows_per_batch,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position after the last consumed batch, in a form that JSON can hold."""
        return {**self._state, "mixture": self._signature()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continues at a saved position.

        Args:
            state: what [`~Mixture.state_dict`] returned, in this process or in another.

        Raises:
            ValueError: the state was saved with other sources, other settings, or another rank or number of ranks.
        """
        if changes := differences(state["mixture"], self._signature()):
            raise ValueError(
                "This mixture cannot resume the data stream of the checkpoint, because their settings differ: "
                f"{listed(changes)}. Resume with the data, the settings and the number of ranks of the checkpoint, or "
                "start a new run from its weights in another output folder."
            )
        self._state = {"batches": state["batches"], "lanes": state["lanes"]}


def _check(source: Source) -> None:
    if not source.weight > 0:
        raise ValueError(
            f"The source {source.name} has the weight {source.weight}; give a positive weight or remove the source."
        )
    if source.layout not in LAYOUTS:
        raise ValueError(
            f"The source {source.name} has the layout {source.layout!r}; choose one of {', '.join(LAYOUTS)}."
        )
    if source.synthetic_share is not None and not 0 <= source.synthetic_share <= 1:
        raise ValueError(
            f"The source {source.name} has the synthetic_share {source.synthetic_share}; give a share between 0 and 1."
        )
    if isinstance(source.dataset, datasets.Dataset) and not len(source.dataset):
        raise ValueError(f"The source {source.name} is empty; give it records or remove it.")


def _collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    # input_ids must come first: accelerate reads the batch size from the first entry.
    batch = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels", "segment_ids")}
    tiles = [row["pixel_values"] for row in rows if "pixel_values" in row]
    if tiles:
        batch["pixel_values"] = torch.cat(tiles)
    return batch | {SOURCES_KEY: torch.stack([row[SOURCES_KEY] for row in rows])}


class _Lane:
    """An independent reader of the stream. It mixes its own part of the records of every source."""

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
        # If all lanes began with the same source, the stream would begin with a long run of rows from that source.
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


def _document(source: Source, record: Record | Unusable, name: str, key: str) -> Document:
    if isinstance(record, Unusable):
        raise record
    document = drawn_caption(LAYOUTS[source.layout](record, name), source.synthetic_share or 0.0, key)
    return take_apart(document) if source.separate_exchanges else document


class _PackedSource:
    """
    Yields packed rows of one source. A window of records is packed at once, and the examples of rows that would be too
    empty wait for the next window. To resume, the last two windows are read again, which gives the same rows. So the
    state is only where these windows begin, which examples wait, and how many rows were already returned.
    """

    def __init__(self, source: Source, records: Records, mixture: Mixture, drops: Drops, seed: str):
        self.source, self.records, self.drops, self.seed = source, records, drops, seed
        self.encoder, self.window = mixture.encoder, mixture.window
        # Of captions: the same for all readers, unlike the seed of the packing.
        self.draw_seed = f"{mixture.seed} {source.name}"
        # The key is the index of the record in its window, and the index of the piece in its document.
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
                except Unusable as reason:
                    self.drops.decoded(self.source.name, reason)
                else:
                    examples.append(example)
                    self.drops.decoded(self.source.name)
            if examples:
                return examples, pixels

    def _next_window(self) -> None:
        self.waiting, self.waiting_from = self.next_waiting, self.window_from
        self.window_from = self.records.state_dict()
        self.windows += 1
        self.given = 0
        self._pack(self._read(self.drops))

    def _read(self, drops: Drops) -> dict[tuple[int, int], Example]:
        documents: dict[int, Document] = {}
        refused: dict[int, Unusable] = {}
        for place in range(self.window):
            record, name = self.records.read()
            key = f"{self.draw_seed} {self.records.epoch}"
            document = result_or_reason(partial(_document, self.source, name=name, key=key), record, name)
            if isinstance(document, Unusable):
                refused[place] = document
            else:
                documents[place] = document
        examples, left_out = {}, {}
        encoded = self.encoder.encode(list(documents.values()))
        for place, pieces in zip(documents, encoded, strict=True):
            if isinstance(pieces, Unusable):
                refused[place] = pieces
            else:
                examples |= {(place, piece): example for piece, example in enumerate(pieces)}
                left_out[place] = pieces[0].left_out
        # Counted when all of them are judged, in the order in which they were read, so that the share of dropped
        # records is right at every one of them.
        for place in range(self.window):
            drops.seen(self.source.name, refused.get(place))
            drops.left_out(self.source.name, left_out.get(place, 0))
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
        # The records that are read again here were already counted when they were first read.
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
