"""What drawn pages are drawn on: colours of ink and paper, and backgrounds."""

import random
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw


Colour = tuple[int, int, int]

_SMALLEST_CONTRAST = 4.5
_DARK_SHARE = 0.15
_BLACK_ON_WHITE_SHARE = 0.5
_KINDS = ("plain", "plain", "plain", "gradient", "grain", "ruled")
_GRAIN = 64


@dataclass(frozen=True)
class Paper:
    """
    The paper and the ink of a page.

    Args:
        kind: `"plain"`, `"gradient"` (a little darker or brighter to the bottom), `"grain"` or `"ruled"`.
        colour: colour of the paper.
        ink: colour of the letters.
        seed: seed of the grain.
    """

    kind: str
    colour: Colour
    ink: Colour
    seed: int

    def picture(self, width: int, height: int, line: int) -> Image.Image:
        """
        An empty page.

        Args:
            width, height: its size, in pixels.
            line: distance of ruled lines, in pixels.
        """
        picture = Image.new("RGB", (width, height), self.colour)
        if self.kind == "gradient":
            # Towards the ink by a tenth, so that the letters can still be read.
            end = Image.new("RGB", (width, height), _between(self.colour, self.ink, 0.1))
            picture = Image.composite(end, picture, Image.linear_gradient("L").resize((width, height)))
        elif self.kind == "grain":
            noise = Image.frombytes("L", (_GRAIN, _GRAIN), random.Random(self.seed).randbytes(_GRAIN * _GRAIN))
            tile = noise.point([level * 16 // 255 for level in range(256)]).convert("RGB")
            grain = Image.new("RGB", (width, height))
            for left in range(0, width, _GRAIN):
                for top in range(0, height, _GRAIN):
                    grain.paste(tile, (left, top))
            is_dark = luminance(self.colour) < luminance(self.ink)
            picture = (ImageChops.add if is_dark else ImageChops.subtract)(picture, grain)
        elif self.kind == "ruled":
            pen = ImageDraw.Draw(picture)
            for top in range(line, height, line):
                pen.line((0, top, width, top), _between(self.colour, self.ink, 0.2))
        return picture


def draw_paper(draw: random.Random) -> Paper:
    """
    A paper and an ink that can be read on it.

    Args:
        draw: the random number generator.
    """
    kind, seed = draw.choice(_KINDS), draw.getrandbits(32)
    if draw.random() < _BLACK_ON_WHITE_SHARE:
        return Paper(kind, (255, 255, 255), (0, 0, 0), seed)
    while True:
        bright: Colour = (draw.randint(190, 255), draw.randint(190, 255), draw.randint(190, 255))
        dark: Colour = (draw.randint(0, 120), draw.randint(0, 120), draw.randint(0, 120))
        if contrast(bright, dark) >= _SMALLEST_CONTRAST:
            break
    return Paper(kind, dark, bright, seed) if draw.random() < _DARK_SHARE else Paper(kind, bright, dark, seed)


def contrast(first: Colour, second: Colour) -> float:
    """
    The contrast of two colours, from 1 to 21, as WCAG 2 defines it.

    Args:
        first, second: the colours, as levels from 0 to 255.
    """
    brighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def luminance(colour: Colour) -> float:
    """
    The relative luminance of a colour, from 0 to 1, as WCAG 2 defines it.

    Args:
        colour: levels from 0 to 255.
    """
    shares = [level / 255 for level in colour]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _between(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(one + (other - one) * share) for one, other in zip(first, second, strict=True))
    return red, green, blue
