"""Where a picture's pixels are in the tiles that the encoder sees, and the reverse."""

from dataclasses import dataclass
from typing import TypeVar

from mm1_hf.grounding.regions import Box, Point
from mm1_hf.model.image_processing_mm1 import MM1ImageProcessor
from mm1_hf.model.tiling import ImageLayout, image_layout, place_in_canvas, sample_layouts


_RegionT = TypeVar("_RegionT", Point, Box)


@dataclass(frozen=True)
class TileView:
    """
    What a tile shows of its picture: a scaled and shifted part, with padding where the picture ends.

    Args:
        row: from 1; 0 for the overview.
        col: from 1; 0 for the overview.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        tile_size: side of the tile, in pixels.
        scale_y: pixels of the tile for one of the picture, downwards.
        scale_x: the same, to the right.
        top: where the picture's upper side is in the tile, in its pixels; negative where it is above.
        left: where the picture's left side is in the tile.
    """

    row: int
    col: int
    height: int
    width: int
    tile_size: int
    scale_y: float
    scale_x: float
    top: float
    left: float

    @property
    def shown(self) -> Box | None:
        """The part of the picture that the tile shows, in the picture's pixels; `None` if it holds nothing but padding."""
        corners = self.to_picture(Box(0, 0, self.tile_size, self.tile_size))
        x1, y1 = max(corners.x1, 0), max(corners.y1, 0)
        x2, y2 = min(corners.x2, self.width), min(corners.y2, self.height)
        return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None

    def to_tile(self, region: _RegionT) -> _RegionT:
        """
        Args:
            region: in the picture's pixels.

        Returns:
            The same in the tile's, beyond its sides too.
        """
        scales, shifts = (self.scale_x, self.scale_y) * 2, (self.left, self.top) * 2
        values = [value * scales[index] + shifts[index] for index, value in enumerate(region)]
        return type(region)(*values)

    def to_picture(self, region: _RegionT) -> _RegionT:
        """
        Args:
            region: in the tile's pixels.

        Returns:
            The same in the picture's, beyond its sides too.
        """
        scales, shifts = (self.scale_x, self.scale_y) * 2, (self.left, self.top) * 2
        values = [(value - shifts[index]) / scales[index] for index, value in enumerate(region)]
        return type(region)(*values)


def tile_views(image_sizes: list[tuple[int, int]], image_processor: MM1ImageProcessor) -> list[list[TileView]]:
    """
    The tiles of a sample's pictures, in the order of `pixel_values`.

    Args:
        image_sizes: `(height, width)` in pixels of each picture of the sample.
        image_processor: the model's own; its settings decide.

    Returns:
        For every picture its tiles.

    Raises:
        ValueError: a setting that cannot be used, or a picture without a pixel.

    Example:

    ```python
    >>> from mm1_hf import MM1ImageProcessor
    >>> from mm1_hf.grounding.regions import Point
    >>> from mm1_hf.grounding.tiles import tile_views

    >>> (views,) = tile_views([(100, 200)], MM1ImageProcessor(size={"height": 56, "width": 56}))
    >>> [(view.row, view.col) for view in views]
    [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3), (2, 4), (0, 0)]
    >>> round(views[-1].to_tile(Point(100, 50)).x)
    28

    ```
    """
    config = image_processor.tiling_config()
    views = []
    for (height, width), layout in zip(image_sizes, sample_layouts(image_sizes, config), strict=True):
        tiles = _views(height, width, layout, config.tile_size, image_processor.pad_position)
        if layout.overview:
            whole = image_layout(height, width, config, split=False)
            overview = _views(height, width, whole, config.tile_size, image_processor.pad_position, is_overview=True)
            tiles = overview + tiles if config.overview == "before" else tiles + overview
        views.append(tiles)
    return views


def _views(
    height: int, width: int, layout: ImageLayout, tile_size: int, pad_position: str, is_overview: bool = False
) -> list[TileView]:
    top, left = place_in_canvas(layout, tile_size, pad_position)
    return [
        TileView(
            row=0 if is_overview else row + 1,
            col=0 if is_overview else col + 1,
            height=height,
            width=width,
            tile_size=tile_size,
            scale_y=layout.resized_height / height,
            scale_x=layout.resized_width / width,
            top=top - row * tile_size,
            left=left - col * tile_size,
        )
        for row in range(layout.rows)
        for col in range(layout.cols)
    ]
