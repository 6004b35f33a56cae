"""The grid an image gets, the rules of splitting, and the text its tiles are written as."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm1_hf.model.tiling import (
    Grid,
    ImageLayout,
    TilingConfig,
    image_layout,
    images_to_split,
    placeholder_text,
    sample_layouts,
    select_grid,
)


VECTORS = json.loads((Path(__file__).parent / "anyres_grids.json").read_text())

sides = st.integers(1, 4000)
# Ranges that hold a square number, which select_grid asks for.
tile_ranges = st.sampled_from([(1, 1), (1, 9), (2, 5), (4, 4), (4, 9), (4, 16), (5, 10)])


def describe(vector: dict) -> str:
    return f"{vector['height']}x{vector['width']}-{vector['n_min']}to{vector['n_max']}"


@pytest.mark.parametrize("vector", VECTORS, ids=describe)
def test_grid_equals_the_reference_vectors(vector: dict) -> None:
    size = (vector["height"], vector["width"])
    grid = select_grid(*size, vector["tile_size"], vector["n_min"], vector["n_max"])
    assert grid == Grid(vector["rows"], vector["cols"], vector["resized_height"], vector["resized_width"])
    config = TilingConfig(vector["tile_size"], min_tiles=vector["n_min"], max_tiles=vector["n_max"])
    assert image_layout(*size, config, split=True).num_tiles == vector["images"]


def test_reference_vectors_are_all_there() -> None:
    assert len(VECTORS) == 18


def brute_force_grid(height: int, width: int, tile: int, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """The definition, said again with fractions: `(rows, cols)`."""
    candidates = []
    for rows in range(1, max_tiles + 1):
        for cols in range(1, max_tiles + 1):
            scale = Fraction(tile * max(rows, cols), max(height, width))
            fits = scale * height <= rows * tile and scale * width <= cols * tile
            if min_tiles <= rows * cols <= max_tiles and fits:
                padding = rows * cols * tile**2 - scale * height * scale * width
                candidates.append((scale, padding, rows * cols, rows, cols))
    without_shrinking = [candidate for candidate in candidates if candidate[0] >= 1]
    if without_shrinking:
        return min(without_shrinking, key=lambda candidate: candidate[1:3])[3:]
    return min(candidates, key=lambda candidate: (-candidate[0], candidate[2]))[3:]


@given(sides, sides, st.sampled_from([7, 224, 672]), tile_ranges)
def test_grid_equals_a_brute_force_search(height: int, width: int, tile: int, tiles: tuple[int, int]) -> None:
    grid = select_grid(height, width, tile, *tiles)
    assert (grid.rows, grid.cols) == brute_force_grid(height, width, tile, *tiles)


@given(sides, sides, tile_ranges)
def test_grid_stays_in_its_range_and_holds_the_image(height: int, width: int, tiles: tuple[int, int]) -> None:
    grid = select_grid(height, width, 672, *tiles)
    assert tiles[0] <= grid.rows * grid.cols <= tiles[1]
    assert 1 <= grid.resized_height <= grid.rows * 672
    assert 1 <= grid.resized_width <= grid.cols * 672
    assert max(grid.resized_height, grid.resized_width) == max(grid.rows, grid.cols) * 672


@given(sides, sides)
def test_scaled_image_keeps_its_aspect_ratio_within_half_a_pixel(height: int, width: int) -> None:
    grid = select_grid(height, width)
    scale = Fraction(max(grid.resized_height, grid.resized_width), max(height, width))
    for side, resized in ((height, grid.resized_height), (width, grid.resized_width)):
        assert abs(side * scale - resized) <= Fraction(1, 2) or resized == 1


@given(sides, sides, st.integers(1, 50))
def test_grid_does_not_depend_on_the_unit_of_length(height: int, width: int, factor: int) -> None:
    small, large = select_grid(height, width, 100), select_grid(height * factor, width * factor, 100 * factor)
    assert (small.rows, small.cols) == (large.rows, large.cols)


@given(sides, sides)
def test_turning_an_image_turns_its_grid(height: int, width: int) -> None:
    grid, turned = select_grid(height, width), select_grid(width, height)
    assert grid == Grid(turned.cols, turned.rows, turned.resized_width, turned.resized_height)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(1, 100_000, Grid(1, 9, 1, 6048)), (100_000, 1, Grid(9, 1, 6048, 1))]
)
def test_extreme_aspect_ratios_keep_a_pixel(height: int, width: int, expected: Grid) -> None:
    assert select_grid(height, width) == expected


def test_of_grids_that_scale_down_alike_the_smaller_wins() -> None:
    # 3 x 1 and 3 x 2 both scale it to 300 x 100, and grids of a longer side are too narrow for it.
    assert select_grid(900, 300, 100, 3, 6) == Grid(3, 1, 300, 100)


def test_of_grids_with_equal_padding_the_smaller_wins() -> None:
    # 1 x 1 pads 1 - 1/4 of a tile, 3 x 1 pads 3 - 9/4.
    assert select_grid(40, 10, 100, 1, 3) == Grid(1, 1, 100, 25)


def test_a_grid_that_needs_no_scaling_down_goes_before_one_that_pads_less() -> None:
    # 2 x 2 would pad nothing but lose pixels of the 300 x 300 image; so would 1 x 1.
    assert select_grid(300, 300, 100, 1, 9) == Grid(3, 3, 300, 300)


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (-3, 10)])
def test_images_without_pixels_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"The image is {height} x {width} pixels"):
        select_grid(height, width)
    with pytest.raises(ValueError, match=f"The image is {height} x {width} pixels"):
        image_layout(height, width, TilingConfig(672), split=False)


@pytest.mark.parametrize(("min_tiles", "max_tiles"), [(0, 9), (5, 4), (5, 8), (1, 0), (2, -1)])
def test_ranges_without_a_square_grid_are_refused(min_tiles: int, max_tiles: int) -> None:
    message = f"min_tiles is {min_tiles} and max_tiles is {max_tiles}"
    with pytest.raises(ValueError, match=message):
        select_grid(100, 100, 672, min_tiles, max_tiles)
    with pytest.raises(ValueError, match=message):
        TilingConfig(672, min_tiles=min_tiles, max_tiles=max_tiles)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tile_size", 0),
        ("splitting", "adaptive"),
        ("static_grid", 0),
        ("overview", "first"),
        ("indicators", "xml"),
        ("max_split_images", -1),
        ("split_last", -1),
        ("whole_image_resize", "crop"),
    ],
)
def test_wrong_settings_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value!r}; set it to"):
        TilingConfig(**{"tile_size": 672, name: value})


def test_fewer_than_three_images_are_split() -> None:
    config = TilingConfig(672)
    assert images_to_split(0, config) == []
    assert images_to_split(1, config) == [True]
    assert images_to_split(2, config) == [True, True]
    assert images_to_split(3, config) == [False] * 3


def test_max_split_images_moves_the_limit() -> None:
    assert images_to_split(3, TilingConfig(672, max_split_images=3)) == [True] * 3
    assert images_to_split(1, TilingConfig(672, max_split_images=0)) == [False]


def test_split_last_replaces_the_limit() -> None:
    config = TilingConfig(672, split_last=2)
    assert images_to_split(5, config) == [False, False, False, True, True]
    assert images_to_split(1, config) == [True]
    assert images_to_split(1, TilingConfig(672, split_last=0)) == [False]


def test_nothing_is_split_without_splitting() -> None:
    assert images_to_split(2, TilingConfig(672, splitting="none", split_last=2)) == [False, False]


def test_sample_layouts_count_the_tiles_of_mixed_resolution_examples() -> None:
    layouts = sample_layouts([(672, 672)] * 4, TilingConfig(672, split_last=1))
    assert [layout.num_tiles * 144 for layout in layouts] == [144, 144, 144, 720]


@pytest.mark.parametrize(("tile_size", "canvas"), [(672, 1344), (896, 1792)])
def test_static_splitting_fills_its_canvas(tile_size: int, canvas: int) -> None:
    layout = image_layout(480, 640, TilingConfig(tile_size, splitting="static"), split=True)
    assert layout == ImageLayout(2, 2, canvas, canvas, overview=True)
    assert layout.num_tiles == 5


def test_static_splitting_may_keep_the_aspect_ratio() -> None:
    config = TilingConfig(672, splitting="static", whole_image_resize="pad")
    assert image_layout(480, 640, config, split=True) == ImageLayout(2, 2, 1008, 1344, overview=True)


@pytest.mark.parametrize("splitting", ["none", "static", "dynamic"])
def test_unsplit_images_take_one_tile(splitting: str) -> None:
    squash = TilingConfig(100, splitting=splitting)
    pad = TilingConfig(100, splitting=splitting, whole_image_resize="pad")
    assert image_layout(20, 40, squash, split=False) == ImageLayout(1, 1, 100, 100, overview=False)
    assert image_layout(20, 40, pad, split=False) == ImageLayout(1, 1, 50, 100, overview=False)


def test_an_image_of_one_tile_has_no_overview() -> None:
    assert image_layout(30, 30, TilingConfig(100, min_tiles=1), split=True) == ImageLayout(1, 1, 100, 100, False)
    static = TilingConfig(100, splitting="static", static_grid=1)
    assert image_layout(30, 60, static, split=True) == ImageLayout(1, 1, 100, 100, False)


def test_a_dynamic_grid_keeps_the_aspect_ratio_whatever_whole_images_do() -> None:
    layout = image_layout(480, 640, TilingConfig(672, whole_image_resize="squash"), split=True)
    assert (layout.resized_height, layout.resized_width) == (1008, 1344)


TWO_BY_TWO = ImageLayout(2, 2, 20, 20, overview=True)


@pytest.mark.parametrize(
    ("indicators", "overview", "expected"),
    [
        ("none", "after", "xx" * 5),
        ("none", "before", "xx" * 5),
        ("index", "after", "(3, 1, 1)xx(3, 1, 2)xx(3, 2, 1)xx(3, 2, 2)xx(3, 0, 0)xx"),
        ("index", "before", "(3, 0, 0)xx(3, 1, 1)xx(3, 1, 2)xx(3, 2, 1)xx(3, 2, 2)xx"),
        ("seps", "after", "xx,xx<n>xx,xx:xx"),
        ("seps", "before", "xx:xx,xx<n>xx,xx"),
    ],
)
def test_placeholder_text_of_a_split_image(indicators: str, overview: str, expected: str) -> None:
    config = TilingConfig(10, indicators=indicators, overview=overview)
    assert placeholder_text(TWO_BY_TWO, 3, config, "x", 2) == expected


def test_the_overview_of_the_first_image_is_the_papers() -> None:
    text = placeholder_text(TWO_BY_TWO, 0, TilingConfig(10, indicators="index"), "x", 1)
    assert text.endswith("(0, 0, 0)x")


def test_rows_come_before_columns() -> None:
    layout = ImageLayout(1, 3, 10, 30, overview=True)
    assert placeholder_text(layout, 0, TilingConfig(10, indicators="seps"), "x", 1) == "x,x,x:x"
    layout = ImageLayout(3, 1, 30, 10, overview=True)
    assert placeholder_text(layout, 0, TilingConfig(10, indicators="seps"), "x", 1) == "x<n>x<n>x:x"


@pytest.mark.parametrize("indicators", ["none", "index", "seps"])
def test_an_image_of_one_tile_has_no_indicator(indicators: str) -> None:
    layout = ImageLayout(1, 1, 10, 10, overview=False)
    assert placeholder_text(layout, 1, TilingConfig(10, indicators=indicators), "<image>", 3) == "<image>" * 3


@given(
    st.lists(st.tuples(sides, sides), max_size=4),
    st.sampled_from(["none", "static", "dynamic"]),
    st.sampled_from(["none", "index", "seps"]),
    st.sampled_from(["before", "after"]),
    st.integers(1, 5),
)
def test_placeholders_are_as_many_as_the_tiles_features(
    sizes: list[tuple[int, int]], splitting: str, indicators: str, overview: str, tokens: int
) -> None:
    config = TilingConfig(112, splitting=splitting, indicators=indicators, overview=overview)
    for index, layout in enumerate(sample_layouts(sizes, config)):
        text = placeholder_text(layout, index, config, "<image>", tokens)
        assert text.count("<image>") == layout.num_tiles * tokens
