"""A data set of conversations as packed rows that are counted, shuffled and dealt out like any other data set's."""

from dataclasses import replace

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from mm1_hf.data.documents import Unusable
from mm1_hf.data.examples import ChatEncoder, Example
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.packing import build_row, pack
from mm1_hf.data.readers import undecoded


class PackedDataset(Dataset):
    """
    Rows of whole conversations, packed once. Texts are kept as tokens; images are read when their row is.

    Args:
        dataset: its records, in TRL's columns.
        encoder: makes examples; its `sequence_length` and `max_images` are the rows'.
        layout: what its records look like, a name in [`mm1_hf.data.layouts.LAYOUTS`].
        seed: of the order in which records are packed.
        window: records that are packed together.

    Raises:
        ValueError: a record that cannot be used, by its number: one that is longer than a row, has another number of images
            than of places for them, or nothing to learn from.
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
        self.dataset, self.encoder, self.layout = dataset, encoder, LAYOUTS[layout]
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
        """The records' examples without their images, which are not to stay in memory."""
        try:
            documents = [self.layout(self.dataset[index], f"record {index}") for index in indices]
            examples = []
            for encoded in self.encoder.encode(documents):
                if isinstance(encoded, Unusable):
                    raise encoded
                example, *rest = encoded
                if rest:
                    raise Unusable("text longer than a row", f"{example.name} is cut into {len(encoded)} pieces")
                examples.append(replace(example, images=()))
        except Unusable as reason:
            raise ValueError(f"The data set cannot be packed: {reason}.") from reason
        return examples

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """
        Args:
            index: of the row.

        Returns:
            `input_ids`, `labels` and `segment_ids` `(sequence,)`, and `pixel_values` `(tiles, 3, tile, tile)` if there are
            images.
        """
        row = self.rows[index]
        pixels = []
        for number, example in row:
            if example.splits:
                images = self.layout(self.dataset[number], example.name).images
                pixels.append(self.encoder.pixel_values(replace(example, images=images)))
        built = build_row([example for _, example in row], self.encoder.sequence_length)
        return built | ({"pixel_values": torch.cat(pixels)} if pixels else {})
