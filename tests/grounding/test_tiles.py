"""Coordinates against the image processor's own pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mm1_hf import MM1ImageProcessor
from mm1_hf.grounding.regions import Box, Point
from mm1_hf.grounding.tiles import tile_views


TILE = 56
SETTINGS = {
    "squashed": {"image_splitting": "none"},
    "padded": {"image_splitting": "none", "whole_image_resize": "pad"},
    "static": {"image_splitting": "static", "overview_position": "before"},
    "dynamic": {"image_splitting": "dynamic"},
    "dynamic from the corner": {"image_splitting": "dynamic", "pad_position": "top_left", "whole_image_resize": "pad"},
}


def processor(name: str) -> MM1ImageProcessor:
    plain = {"do_rescale": False, "do_normalize": False, "pad_value": 0, "resample": 0}
    return MM1ImageProcessor(size={"height": TILE, "width": TILE}, **plain, **SETTINGS[name])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("height", "width"), [(120, 90), (60, 200), (300, 280), (31, 17)])
def test_a_box_is_where_its_pixels_are_in_every_tile(name, height, width):
    box = Box(width // 5, height // 4, width - width // 4, height - height // 6)
    picture = np.full((height, width, 3), 100, dtype=np.uint8)
    picture[box.y1 : box.y2, box.x1 : box.x2] = 255
    tiles = processor(name)(Image.fromarray(picture))["pixel_values"]
    (views,) = tile_views([(height, width)], processor(name))
    assert len(views) == len(tiles)
    # The pixel centres that lie in the box, and in the picture, by the view's own word.
    centres = np.arange(TILE) + 0.5
    for view, tile in zip(views, tiles, strict=True):
        corners = view.to_picture(Box(centres[0], centres[0], centres[-1], centres[-1]))
        x = np.linspace(corners.x1, corners.x2, TILE)[None, :]
        y = np.linspace(corners.y1, corners.y2, TILE)[:, None]
        inside = (x > box.x1) & (x < box.x2) & (y > box.y1) & (y < box.y2)
        shown = (x > 0) & (x < width) & (y > 0) & (y < height)
        expected = np.where(inside, 255, np.where(shown, 100, 0))
        # Nearest sampling may round to the neighbour where a centre meets an edge.
        assert (expected != tile[0]).mean() < 0.03
        assert (view.shown is None) == (tile == 0).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from(sorted(SETTINGS)), st.data())
def test_points_come_back_and_every_pixel_is_shown(height, width, name, data):
    (views,) = tile_views([(height, width)], processor(name))
    point = Point(data.draw(st.floats(0, width)), data.draw(st.floats(0, height)))
    inside = []
    for view in views:
        there = view.to_tile(point)
        assert view.to_picture(there) == pytest.approx(point, abs=1e-6 * max(height, width))
        inside.append(all(-1e-6 <= value <= TILE + 1e-6 for value in there))
    overview = [index for index, view in enumerate(views) if view.row == 0]
    assert len(overview) == (len(views) > 1) and all(inside[index] for index in overview)
    # In one tile, or on the line between two or four.
    assert any(inside[index] for index in range(len(views)) if index not in overview)


def test_pictures_of_a_sample_are_laid_out_together():
    sizes = [(100, 50), (50, 100), (70, 70)]
    views = tile_views(sizes, processor("dynamic"))
    assert [len(tiles) for tiles in views] == [1, 1, 1]
    assert [(tiles[0].row, tiles[0].height, tiles[0].width) for tiles in views] == [(1, *size) for size in sizes]
