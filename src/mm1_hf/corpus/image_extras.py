"""
Cheap filters of images that newer data sets use beside MM1's: sharpness, QR codes, and the number of words to an image. No
way uses them unless it is asked for them.
"""

from importlib.util import find_spec

import numpy as np
from datatrove.data import Document as EngineDocument
from datatrove.pipeline.base import PipelineStep
from PIL import Image

from mm1_hf.corpus.steps import ImageRule
from mm1_hf.data.documents import ImagePart


# Longest side at which images are judged, in pixels, so that the numbers do not depend on the size of an image.
_JUDGED_SIDE = 512


def sharpness(image: ImagePart) -> float:
    """
    The variance of the Laplacian of an image's grey levels (0 to 255), at a longest side of 512 pixels: below about 100, an
    image is usually blurred; an image of one colour has 0.

    Args:
        image: the image.
    """
    grey = image.load().convert("L")
    grey.thumbnail((_JUDGED_SIDE, _JUDGED_SIDE), Image.Resampling.BOX)
    levels = np.asarray(grey, np.float64)
    if min(levels.shape) < 3:
        return 0.0
    inner = levels[1:-1, 1:-1]
    laplacian = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:] - 4 * inner
    return float(laplacian.var())


def blurred(image: ImagePart, min_sharpness: float = 100.0) -> str | None:
    """
    The reason to drop an image that is blurred, or `None`.

    Args:
        image: the image.
        min_sharpness: smallest [`sharpness`] of an image that is kept.
    """
    return "blurred" if sharpness(image) < min_sharpness else None


def has_qr_code(image: ImagePart, min_share: float = 0.05) -> str | None:
    """
    The reason to drop an image of which QR codes cover a large part, or `None`. Needs the package `zxing-cpp`.

    Args:
        image: the image.
        min_share: share of the image's area from which on it is dropped.
    """
    import zxingcpp

    pixels = image.load().convert("L")
    pixels.thumbnail((2 * _JUDGED_SIDE, 2 * _JUDGED_SIDE))
    found = zxingcpp.read_barcodes(np.asarray(pixels), formats=zxingcpp.BarcodeFormat.QRCode)  # ty: ignore[invalid-argument-type] -- the stubs know no arrays
    covered = 0.0
    for code in found:
        corners = (
            code.position.top_left,
            code.position.top_right,
            code.position.bottom_right,
            code.position.bottom_left,
        )
        covered += _area([(corner.x, corner.y) for corner in corners])
    return "QR code" if covered >= min_share * pixels.width * pixels.height and found else None


def extra_image_steps(blurred_images: bool, qr_codes: bool) -> list[PipelineStep]:
    """
    The steps that drop such images, of those that are asked for.

    Args:
        blurred_images: whether images that are [`blurred`] are dropped.
        qr_codes: whether images that are mostly QR codes are dropped.

    Raises:
        ValueError: QR codes are asked for, and the package `zxing-cpp` is not installed.
    """
    if qr_codes and find_spec("zxingcpp") is None:
        raise ValueError(
            "Images with QR codes are to be dropped, but zxing-cpp is missing. Install it: pip install zxing-cpp"
        )
    blur = [ImageRule("blurred images", blurred)] if blurred_images else []
    return [*blur, *([ImageRule("QR codes", has_qr_code)] if qr_codes else [])]


def too_little_text(document: EngineDocument, min_words_per_image: float = 10.0) -> str | None:
    """
    The reason to drop a document that has few words for its images, such as a gallery, or `None`.

    Args:
        document: the document.
        min_words_per_image: smallest number of words for each image.
    """
    words = len(document.text.split())
    return "few words for its images" if words < min_words_per_image * len(document.media) else None


def _area(corners: list[tuple[float, float]]) -> float:
    """Area of a polygon."""
    following = [*corners[1:], corners[0]]
    return abs(sum(x * b - a * y for (x, y), (a, b) in zip(corners, following, strict=True))) / 2
