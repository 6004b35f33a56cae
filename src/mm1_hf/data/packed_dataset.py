"""Packs conversations into a data set of rows, which can be counted and shuffled like any other data set."""

from dataclasses import replace

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from mm1_hf.data.documents import Unusable
from mm1_hf.data.examples import ChatEncoder, Example
from mm1_hf.data.layouts import layout_named
from mm1_hf.data.packing import build_row, pack
from mm1_hf.data.readers import undecoded


class PackedDataset(Dataset):
    """
    Rows of whole conversations, packed once, when the data set is made. The tokens of all rows are kept in memory; the
    images of a row are read when the row is read.

    Args:
        dataset: the records, by default in TRL's columns.
        encoder: turns documents into examples. Its `sequence_length` and `max_images` apply to the rows.
        layout: name of the layout of the records, a key of [`mm1_hf.data.layouts.LAYOUTS`].
        seed: seed of the random order in which the records are packed.
        window: number of records that are packed together.

    Raises:
        ValueError: there is no such layout; or a record cannot be used: it is longer than a row, has another number of
            images than of places for them, or has nothing to learn from. Then the message names the index of the
            record.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        encoder: ChatEncoder,
        *,
        layout: str = "chat",
        seed: int = 0,
        window: int = 1024,
    ):
        self.dataset, self.encoder, self.layout = dataset, encoder, layout_named(layout)
        features = undecoded(dataset.features)
        if features != dataset.features:
            self.dataset = dataset.cast(features)
        self.rows: list[list[tuple[int, Example]]] = []
        order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
        waiting: list[tuple[int, Example]] = []
        for start in range(0, len(order), window):
            indices = order[start : start + window]
            pool = [*waiting, *zip(indices, self._examples(indices), strict=True)]
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

    def _examples(self, indices: list[int]) -> list[Example]:
        """The examples of the records, without their images, which would take too much memory."""
        try:
            documents = [self.layout(self.dataset[index], f"record {index}") for index in indices]
            examples = []
            for encoded in self.encoder.encode(documents):
                if isinstance(encoded, Unusable):
                    raise encoded
                example, *rest = encoded
                if rest:
                    raise Unusable("text longer than a row", f"{example.name} would be cut into {len(encoded)} pieces")
                examples.append(replace(example, images=()))
        except Unusable as reason:
            raise ValueError(f"The data set cannot be packed: {reason}.") from reason
        return examples

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """
        Args:
            index: index of the row, counted from 0.

        Returns:
            `input_ids`, `labels` and `segment_ids` `(sequence,)`, and `pixel_values` `(tiles, 3, tile, tile)` if there
            are images.
        """
        row = self.rows[index]
        pixels = []
        for number, example in row:
            if example.splits:
                images = self.layout(self.dataset[number], example.name).images
                pixels.append(self.encoder.pixel_values(replace(example, images=images)))
        built = build_row([example for _, example in row], self.encoder.sequence_length)
        return built | ({"pixel_values": torch.cat(pixels)} if pixels else {})
