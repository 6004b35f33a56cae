"""Questions about one or two drawn images, shared by the examples of preference and reward training."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw


COLOURS = ("red", "green", "blue", "yellow", "black", "teal")


@dataclass(frozen=True)
class Question:
    """A question with its images, its right answer and a wrong answer."""

    images: list[Image.Image]
    text: str
    answer: str
    wrong: str


def picture(colour: str, draw: random.Random) -> Image.Image:
    """Draws a shape of this colour at a random place on a grey background."""
    image = Image.new("RGB", (64, 64), (230, 230, 230))
    canvas = ImageDraw.Draw(image)
    side = draw.randint(20, 40)
    left, top = draw.randint(0, 63 - side), draw.randint(0, 63 - side)
    shape = draw.choice((canvas.ellipse, canvas.rectangle))
    shape((left, top, left + side, top + side), fill=colour)
    return image


def questions(number: int, seed: int) -> Iterator[Question]:
    """Yields questions; every second question is about two images."""
    draw = random.Random(seed)
    for index in range(number):
        first, second = draw.sample(COLOURS, 2)
        if index % 2:
            text = "What colours are the shapes in the first and the second image?"
            pictures = [picture(first, draw), picture(second, draw)]
            yield Question(pictures, text, f"{first}, {second}", f"{second}, {first}")
        else:
            yield Question([picture(first, draw)], "What colour is the shape in the image?", first, second)
