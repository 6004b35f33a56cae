"""Tiles are encoded together only where each comes out with the bits that it has in any other company."""

import pytest
import torch
from generating import far_from_initial
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_mm1

from mm1_hf.evaluation.models.encoding import TileEncoder


@pytest.fixture(scope="module")
def model():
    return far_from_initial(tiny_mm1()[0]).eval()


class Machine:
    """In the place of a model: counts its calls, and rounds as the test says."""

    device = torch.device("cpu")

    def __init__(self, rounding):
        self.rounding = rounding
        self.batches = []

    def get_image_features(self, tiles):
        self.batches.append(len(tiles))
        means = tiles.float().mean((1, 2, 3))
        places = torch.arange(len(tiles))
        self.pooler_output = (means + 1e-3 * self.rounding(len(tiles), places))[:, None, None]
        return self


def tiles(number: int) -> torch.Tensor:
    return torch.rand(number, 3, 4, 4, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize(
    ("rounding", "batches"),
    [
        (lambda number, places: 0 * places, [8, 8, 8]),
        (lambda number, places: 0 * places + number, [8, 8, 8]),
        (lambda number, places: places % 2, [1] * 23),
        (lambda number, places: 0 * places + (places == 7), [1] * 23),
    ],
)
def test_where_places_of_a_batch_round_differently_each_tile_is_encoded_alone(rounding, batches):
    machine = Machine(rounding)
    encoder = TileEncoder(machine)
    assert encoder.together(torch.Size((3, 4, 4)), torch.float32) == batches[0]
    machine.batches.clear()
    whole = encoder.encode(tiles(23))
    assert machine.batches == batches
    alone = torch.cat([encoder.encode(tile[None]) for tile in tiles(23)])
    turned = torch.cat([encoder.encode(tiles(23).roll(turn, 0)).roll(-turn, 0) for turn in range(5)])
    assert torch.equal(whole, alone) and torch.equal(turned, whole.repeat(5, 1, 1))


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(11)), st.integers(1, 11))
def test_image_tokens_do_not_depend_on_the_company(model, order, number):
    side = model.config.vision_config.image_size
    pixels = torch.randn(11, 3, side, side, generator=torch.Generator().manual_seed(1))
    encoder = TileEncoder(model)
    with torch.no_grad():
        expected = encoder.encode(pixels)
        chosen = list(order)[:number]
        assert torch.equal(encoder.encode(pixels[chosen]), expected[chosen])
        plain = model.get_image_features(pixels).pooler_output
    assert torch.allclose(expected, plain, atol=1e-5)
