"""Decides which web pages become interleaved documents, and which of their images are kept (MM1, appendix A.1)."""

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass

from mm1_hf.data.documents import Document, ImagePart, Unusable


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


class ImageRepeats:
    """
    Counts on how many pages of a data set each image appears. Images are identified by their address and by the MD5
    hash of their file. All pages have to be added before the first page is filtered. A thousand images take about 0.2
    MB.
    """

    def __init__(self) -> None:
        self._pages: Counter[bytes] = Counter()

    def add(self, page: Document) -> None:
        """
        Counts the images of a page, each image once. An image that cannot be read is counted by its address only.

        Args:
            page: a page as [`~mm1_hf.corpus.html.html_document`] returns it.
        """
        self._pages.update({key for image in page.images for key in _keys(image)})

    def number(self, image: ImagePart) -> int:
        """
        Returns the number of pages with this address or with this file, whichever is higher.

        Args:
            image: an image of one of the pages.
        """
        return max((self._pages[key] for key in _keys(image)), default=0)


def filter_page(
    page: Document, repeats: ImageRepeats, counts: Counter[str], rules: PageRules | None = None
) -> Document | None:
    """
    Returns a page with the images that are kept, or `None` if the page does not become an interleaved document. The
    text around a dropped image is kept.

    Args:
        page: a page as [`~mm1_hf.corpus.html.html_document`] returns it.
        repeats: the image counts of all pages.
        counts: number of pages and images that were kept (`"page"`, `"image"`) and dropped (`"page: <reason>"`,
            `"image: <reason>"`); this page and its images are added.
        rules: the limits; unset, those of the paper.
    """
    rules = rules or PageRules()
    why = None
    if not page.images:
        why = "no image"
    elif len(page.images) > rules.max_images:
        why = f"more than {rules.max_images} images"
    if why:
        counts[f"page: {why}"] += 1
        return None
    parts: list[str | ImagePart] = []
    seen: set[bytes] = set()
    for part in page.parts:
        if isinstance(part, ImagePart):
            keys = _keys(part)
            why = "repeated on its page" if seen.intersection(keys) else _fault(part, repeats, rules)
            seen.update(keys)
            counts[f"image: {why}" if why else "image"] += 1
            if why is None:
                parts.append(part)
        elif parts and isinstance(parts[-1], str):
            parts[-1] += part
        else:
            parts.append(part)
    if not any(isinstance(part, ImagePart) for part in parts):
        counts["page: no image kept"] += 1
        return None
    counts["page"] += 1
    return Document(page.kind, tuple(parts), page.name)


def _fault(image: ImagePart, repeats: ImageRepeats, rules: PageRules) -> str | None:
    """The reason to drop an image, or `None` if it is kept."""
    address = _address(image)
    address = address if re.match("https?://", address) else os.path.basename(address)
    if any(word in address.lower() for word in rules.url_words):
        return "excluded word in address"
    try:
        width, height = image.load().size
    except Unusable as error:
        return error.reason
    shorter, longer = sorted((width, height))
    if longer > rules.max_aspect_ratio * shorter:
        return "aspect ratio"
    if shorter < rules.min_side or longer > rules.max_side:
        return "size"
    if repeats.number(image) > rules.max_repeats:
        return "repeated in the data set"
    return None


def _address(image: ImagePart) -> str:
    is_address = isinstance(image.source, str) and not image.source.startswith("data:")
    return str(image.source) if is_address else ""


def _keys(image: ImagePart) -> list[bytes]:
    """The hashes that identify an image: of its address and of its file."""
    keys = [hashlib.md5(_address(image).encode()).digest()] if _address(image) else []
    try:
        return [*keys, hashlib.md5(image.read()).digest()]
    except Unusable:
        return keys
