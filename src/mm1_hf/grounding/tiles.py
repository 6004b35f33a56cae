"""Converts positions in an image to positions in the tiles that the encoder sees, and back."""

from dataclasses import dataclass
from typing import TypeVar

from mm1_hf.grounding.regions import Box, Point
from mm1_hf.model.image_processing_mm1 import MM1ImageProcessor
from mm1_hf.model.tiling import ImageLayout, image_layout, place_in_canvas, sample_layouts


_RegionT = TypeVar("_RegionT", Point, Box)


@dataclass(frozen=True)
class TileView:
    """
    The part of an image that a tile shows. The image is scaled and shifted, and padded where it does not fill the
    tile.

    Args:
        row: row of the tile in the grid, counted from 1; 0 for the overview.
        col: column of the tile in the grid, counted from 1; 0 for the overview.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
        tile_size: side of the tile, in pixels.
        scale_y: vertical scale, in pixels of the tile per pixel of the image.
        scale_x: horizontal scale, in pixels of the tile per pixel of the image.
        top: distance from the tile's upper side to the image's upper side, in pixels of the tile; negative if the
            image begins above the tile.
        left: distance from the tile's left side to the image's left side, in pixels of the tile; negative if the image
            begins to the left of the tile.
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
        """The part of the image that the tile shows, in pixels of the image; `None` if the tile holds only padding."""
        corners = self.to_picture(Box(0, 0, self.tile_size, self.tile_size))
        x1, y1 = max(corners.x1, 0), max(corners.y1, 0)
        x2, y2 = min(corners.x2, self.width), min(corners.y2, self.height)
        return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None

    def to_tile(self, region: _RegionT) -> _RegionT:
        """
        Converts a region of the image to the tile.

        Args:
            region: the region, in pixels of the image.

        Returns:
            The region in pixels of the tile. It is not clipped to the tile.
        """
        scales, shifts = (self.scale_x, self.scale_y) * 2, (self.left, self.top) * 2
        values = [value * scales[index] + shifts[index] for index, value in enumerate(region)]
        return type(region)(*values)

    def to_picture(self, region: _RegionT) -> _RegionT:
        """
        Converts a region of the tile to the image.

        Args:
            region: the region, in pixels of the tile.

        Returns:
            The region in pixels of the image. It is not clipped to the image.
        """
        scales, shifts = (self.scale_x, self.scale_y) * 2, (self.left, self.top) * 2
        values = [(value - shifts[index]) / scales[index] for index, value in enumerate(region)]
        return type(region)(*values)


def tile_views(image_sizes: list[tuple[int, int]], image_processor: MM1ImageProcessor) -> list[list[TileView]]:
    """
    Computes which part of its image each tile of a sample shows, in the order of `pixel_values`.

    Args:
        image_sizes: `(height, width)` in pixels of each image of the sample.
        image_processor: the model's image processor, whose settings determine the tiles.

    Returns:
        One list of tiles for each image.

    Raises:
        ValueError: a setting is not valid, or an image has no pixels.

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
