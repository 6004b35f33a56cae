"""A training row taken apart: its tokens, labels and segments, and the tiles that stand behind its placeholders."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from PIL import Image

from mm1_hf.data.collation import IGNORED
from mm1_hf.model.image_processing_mm1 import MM1ImageProcessor
from mm1_hf.model.processing_mm1 import MM1Processor
from mm1_hf.model.tiling import ImageLayout


Kind = Literal["text", "image", "indicator", "padding"]

_INDEX_INDICATOR = re.compile(r"\(\d+, \d+, \d+\)")
# Tokens before an image that are tried for an indicator.
_LONGEST_INDICATOR = 24


@dataclass(frozen=True)
class Position:
    """
    One place of a row.

    Args:
        token_id: the token's.
        text: what it stands for. Of a character that takes several tokens, the last one has it.
        label: what the model is to say there, -100 where nothing is learned.
        segment: which example of the row it belongs to, from 1; 0 for padding.
        kind: `"image"` is a placeholder, `"indicator"` the text that says where its tile is.
        tile: of a placeholder, the index of its tile in `pixel_values`.
    """

    token_id: int
    text: str
    label: int
    segment: int
    kind: Kind
    tile: int | None = None

    @property
    def learned(self) -> bool:
        """Whether the loss counts it."""
        return self.label != IGNORED


@dataclass(frozen=True)
class Reading:
    """
    A row's tokens with the labels that one collator gives them.

    Args:
        name: whose labels they are.
        positions: of the whole row, padding at its end.
    """

    name: str
    positions: tuple[Position, ...]

    def count(self, kind: Kind, learned: bool = False) -> int:
        """
        Places of a kind.

        Args:
            kind: which.
            learned: only those that are learned.
        """
        return sum(place.kind == kind and (place.learned or not learned) for place in self.positions)

    def runs(self) -> Iterator[list[Position]]:
        """Neighbours that are alike in segment, kind, tile and whether they are learned."""

        def likeness(place: Position) -> tuple:
            return place.segment, place.kind, place.tile, place.learned

        return (list(run) for _, run in groupby(self.positions, likeness))

    @property
    def warnings(self) -> list[str]:
        """What is learned and should not be."""
        first = [
            place.learned
            for previous, place in zip((None, *self.positions), self.positions, strict=False)
            if place.segment and (previous is None or previous.segment != place.segment)
        ]
        found = {
            "image placeholders are learned, as if the model were to write them": self.count("image", True),
            "tile indicators are learned, which the image processor writes": self.count("indicator", True),
            "padding is learned": self.count("padding", True),
            "first tokens of segments are learned, which nothing before them tells": sum(first),
        }
        return [f"{what}: {number:,}" for what, number in found.items() if number]


@dataclass(frozen=True)
class Tile:
    """
    A tile as the encoder sees it.

    Args:
        image: the index of its image in the row.
        row: from 1; 0 for the overview.
        col: from 1; 0 for the overview.
        picture: its pixels, no longer normalised.
    """

    image: int
    row: int
    col: int
    picture: Image.Image

    @property
    def name(self) -> str:
        """Where it is in its image's grid."""
        return f"{self.row},{self.col}" if self.row else "overview"


@dataclass(frozen=True)
class RowImage:
    """
    An image of a row.

    Args:
        height: in pixels, as it came.
        width: in pixels, as it came.
        layout: what becomes of it.
    """

    height: int
    width: int
    layout: ImageLayout


@dataclass(frozen=True)
class InspectedRow:
    """
    A row as the model sees it.

    Args:
        title: where it comes from.
        segments: the names of its examples, in order.
        images: in reading order.
        tiles: in the order of `pixel_values`.
        readings: its tokens, once for every way to label them.
        tokens_per_tile: placeholders of a tile.
    """

    title: str
    segments: tuple[str, ...]
    images: tuple[RowImage, ...]
    tiles: tuple[Tile, ...]
    readings: tuple[Reading, ...]
    tokens_per_tile: int


def read_tokens(
    name: str,
    processor: MM1Processor,
    input_ids: Sequence[int],
    labels: Sequence[int],
    segments: Sequence[int],
    num_tiles: int,
) -> Reading:
    """
    Args:
        name: whose labels these are.
        processor: the model's own.
        input_ids: `(sequence,)`.
        labels: `(sequence,)`, -100 where nothing is learned.
        segments: `(sequence,)`, 0 for padding.
        num_tiles: tiles of the row.

    Raises:
        ValueError: tiles and placeholders do not fit each other.
    """
    places = [index for index, token in enumerate(input_ids) if token == processor.image_token_id]
    if len(places) != num_tiles * processor.num_image_tokens:
        raise ValueError(
            f"The row has {len(places)} placeholders, and {num_tiles} tiles of {processor.num_image_tokens} tokens: the "
            "processor is not the one of this data, or text spells placeholders."
        )
    tile_of = {place: number // processor.num_image_tokens for number, place in enumerate(places)}
    indicators = _indicators(processor, input_ids, places, segments)
    positions = []
    texts = _texts(processor, input_ids)
    for index, (token, label, segment, text) in enumerate(zip(input_ids, labels, segments, texts, strict=True)):
        kind: Kind = "text"
        if not segment:
            kind = "padding"
        elif index in tile_of:
            kind = "image"
        elif index in indicators:
            kind = "indicator"
        positions.append(Position(token, text, label, segment, kind, tile_of.get(index)))
    return Reading(name, tuple(positions))


def _texts(processor: MM1Processor, input_ids: Sequence[int]) -> Iterator[str]:
    waiting: list[int] = []
    for token in input_ids:
        waiting.append(token)
        text = processor.tokenizer.decode(waiting)
        # No character takes more than four bytes.
        if text.endswith("\ufffd") and len(waiting) < 4:
            yield ""
        else:
            yield text
            waiting = []


def _indicators(
    processor: MM1Processor, input_ids: Sequence[int], places: list[int], segments: Sequence[int]
) -> set[int]:
    """Places of the text that says where the tiles are: before each tile, or between two that belong together."""
    style = processor.image_processor.tiling_config().indicators
    starts = places[:: processor.num_image_tokens]
    if style == "none" or not starts:
        return set()
    found: set[int] = set()
    for number, start in enumerate(starts):
        earliest = starts[number - 1] + processor.num_image_tokens if number else 0
        earliest = max(earliest, start - _LONGEST_INDICATOR)
        pattern = _INDEX_INDICATOR if style == "index" else re.compile("[:,]|<n>")
        for begin in range(start - 1, earliest - 1, -1):
            if segments[begin] != segments[start]:
                break
            if pattern.search(processor.tokenizer.decode(input_ids[begin:start])):
                # A separator stands between two tiles, where nothing else does.
                if style == "index" or begin == earliest:
                    found.update(range(begin, start))
                break
    return found


def read_tiles(
    images: Sequence[RowImage], pixel_values: torch.Tensor | None, image_processor: MM1ImageProcessor
) -> tuple[Tile, ...]:
    """
    A row's tiles as pictures.

    Args:
        images: of the row, in reading order.
        pixel_values: `(tiles, 3, tile, tile)`; `None` without images.
        image_processor: the model's own.
    """
    before = image_processor.tiling_config().overview == "before"
    places: list[tuple[int, int, int]] = []
    for index, image in enumerate(images):
        layout = image.layout
        grid = [(index, row, col) for row in range(1, layout.rows + 1) for col in range(1, layout.cols + 1)]
        overview = [(index, 0, 0)] if layout.overview else []
        places += overview + grid if before else grid + overview
    if pixel_values is None:
        return ()
    return tuple(
        Tile(image, row, col, _picture(tile, image_processor))
        for (image, row, col), tile in zip(places, pixel_values, strict=True)
    )


def _picture(tile: torch.Tensor, image_processor: MM1ImageProcessor) -> Image.Image:
    """A tile `(3, tile, tile)` before it was normalised."""
    levels = tile.numpy()
    if tile.dtype != torch.uint8:
        if image_processor.do_normalize:
            mean, std = (
                np.reshape(getattr(image_processor, name), (-1, 1, 1)) for name in ("image_mean", "image_std")
            )
            levels = levels * std + mean
        if image_processor.do_rescale:
            levels = levels / image_processor.rescale_factor
        levels = levels.round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))
