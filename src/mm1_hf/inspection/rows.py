"""The contents of a training row: its tokens, labels and segments, and the tiles that its placeholders stand for."""

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
# Number of tokens before a tile that are searched for its indicator.
_LONGEST_INDICATOR = 24


@dataclass(frozen=True)
class Position:
    """
    One position of a row.

    Args:
        token_id: id of the token.
        text: text of the token. If a character takes several tokens, it is the text of the last one.
        label: token id that is the target, or -100 if the position is not a target.
        segment: number of the example in the row, counted from 1; 0 for padding. The branches of an example, which share
            its beginning, are numbered from -1 downwards.
        kind: `"image"` for a placeholder, `"indicator"` for the text that says where a tile is.
        tile: index in `pixel_values` of the tile that a placeholder stands for; `None` for other positions.
    """

    token_id: int
    text: str
    label: int
    segment: int
    kind: Kind
    tile: int | None = None

    @property
    def learned(self) -> bool:
        """Whether the position is a target, which counts in the loss."""
        return self.label != IGNORED


@dataclass(frozen=True)
class Reading:
    """
    A row's tokens with the labels that one collator gives them.

    Args:
        name: origin of the labels, `"mm1"` or `"trl"`.
        positions: all positions of the row, including the padding at its end.
    """

    name: str
    positions: tuple[Position, ...]

    def count(self, kind: Kind, learned: bool = False) -> int:
        """
        Counts the positions of a kind.

        Args:
            kind: the kind to count.
            learned: whether to count only targets.
        """
        return sum(place.kind == kind and (place.learned or not learned) for place in self.positions)

    @property
    def branches(self) -> int:
        """Number of branches: of examples that do not stand alone, but continue a beginning that others continue too."""
        return sum(segment < 0 for segment, _ in groupby(self.positions, lambda place: place.segment))

    def runs(self) -> Iterator[list[Position]]:
        """Yields runs of neighbouring positions that agree in segment, kind, tile and whether they are targets."""

        def likeness(place: Position) -> tuple:
            return place.segment, place.kind, place.tile, place.learned

        return (list(run) for _, run in groupby(self.positions, likeness))

    @property
    def warnings(self) -> list[str]:
        """Which positions are targets but should not be, with their number."""
        first = [
            place.learned
            for previous, place in zip((None, *self.positions), self.positions, strict=False)
            # The first token of a branch is predicted by the shared beginning.
            if place.segment > 0 and (previous is None or previous.segment != place.segment)
        ]
        found = {
            "image placeholders are targets, although the model never writes them": self.count("image", True),
            "tile indicators are targets, although the processor writes them": self.count("indicator", True),
            "padding positions are targets": self.count("padding", True),
            "first tokens of segments are targets, although nothing before them predicts them": sum(first),
        }
        return [f"{what}: {number:,}" for what, number in found.items() if number]


@dataclass(frozen=True)
class Tile:
    """
    A tile as the encoder sees it.

    Args:
        image: index of the tile's image in the row.
        row: row in the image's grid, counted from 1; 0 for the overview.
        col: column in the image's grid, counted from 1; 0 for the overview.
        picture: the tile's pixels, with the normalisation undone.
    """

    image: int
    row: int
    col: int
    picture: Image.Image

    @property
    def name(self) -> str:
        """The tile's row and column in its image's grid, such as `"1,2"`, or `"overview"`."""
        return f"{self.row},{self.col}" if self.row else "overview"


@dataclass(frozen=True)
class RowImage:
    """
    An image of a row.

    Args:
        height: original height in pixels.
        width: original width in pixels.
        layout: how the image is scaled and cut into tiles.
    """

    height: int
    width: int
    layout: ImageLayout


@dataclass(frozen=True)
class InspectedRow:
    """
    A row as the model sees it.

    Args:
        title: where the row comes from.
        segments: names of the row's examples, in order.
        images: images of the row, in reading order.
        tiles: tiles of all images, in the order of `pixel_values`.
        readings: the row's tokens with their labels, once for every origin of the labels.
        tokens_per_tile: number of placeholders per tile.
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
    Determines the text, kind and tile of each token of a row.

    Args:
        name: origin of the labels, `"mm1"` or `"trl"`.
        processor: the model's processor.
        input_ids: token ids, `(sequence,)`.
        labels: `(sequence,)`, -100 for tokens that are not targets.
        segments: `(sequence,)`, number of each token's example in the row; 0 for padding, negative for branches.
        num_tiles: number of tiles of the row.

    Raises:
        ValueError: the number of placeholders does not match the number of tiles.
    """
    places = [index for index, token in enumerate(input_ids) if token == processor.image_token_id]
    if len(places) != num_tiles * processor.num_image_tokens:
        raise ValueError(
            f"The row has {len(places)} placeholders, but {num_tiles} tiles of {processor.num_image_tokens} tokens "
            "each. Use the processor that made the row, and remove placeholder tokens from the row's text."
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
        # A character has at most four bytes, so it takes at most four tokens.
        if text.endswith("\ufffd") and len(waiting) < 4:
            yield ""
        else:
            yield text
            waiting = []


def _indicators(
    processor: MM1Processor, input_ids: Sequence[int], places: list[int], segments: Sequence[int]
) -> set[int]:
    """Indices of the tokens that say where a tile is: before each tile, or between two tiles of the same image."""
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
                # A separator fills the gap between two tiles; a match that begins later is ordinary text.
                if style == "index" or begin == earliest:
                    found.update(range(begin, start))
                break
    return found


def read_tiles(
    images: Sequence[RowImage], pixel_values: torch.Tensor | None, image_processor: MM1ImageProcessor
) -> tuple[Tile, ...]:
    """
    Turns the tiles of a row back into pictures.

    Args:
        images: images of the row, in reading order.
        pixel_values: `(tiles, 3, tile_size, tile_size)`; `None` if the row has no images.
        image_processor: the model's image processor.
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
    """Undoes the normalisation of a tile, `(3, tile_size, tile_size)`."""
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
