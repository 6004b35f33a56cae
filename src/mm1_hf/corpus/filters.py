"""Decides which web pages become interleaved documents, and which of their images are kept (MM1, appendix A.1)."""

import os
import re
from dataclasses import dataclass

from mm1_hf.data.documents import ImagePart, Unusable


@dataclass(frozen=True)
class PageRules:
    """
    Limits for pages and their images; the defaults are the paper's.

    Args:
        max_images: highest number of images on a page; pages with more images are dropped.
        max_aspect_ratio: highest ratio of an image's longer side to its shorter side.
        min_side: smallest length of an image's shorter side, in pixels.
        max_side: largest length of an image's longer side, in pixels.
        url_words: words in lower case; an image is dropped if its URL, or the file name of its path, contains one.
        max_repeats: highest number of pages of the data set that may show the same image.
    """

    max_images: int = 30
    max_aspect_ratio: float = 2.0
    min_side: int = 100
    max_side: int = 10_000
    url_words: tuple[str, ...] = ("logo", "button", "icon", "plugin", "widget")
    max_repeats: int = 10


def page_fault(images: int, rules: PageRules) -> str | None:
    """
    The reason to drop a page for its number of images, or `None` if it is kept.

    Args:
        images: number of images on the page.
        rules: the limits.
    """
    if images == 0:
        return "no image"
    return f"more than {rules.max_images} images" if images > rules.max_images else None


def address_fault(address: str, rules: PageRules) -> str | None:
    """
    The reason to drop an image for a word in its address, or `None` if it is kept.

    Args:
        address: URL of the image, or its path, of which only the file's name counts. It may be empty.
        rules: the limits.
    """
    address = address if re.match("https?://", address) else os.path.basename(address)
    return "excluded word in address" if any(word in address.lower() for word in rules.url_words) else None


def image_fault(image: ImagePart, rules: PageRules) -> str | None:
    """
    The reason to drop an image for its file or its size, or `None` if it is kept. The image is decoded, as a file may
    break off after its head.

    Args:
        image: the image.
        rules: the limits.
    """
    try:
        width, height = image.load().size
    except Unusable as error:
        return error.reason
    shorter, longer = sorted((width, height))
    if longer > rules.max_aspect_ratio * shorter:
        return "aspect ratio"
    if shorter < rules.min_side or longer > rules.max_side:
        return "size"
    return None
