import numpy as np
import pytest
from PIL import Image, ImageColor

from mm1_hf.grounding.drawing import COLOURS, draw_regions
from mm1_hf.grounding.regions import Box, Point


def test_boxes_and_points_are_drawn_in_their_places_on_a_copy():
    image = Image.new("RGB", (200, 100), "white")
    drawn = draw_regions(image, [Box(20, 10, 120, 60), Point(160, 80)])
    assert np.asarray(image).min() == 255
    first, second = (ImageColor.getrgb(colour) for colour in COLOURS[:2])
    assert drawn.getpixel((20, 30)) == drawn.getpixel((120, 30)) == drawn.getpixel((70, 10)) == first
    assert drawn.getpixel((160, 80)) == second
    ys, xs = np.nonzero((np.asarray(drawn) != 255).any(axis=2))
    assert (xs.min(), ys.min()) == (20, 10) and drawn.getpixel((70, 30)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_labels_are_written_inside_of_any_picture(mode):
    image = Image.new(mode, (60, 40))
    plain = draw_regions(image, [Box(40, 30, 80, 50)])
    labelled = draw_regions(image, [Box(40, 30, 80, 50)], ["a cat"])
    assert labelled.mode == "RGB" and labelled.size == (60, 40)
    changed = np.argwhere((np.asarray(plain) != np.asarray(labelled)).any(axis=2))
    # Whole: from the left of the box, and up from the lower edge.
    assert len(changed) > 100 and changed[:, 1].min() > 0 and changed[:, 0].min() < 30


def test_labels_and_regions_are_as_many():
    with pytest.raises(ValueError, match="1 labels for 2 regions"):
        draw_regions(Image.new("RGB", (9, 9)), [Point(1, 1), Point(2, 2)], ["one"])
