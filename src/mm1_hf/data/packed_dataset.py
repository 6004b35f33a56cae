"""Packs conversations into a data set of rows, which can be counted and shuffled like any other data set."""

from dataclasses import replace

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from mm1_hf.data.documents import Document, Drops, Unusable
from mm1_hf.data.examples import ChatEncoder, Example
from mm1_hf.data.layouts import layout_named
from mm1_hf.data.packing import build_row, pack
from mm1_hf.data.readers import undecoded
from mm1_hf.data.shared_images import SharedImages, take_apart
from mm1_hf.data.tables import row_of


# The name of the data set where dropped records are counted.
_SOURCE = "the data set"
_TOO_LONG = (
    "chat longer than a row",
    "text longer than a row",
    "caption longer than a row",
    "image longer than a row",
    "exchange longer than a row",
)


class PackedDataset(Dataset):
    """
    Rows of whole conversations, packed once, when the data set is made. The tokens of all rows are kept in memory; the
    images of a row are read when the row is read.

    A record that cannot be used, whatever the reason, is left out, counted in `drops` and logged. So is one with an image
    that turns out to be corrupt when its row is read; if nothing of a row is left, the next row takes its place.

    Args:
        dataset: the records, by default in TRL's columns.
        encoder: turns documents into examples. Its `sequence_length` and `max_images` apply to the rows.
        layout: name of the layout of the records, a key of [`mm1_hf.data.layouts.LAYOUTS`].
        seed: seed of the random order in which the records are packed.
        window: number of records that are packed together.
        max_dropped_share: largest share of the records that may be left out.
        separate_exchanges: whether the exchanges of a conversation are separate examples that share its images; see
            [`mm1_hf.data.shared_images.take_apart`].

    Raises:
        ValueError: there is no such layout; or no record can be used, or more of them than `max_dropped_share` cannot,
            by more than chance explains. Then the message names the index of such a record and what is wrong with it.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        encoder: ChatEncoder,
        *,
        layout: str = "chat",
        seed: int = 0,
        window: int = 1024,
        max_dropped_share: float = 0.05,
        separate_exchanges: bool = False,
    ):
        self.separate_exchanges = separate_exchanges
        self.dataset, self.encoder, self.layout = dataset, encoder, layout_named(layout)
        features = undecoded(dataset.features)
        if features != dataset.features:
            self.dataset = dataset.cast(features)
        self.drops = Drops(max_share=max_dropped_share, min_seen=max(len(dataset), 1))
        self._first_reason: Unusable | None = None
        self.rows: list[list[tuple[int, Example]]] = []
        order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
        waiting: list[tuple[int, Example]] = []
        for start in range(0, len(order), window):
            indices = order[start : start + window]
            pool = [*waiting, *self._examples(indices)]
            last = start + window >= len(order)
            packing = pack(
                [len(example.input_ids) for _, example in pool],
                [len(example.splits) for _, example in pool],
                encoder.sequence_length,
                encoder.max_images,
                due=len(pool) if last else len(waiting),
            )
            self.rows += [[pool[item] for item in row] for row in packing.rows]
            waiting = [pool[item] for item in packing.left]

        dropped = self.drops.report().get(_SOURCE, {}).get("dropped", {})
        # Too short rows are a mistake of the settings, not of some records, so that chance explains none of them.
        too_long = sum(number for reason, number in dropped.items() if reason in _TOO_LONG)
        if not self.rows or too_long > max_dropped_share * len(dataset):
            raise ValueError(f"The data set cannot be packed: {self._first_reason or 'it has no records'}.")

    def _examples(self, indices: list[int]) -> list[tuple[int, Example]]:
        """The records that can be used, as their examples without their images, which would take too much memory."""
        read = [self._document(index) for index in indices]
        encoded = iter(self.encoder.encode([document for document in read if not isinstance(document, Unusable)]))
        examples = []
        for index, document in zip(indices, read, strict=True):
            found = document if isinstance(document, Unusable) else next(encoded)
            whole = not isinstance(document, SharedImages)
            if whole and not isinstance(found, Unusable) and len(found) > 1:
                found = Unusable("text longer than a row", f"{found[0].name} would be cut into {len(found)} pieces")
            if isinstance(found, Unusable):
                self._leave_out(found)
            else:
                self.drops.seen(_SOURCE)
                examples += [(index, replace(example, images=())) for example in found]
        return examples

    def _document(self, index: int) -> Document | Unusable:
        name = f"record {index}"
        try:
            document = self.layout(row_of(self.dataset, index, name), name)
            return take_apart(document) if self.separate_exchanges else document
        except Unusable as reason:
            return reason

    def _leave_out(self, reason: Unusable) -> None:
        self._first_reason = self._first_reason or reason
        try:
            self.drops.seen(_SOURCE, reason)
        except ValueError as error:
            raise ValueError(f"The data set cannot be packed: {self._first_reason}. {error}") from error

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """
        Args:
            index: index of the row, counted from 0.

        Returns:
            `input_ids`, `labels` and `segment_ids` `(sequence,)`, and `pixel_values` `(tiles, 3, tile, tile)` if there
            are images.

        Raises:
            ValueError: no row can be read, or the images of too many records are corrupt.
        """
        # A negative index counts from the end, where the next rows would end too early.
        start = range(len(self.rows))[index]
        for offset in range(len(self.rows)):
            if (built := self._built(self.rows[(start + offset) % len(self.rows)])) is not None:
                return built
        raise ValueError(f"No row of the packed data set can be read: {self._first_reason}.")

    def _built(self, row: list[tuple[int, Example]]) -> dict[str, torch.Tensor] | None:
        examples, pixels = [], []
        for number, example in row:
            try:
                if example.splits:
                    images = self.layout(row_of(self.dataset, number, example.name), example.name).images
                    pixels.append(self.encoder.pixel_values(replace(example, images=images)))
            except Unusable as reason:
                self._first_reason = self._first_reason or reason
                self.drops.decoded(_SOURCE, reason)
            else:
                examples.append(example)
                self.drops.decoded(_SOURCE)
        if not examples:
            return None
        built = build_row(examples, self.encoder.sequence_length)
        return built | ({"pixel_values": torch.cat(pixels)} if pixels else {})
