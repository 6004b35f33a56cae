"""Computes how many tiles an image is split into, and writes its placeholder tokens into the text.

Image processor, processor, packing and serving all use this module, so that the numbers of tiles and placeholder
tokens always agree. It is pure Python: it takes sizes and returns counts and text. Sizes are `(height, width)` in
pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Literal, get_args


Splitting = Literal["none", "static", "dynamic"]
OverviewPosition = Literal["before", "after"]
Indicators = Literal["none", "index", "seps"]
WholeImageResize = Literal["squash", "pad"]


@dataclass(frozen=True)
class Grid:
    """The grid of tiles of an image, and the size to which the image is scaled before it is padded to the grid.

    Args:
        rows (`int`): Tiles from top to bottom.
        cols (`int`): Tiles from left to right.
        resized_height (`int`): Height in pixels of the scaled image inside the `rows * tile_size` canvas.
        resized_width (`int`): Width in pixels of the scaled image inside the `cols * tile_size` canvas.
    """

    rows: int
    cols: int
    resized_height: int
    resized_width: int


@dataclass(frozen=True)
class TilingConfig:
    """Settings of image splitting: static splitting is MM1's; dynamic splitting, indicators and overview are MM1.5's.

    Args:
        tile_size (`int`): Side of a tile in pixels, which is the encoder's input size.
        splitting (`"none" | "static" | "dynamic"`): `"none"` makes one tile per image, `"static"` splits every image
            into a fixed square grid, and `"dynamic"` chooses the grid that suits the image's size and shape.
        static_grid (`int`): Number of rows, and of columns, of the fixed grid: with 2 and tiles of 672 pixels, the
            grid is 1344 x 1344 pixels.
        min_tiles (`int`): Fewest tiles of a dynamic grid, the overview not counted.
        max_tiles (`int`): Most tiles of a dynamic grid, the overview not counted.
        overview (`"before" | "after"`): Whether the overview, which shows the whole image in one tile, comes before or
            after the other tiles of a split image.
        indicators (`"none" | "index" | "seps"`): Text that marks the position of a tile: none, `(k, i, j)`, or
            separators; see `placeholder_text`.
        max_split_images (`int`): Images are split only in samples that hold at most this number of images.
        split_last (`int`, *optional*): If set, this number of images at the end of each sample are split, regardless
            of `max_split_images`. MM1 does this in its mixed-resolution in-context examples.
        whole_image_resize (`"squash" | "pad"`): How a whole image is fitted to a square (the overview, an image that
            is not split, the canvas of a static grid): `"squash"` resizes both sides to the square, as the CLIP
            processors do; `"pad"` keeps the aspect ratio and pads the rest. A dynamic grid always keeps the aspect
            ratio.

    Raises:
        ValueError: If a value is not allowed, or no square number lies between `min_tiles` and `max_tiles`.

    Example:

    ```python
    >>> from mm1_hf.model.tiling import TilingConfig, image_layout

    >>> static = TilingConfig(tile_size=672, splitting="static")
    >>> image_layout(1344, 1344, static, split=True).num_tiles
    5

    ```
    """

    tile_size: int
    splitting: Splitting = "dynamic"
    static_grid: int = 2
    min_tiles: int = 4
    max_tiles: int = 9
    overview: OverviewPosition = "after"
    indicators: Indicators = "none"
    max_split_images: int = 2
    split_last: int | None = None
    whole_image_resize: WholeImageResize = "squash"

    def __post_init__(self) -> None:
        choices = {
            "splitting": Splitting,
            "overview": OverviewPosition,
            "indicators": Indicators,
            "whole_image_resize": WholeImageResize,
        }
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                raise ValueError(f"{name} is {getattr(self, name)!r}; set it to one of {', '.join(get_args(choice))}.")
        for name, lowest in {"tile_size": 1, "static_grid": 1, "max_split_images": 0, "split_last": 0}.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name} is {value}; set it to {lowest} or more.")
        _check_tile_range(self.min_tiles, self.max_tiles)


@dataclass(frozen=True)
class ImageLayout:
    """How one image is split: its grid, the size to which it is scaled first, and whether an overview is added.

    Args:
        rows (`int`): Tiles from top to bottom.
        cols (`int`): Tiles from left to right.
        resized_height (`int`): Height in pixels of the scaled image inside the `rows * tile_size` canvas.
        resized_width (`int`): Width in pixels of the scaled image inside the `cols * tile_size` canvas.
        overview (`bool`): Whether one more tile shows the whole image.
    """

    rows: int
    cols: int
    resized_height: int
    resized_width: int
    overview: bool

    @property
    def num_tiles(self) -> int:
        """The number of tiles that the encoder sees for this image, including the overview."""
        return self.rows * self.cols + self.overview


def select_grid(height: int, width: int, tile_size: int = 672, min_tiles: int = 4, max_tiles: int = 9) -> Grid:
    """Chooses the grid of tiles for an image (MM1.5, dynamic image splitting).

    Every grid of `min_tiles` to `max_tiles` tiles is a candidate. For each grid, the image is scaled, with its aspect
    ratio kept, until its longer side equals the grid's longer side; grids into which the scaled image does not fit are
    dropped. Among the grids for which the image is not scaled down, the one with the least padding wins. If the image
    is scaled down for every grid, the grid that scales it down least wins. Ties go to the grid with fewer tiles; this
    rule is a choice of this package, since the paper states none.

    Args:
        height (`int`): Height of the image in pixels.
        width (`int`): Width of the image in pixels.
        tile_size (`int`): Side of a tile in pixels.
        min_tiles (`int`): Fewest tiles of a grid.
        max_tiles (`int`): Most tiles of a grid.

    Returns:
        `Grid`: Rows, columns, and the size of the scaled image, in whole pixels and at least 1 x 1.

    Raises:
        ValueError: If a side of the image is below one pixel, or no square number lies between `min_tiles` and
            `max_tiles`.

    Example:

    ```python
    >>> from mm1_hf.model.tiling import select_grid

    >>> select_grid(height=900, width=1600)
    Grid(rows=2, cols=3, resized_height=1134, resized_width=2016)

    ```
    """
    _check_image_size(height, width)
    _check_tile_range(min_tiles, max_tiles)
    image_side = max(height, width)
    fitting = []
    for rows in range(1, max_tiles + 1):
        for cols in range(-(-min_tiles // rows), max_tiles // rows + 1):
            side = max(rows, cols) * tile_size
            # Compared as integers: rounding errors of floats could drop a grid that the image fills exactly.
            if height * side <= rows * tile_size * image_side and width * side <= cols * tile_size * image_side:
                fitting.append((rows, cols, side))

    def padding(grid: tuple[int, int, int]) -> tuple[int, int]:
        rows, cols, side = grid
        # Multiplied by image_side squared, which is the same for every grid, so that all numbers are integers.
        return rows * cols * (tile_size * image_side) ** 2 - side**2 * height * width, rows * cols

    def shrinkage(grid: tuple[int, int, int]) -> tuple[int, int]:
        rows, cols, side = grid
        return -side, rows * cols

    enlarging = [grid for grid in fitting if grid[2] >= image_side]
    rows, cols, side = min(enlarging, key=padding) if enlarging else min(fitting, key=shrinkage)
    return Grid(rows, cols, *_scale_to_side(height, width, side))


def images_to_split(num_images: int, config: TilingConfig) -> list[bool]:
    """Decides which images of one sample are split.

    MM1.5 splits images only in samples of fewer than three images; MM1's mixed-resolution in-context examples split
    the last few of many images.

    Args:
        num_images (`int`): Number of images in the sample.
        config (`TilingConfig`): The settings; `splitting`, `max_split_images` and `split_last` are used.

    Returns:
        `list[bool]`: For each image in order, whether it is split.
    """
    if config.splitting == "none":
        return [False] * num_images
    if config.split_last is not None:
        return [num_images - index <= config.split_last for index in range(num_images)]
    return [num_images <= config.max_split_images] * num_images


def image_layout(height: int, width: int, config: TilingConfig, split: bool) -> ImageLayout:
    """Computes the layout of one image.

    With `split=False` the layout is that of the whole image in one tile, which is also the layout of an overview.

    Args:
        height (`int`): Height of the image in pixels.
        width (`int`): Width of the image in pixels.
        config (`TilingConfig`): The settings.
        split (`bool`): Whether the image may be split, as decided by `images_to_split`.

    Returns:
        `ImageLayout`: The layout. An image that makes a single tile has no overview.

    Raises:
        ValueError: If a side of the image is below one pixel.
    """
    _check_image_size(height, width)
    if split and config.splitting == "dynamic":
        grid = select_grid(height, width, config.tile_size, config.min_tiles, config.max_tiles)
        rows, cols, resized = grid.rows, grid.cols, (grid.resized_height, grid.resized_width)
    else:
        rows = cols = config.static_grid if split and config.splitting == "static" else 1
        side = rows * config.tile_size
        resized = (side, side) if config.whole_image_resize == "squash" else _scale_to_side(height, width, side)
    return ImageLayout(rows, cols, *resized, overview=rows * cols > 1)


def sample_layouts(image_sizes: Sequence[tuple[int, int]], config: TilingConfig) -> list[ImageLayout]:
    """Computes the layouts of the images of one sample.

    Args:
        image_sizes (`Sequence[tuple[int, int]]`): `(height, width)` in pixels of each image, in reading order.
        config (`TilingConfig`): The settings.

    Returns:
        `list[ImageLayout]`: One layout per image.

    Raises:
        ValueError: If a side of an image is below one pixel.

    Example:

    ```python
    >>> from mm1_hf.model.tiling import TilingConfig, sample_layouts

    >>> config = TilingConfig(tile_size=672)
    >>> [layout.num_tiles for layout in sample_layouts([(900, 1600), (480, 640)], config)]
    [7, 5]
    >>> [layout.num_tiles for layout in sample_layouts([(900, 1600)] * 3, config)]
    [1, 1, 1]

    ```
    """
    splits = images_to_split(len(image_sizes), config)
    return [
        image_layout(height, width, config, split) for (height, width), split in zip(image_sizes, splits, strict=True)
    ]


def place_in_canvas(layout: ImageLayout, tile_size: int, pad_position: str) -> tuple[int, int]:
    """Computes where the scaled image begins in the canvas of its tiles; the rest of the canvas is padding.

    Args:
        layout (`ImageLayout`): The image's layout.
        tile_size (`int`): Side of a tile in pixels.
        pad_position (`str`): `"center"` or `"top_left"`.

    Returns:
        `tuple[int, int]`: Padding above the image and to its left, in pixels.
    """
    if pad_position == "top_left":
        return 0, 0
    height, width = layout.rows * tile_size, layout.cols * tile_size
    return (height - layout.resized_height) // 2, (width - layout.resized_width) // 2


def placeholder_text(
    layout: ImageLayout, image_index: int, config: TilingConfig, image_token: str, tokens_per_tile: int
) -> str:
    """Writes the text that stands for one image: its placeholder tokens and position indicators.

    There are `layout.num_tiles * tokens_per_tile` placeholder tokens. Tiles are written row by row, with the overview
    before or after them. The indicators are those of MM1.5: `index` writes `(k, i, j)` before each tile, where `k` is
    the index of the image, counted from 0, and `i` and `j` are the row and column of the tile, counted from 1, or both
    0 for the overview. `seps` writes `,` between columns, `<n>` between rows and `:` between the overview and the
    other tiles. An image that makes a single tile has no indicator.

    Args:
        layout (`ImageLayout`): The image's layout.
        image_index (`int`): Index of the image in its sample, counted from 0.
        config (`TilingConfig`): The settings; `overview` and `indicators` are used.
        image_token (`str`): The placeholder token.
        tokens_per_tile (`int`): Placeholder tokens per tile, as many as the connector outputs for a tile.

    Returns:
        `str`: The text.

    Example:

    ```python
    >>> from mm1_hf.model.tiling import ImageLayout, TilingConfig, placeholder_text

    >>> layout = ImageLayout(rows=1, cols=2, resized_height=672, resized_width=1344, overview=True)
    >>> config = TilingConfig(tile_size=672, indicators="index")
    >>> placeholder_text(layout, image_index=0, config=config, image_token="<image>", tokens_per_tile=1)
    '(0, 1, 1)<image>(0, 1, 2)<image>(0, 0, 0)<image>'

    ```
    """
    indexed = config.indicators == "index" and layout.num_tiles > 1
    separated = config.indicators == "seps"
    between_cols, between_rows, beside_overview = (",", "<n>", ":") if separated else ("", "", "")

    def tile(row: int, col: int) -> str:
        return (f"({image_index}, {row}, {col})" if indexed else "") + image_token * tokens_per_tile

    text = between_rows.join(
        between_cols.join(tile(row, col) for col in range(1, layout.cols + 1)) for row in range(1, layout.rows + 1)
    )
    if not layout.overview:
        return text
    parts = [tile(0, 0), text] if config.overview == "before" else [text, tile(0, 0)]
    return beside_overview.join(parts)


def _check_image_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"The image is {height} x {width} pixels (height x width); pass an image of at least 1 x 1.")


def _check_tile_range(min_tiles: int, max_tiles: int) -> None:
    # A square image fits only into a square grid, so without 1, 4, 9, ... in the range it would have no grid.
    if min_tiles < 1 or isqrt(max(max_tiles, 0)) ** 2 < min_tiles:
        raise ValueError(
            f"min_tiles is {min_tiles} and max_tiles is {max_tiles}; set them so that 1 <= min_tiles <= max_tiles and "
            "the range includes a square number (1, 4, 9, 16, ...), because square images only fit into square grids."
        )


def _scale_to_side(height: int, width: int, side: int) -> tuple[int, int]:
    """`(height, width)` in whole pixels of an image that is scaled until its longer side is `side` pixels."""
    scale = Fraction(side, max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
