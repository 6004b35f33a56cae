"""Draws regions on an image."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from mm1_hf.grounding.regions import Box, Region


# The colours of Okabe and Ito, which colour-blind readers can distinguish.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")


def draw_regions(image: Image.Image, regions: Sequence[Region], labels: Sequence[str] | None = None) -> Image.Image:
    """
    Returns a copy of an image with regions drawn on it, boxes as outlines and points as discs. Regions have different
    colours, which repeat after seven regions.

    Args:
        image: any Pillow image.
        regions: the regions, in pixels of the image.
        labels: the text to write beside each region; unset, none.

    Returns:
        The copy, in RGB.

    Raises:
        ValueError: the numbers of labels and regions differ.
    """
    if labels is not None and len(labels) != len(regions):
        raise ValueError(
            f"There are {len(labels)} labels for {len(regions)} regions; pass one label for each region, or no labels."
        )
    drawn = image.convert("RGB")
    if drawn is image:
        drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    line = max(1, round(max(drawn.size) / 250))
    font = ImageFont.load_default(max(10, round(max(drawn.size) / 35)))
    for index, region in enumerate(regions):
        colour = COLOURS[index % len(COLOURS)]
        if isinstance(region, Box):
            corner = (region.x1, region.y1)
            pen.rectangle(tuple(region), outline=colour, width=line)
        else:
            radius = 2 * line
            corner = (region.x + radius, region.y + radius)
            pen.ellipse((region.x - radius, region.y - radius, *corner), fill=colour, outline="white")
        if labels is not None:
            _write(pen, corner, labels[index], colour, font, drawn.size)
    return drawn


def _write(pen: ImageDraw.ImageDraw, corner, text: str, colour: str, font, size: tuple[int, int]) -> None:
    """Writes a label on a filled rectangle, which is moved to lie inside the image."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    x = max(0, min(corner[0], size[0] - (right - left) - 4))
    y = max(0, min(corner[1], size[1] - (bottom - top) - 4))
    pen.rectangle((x, y, x + right - left + 3, y + bottom - top + 3), fill=colour)
    pen.text((x + 2 - left, y + 2 - top), text, fill="white", font=font)
