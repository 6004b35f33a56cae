"""Which web pages become interleaved documents, and which of their images stay (MM1, appendix A.1)."""

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
        max_images: of a page.
        max_aspect_ratio: of an image's longer side to its shorter.
        min_side: of an image in pixels.
        max_side: of an image in pixels.
        url_words: that no image's address may contain; of a file only its name counts.
        max_repeats: pages of the data set that an image may be on.
    """

    max_images: int = 30
    max_aspect_ratio: float = 2.0
    min_side: int = 100
    max_side: int = 10_000
    url_words: tuple[str, ...] = ("logo", "button", "icon", "plugin", "widget")
    max_repeats: int = 10


class ImageRepeats:
    """
    On how many pages of a data set an image is, told by its address and by the MD5 of its file. Every page has to be added
    before the first is filtered. A thousand images take about 0.2 MB.
    """

    def __init__(self) -> None:
        self._pages: Counter[bytes] = Counter()

    def add(self, page: Document) -> None:
        """
        Counts the images of a page, each once; one that cannot be read by its address alone.

        Args:
            page: as [`~mm1_hf.corpus.html.html_document`] gives it.
        """
        self._pages.update({key for image in page.images for key in _keys(image)})

    def number(self, image: ImagePart) -> int:
        """
        Pages with this address or this file, whichever are more.

        Args:
            image: of one of the pages.
        """
        return max((self._pages[key] for key in _keys(image)), default=0)


def filter_page(
    page: Document, repeats: ImageRepeats, counts: Counter[str], rules: PageRules | None = None
) -> Document | None:
    """
    A page with the images that may stay, or `None` where it is no interleaved document. The text around an image that is
    left out stays.

    Args:
        page: as [`~mm1_hf.corpus.html.html_document`] gives it.
        repeats: of all pages' images.
        counts: grows by what is kept (`"page"`, `"image"`) and left out (`"page: "` or `"image: "` and why).
        rules: unset, the paper's.
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
        counts["page: no image that may stay"] += 1
        return None
    counts["page"] += 1
    return Document(page.kind, tuple(parts), page.name)


def _fault(image: ImagePart, repeats: ImageRepeats, rules: PageRules) -> str | None:
    """Why an image is left out."""
    address = _address(image)
    address = address if re.match("https?://", address) else os.path.basename(address)
    if any(word in address.lower() for word in rules.url_words):
        return "a word in its address"
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
    """What tells an image: its address and its file, as hashes."""
    keys = [hashlib.md5(_address(image).encode()).digest()] if _address(image) else []
    try:
        return [*keys, hashlib.md5(image.read()).digest()]
    except Unusable:
        return keys
