"""Encodes tiles in batches whose results are those of every other batch."""

import torch

from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration


# On a CPU, eight tiles take less than half of the time of eight single ones, and more bring little. They also fit wherever
# the model does.
TOGETHER = 8


class TileEncoder:
    """
    The encoder and connector of an MM1. The image tokens of a tile do not depend, to the last bit, on the tiles that are
    encoded with it. Kernels may round differently for another number of tiles, so there are always eight, some of them
    zeros; on a machine where it also matters which place of the eight a tile has, each is encoded alone.

    Args:
        model: the model, on the device where it is to run.
    """

    def __init__(self, model: MM1ForConditionalGeneration):
        self._model = model
        self._together: dict[tuple[tuple[int, ...], torch.dtype], int] = {}

    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        """
        Encodes tiles.

        Args:
            tiles: `(tiles, 3, tile, tile)`, at least one.

        Returns:
            Their image tokens, `(tiles, num_tokens, hidden)`, on the model's device.
        """
        size = self.together(tiles.shape[1:], tiles.dtype)
        missing = -len(tiles) % size
        if missing:
            filled = torch.cat([tiles, tiles.new_zeros(missing, *tiles.shape[1:])])
        else:
            filled = tiles
        return torch.cat([self._encoded(each) for each in filled.split(size)])[: len(tiles)]

    def together(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """
        Returns how many tiles are encoded together: 8, or 1 where this machine was found to give a tile other bits at
        another place of the eight.

        Args:
            shape: `(3, tile, tile)`.
            dtype: dtype of the tiles; uint8 tiles are normalised by the model.
        """
        key = (tuple(shape), dtype)
        if key not in self._together:
            generator = torch.Generator().manual_seed(0)
            levels = torch.randint(256, (TOGETHER, *shape), generator=generator, dtype=torch.uint8)
            tiles = levels if dtype == torch.uint8 else (levels / 128 - 1).to(dtype)
            turned = self._encoded(tiles.roll(1, 0)).roll(-1, 0)
            self._together[key] = TOGETHER if torch.equal(turned, self._encoded(tiles)) else 1
        return self._together[key]

    def _encoded(self, tiles: torch.Tensor) -> torch.Tensor:
        return self._model.get_image_features(tiles.to(self._model.device)).pooler_output
