"""How many tiles an image becomes, and how its placeholders are written into the text.

Whatever needs one of the two (image processor, processor, packing, serving) asks here, so that tiles and placeholders
cannot come apart. Pure Python: sizes in, counts and text out. Sizes are `(height, width)` in pixels.
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
    """The tiles an image is cut into, and the size it is scaled to before it is padded to them.

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
    """How images are split, from MM1 (static splitting) and MM1.5 (dynamic splitting, indicators, overview).

    Args:
        tile_size (`int`): Side of a tile in pixels, which is the encoder's input size.
        splitting (`"none" | "static" | "dynamic"`): One tile per image; a fixed square grid; or the grid that suits
            the image's size and shape.
        static_grid (`int`): Rows and columns of the fixed grid: 2 makes 1344 pixels out of tiles of 672.
        min_tiles (`int`): Fewest tiles of a dynamic grid, the overview not counted.
        max_tiles (`int`): Most tiles of a dynamic grid, the overview not counted.
        overview (`"before" | "after"`): Where the whole image in one tile stands among the tiles of a split image.
        indicators (`"none" | "index" | "seps"`): What text tells the position of a tile: nothing, `(k, i, j)`, or
            separators.
        max_split_images (`int`): A sample of more images than this has none of them split.
        split_last (`int`, *optional*): The last so many images of a sample are split, however many it holds, in
            place of the rule of `max_split_images`: MM1's mixed-resolution in-context examples.
        whole_image_resize (`"squash" | "pad"`): How a whole image meets a square (the overview, an image that is not
            split, the canvas of a static grid): both sides resized to it, as the CLIP processors do, or the aspect
            ratio kept and the rest padded. A dynamic grid always keeps the aspect ratio.

    Raises:
        ValueError: If a value is not one of those above, or no image could be cut by it.

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
    """What becomes of one image: its tiles, the size it is scaled to before the cut, and whether an overview joins.

    Args:
        rows (`int`): Tiles from top to bottom.
        cols (`int`): Tiles from left to right.
        resized_height (`int`): Height in pixels of the scaled image inside the `rows * tile_size` canvas.
        resized_width (`int`): Width in pixels of the scaled image inside the `cols * tile_size` canvas.
        overview (`bool`): Whether the whole image is shown once more in a tile of its own.
    """

    rows: int
    cols: int
    resized_height: int
    resized_width: int
    overview: bool

    @property
    def num_tiles(self) -> int:
        """Tiles the encoder sees for this image, the overview included."""
        return self.rows * self.cols + self.overview


def select_grid(height: int, width: int, tile_size: int = 672, min_tiles: int = 4, max_tiles: int = 9) -> Grid:
    """Chooses the grid of tiles for an image (MM1.5, dynamic image splitting).

    Every grid of `min_tiles` to `max_tiles` tiles is a candidate. The image is scaled, its aspect ratio kept, until
    its longer side equals the grid's longer side; a grid it then overflows is dropped. Among the grids that need no
    scaling down the one with the least padding wins; if every grid needs it, the one that scales down least. Of equals
    the one with fewer tiles wins, a rule of this package where the paper is silent.

    Args:
        height (`int`): Height of the image in pixels.
        width (`int`): Width of the image in pixels.
        tile_size (`int`): Side of a tile in pixels.
        min_tiles (`int`): Fewest tiles of a grid.
        max_tiles (`int`): Most tiles of a grid.

    Returns:
        `Grid`: Rows, columns, and the scaled image's size, rounded to whole pixels and at least one pixel each way.

    Raises:
        ValueError: If a side of the image is below one pixel, or the range of tiles holds no square number.

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
            # Compared as integers: a float would now and then drop a grid that the image fills to the last pixel.
            if height * side <= rows * tile_size * image_side and width * side <= cols * tile_size * image_side:
                fitting.append((rows, cols, side))

    def padding(grid: tuple[int, int, int]) -> tuple[int, int]:
        rows, cols, side = grid
        # In pixels times image_side squared, which is the same for every grid.
        return rows * cols * (tile_size * image_side) ** 2 - side**2 * height * width, rows * cols

    def shrinkage(grid: tuple[int, int, int]) -> tuple[int, int]:
        rows, cols, side = grid
        return -side, rows * cols

    enlarging = [grid for grid in fitting if grid[2] >= image_side]
    rows, cols, side = min(enlarging, key=padding) if enlarging else min(fitting, key=shrinkage)
    return Grid(rows, cols, *_scale_to_side(height, width, side))


def images_to_split(num_images: int, config: TilingConfig) -> list[bool]:
    """Says which images of one sample are split.

    MM1.5 splits only in samples of fewer than three images; MM1's mixed-resolution in-context examples split the
    last few of many.

    Args:
        num_images (`int`): Images in the sample.
        config (`TilingConfig`): The settings; `max_split_images` and `split_last` decide.

    Returns:
        `list[bool]`: One entry per image, in order.
    """
    if config.splitting == "none":
        return [False] * num_images
    if config.split_last is not None:
        return [num_images - index <= config.split_last for index in range(num_images)]
    return [num_images <= config.max_split_images] * num_images


def image_layout(height: int, width: int, config: TilingConfig, split: bool) -> ImageLayout:
    """Lays out one image.

    With `split=False` the layout is that of the whole image in one tile, which an overview shares.

    Args:
        height (`int`): Height of the image in pixels.
        width (`int`): Width of the image in pixels.
        config (`TilingConfig`): The settings.
        split (`bool`): Whether the image may be cut, as `images_to_split` says.

    Returns:
        `ImageLayout`: The layout; an image of a single tile has no overview.

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
    """Lays out the images of one sample.

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
    """Says where the scaled image begins in the canvas of its tiles; the rest is padding.

    Args:
        layout (`ImageLayout`): The image's layout.
        tile_size (`int`): Side of a tile in pixels.
        pad_position (`str`): `"center"` or `"top_left"`.

    Returns:
        `tuple[int, int]`: Rows of padding above it and columns to its left, in pixels.
    """
    if pad_position == "top_left":
        return 0, 0
    height, width = layout.rows * tile_size, layout.cols * tile_size
    return (height - layout.resized_height) // 2, (width - layout.resized_width) // 2


def placeholder_text(
    layout: ImageLayout, image_index: int, config: TilingConfig, image_token: str, tokens_per_tile: int
) -> str:
    """Writes what stands for one image in the text: `layout.num_tiles * tokens_per_tile` placeholders.

    Tiles are written row by row, the overview before or after them. The indicators are those of MM1.5: `index` puts
    `(k, i, j)` before each tile, `k` the image's index from 0, `i` and `j` its row and column from 1, both 0 for the
    overview; `seps` puts `,` between columns, `<n>` between rows and `:` between the overview and the tiles. An image
    of a single tile has no indicator.

    Args:
        layout (`ImageLayout`): The image's layout.
        image_index (`int`): The image's index in its sample, from 0.
        config (`TilingConfig`): The settings; `overview` and `indicators` count here.
        image_token (`str`): The placeholder token.
        tokens_per_tile (`int`): Placeholders of one tile, which is what the connector makes of it.

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
        raise ValueError(f"The image is {height} x {width} pixels; pass one of at least 1 x 1 (height x width).")


def _check_tile_range(min_tiles: int, max_tiles: int) -> None:
    # A square image fits no grid but a square one, so the range has to hold 1, 4, 9, ... or some images have no grid.
    if min_tiles < 1 or isqrt(max(max_tiles, 0)) ** 2 < min_tiles:
        raise ValueError(
            f"min_tiles is {min_tiles} and max_tiles is {max_tiles}; set them so that 1 <= min_tiles <= max_tiles and "
            "a square number (1, 4, 9, 16, ...) lies between them, for square images fit square grids alone."
        )


def _scale_to_side(height: int, width: int, side: int) -> tuple[int, int]:
    """`(height, width)` in whole pixels of the image scaled until its longer side is `side` pixels."""
    scale = Fraction(side, max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
