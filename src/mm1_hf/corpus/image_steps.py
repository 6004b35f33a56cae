"""The rules of [`mm1_hf.corpus.filters`] for pages and their images, as steps."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial

from datatrove.data import Document as EngineDocument
from datatrove.data import Media

from mm1_hf.corpus.filters import PageRules, address_fault, image_fault, page_fault
from mm1_hf.corpus.steps import CountedStep, DocumentRule, ImageRule
from mm1_hf.data.documents import Unusable


PAPER = PageRules()
# A document after its last image was dropped.
NO_IMAGE_LEFT = "no image left"


def address_key(image: Media) -> bytes | None:
    """
    The MD5 hash of an image's URL, or of its path if it is a local file, by which repeats are found. A fragment (`#...`)
    does not belong to the URL. `None` if the image lies in the page itself.

    Args:
        image: an image of a document.
    """
    address = (image.url.partition("#")[0] if image.url else image.path) or ""
    if not address or address.startswith("data:"):
        return None
    return hashlib.md5(address.encode("utf-8", "surrogatepass")).digest()


def content_key(image: Media) -> bytes | None:
    """
    The MD5 hash of an image's file, by which repeats are found. `None` if the file has not been fetched.

    Args:
        image: an image of a document.
    """
    return hashlib.md5(image.media_bytes).digest() if image.media_bytes else None


def address_keys(document: EngineDocument) -> list[bytes]:
    """
    The keys of the addresses of a page's images, each once: an image counts once on a page.

    Args:
        document: the page.
    """
    return list(dict.fromkeys(key for image in document.media if (key := address_key(image))))


def content_keys(document: EngineDocument) -> list[bytes]:
    """
    The keys of the files of a page's images, each once.

    Args:
        document: the page.
    """
    return list(dict.fromkeys(key for image in document.media if (key := content_key(image))))


def first_of_each(keys: Sequence[Iterable[bytes | None]]) -> list[bool]:
    """
    Whether an image is the first of its kind on its page: no image before it, dropped or not, has one of its keys.

    Args:
        keys: for each image of the page, in reading order, the keys of its address and of its file.
    """
    seen: set[bytes] = set()
    first = []
    for image in keys:
        own = {key for key in image if key is not None}
        first.append(seen.isdisjoint(own))
        seen |= own
    return first


class NumberOfImages(DocumentRule):
    """
    Drops pages without images and pages with too many.

    Args:
        rules: the limits.
    """

    def __init__(self, rules: PageRules = PAPER) -> None:
        super().__init__("number of images", partial(_page_fault, rules=rules))


class WordsInAddresses(CountedStep):
    """
    Drops images whose address has a word that names decoration.

    Args:
        rules: the limits.
    """

    def __init__(self, rules: PageRules = PAPER) -> None:
        super().__init__("words in addresses")
        self.rules = rules

    def process(self, document: EngineDocument) -> EngineDocument:
        """Drops the images."""
        for image in list(document.media):
            address = "" if image.url.startswith("data:") else image.url or image.path or ""
            if why := address_fault(address, self.rules):
                self.drop_image(document, image, Unusable(why, address[:200]))
        return document


class SizeOfImages(ImageRule):
    """
    Drops images that cannot be decoded, are too small, too large or too long.

    Args:
        rules: the limits.
    """

    def __init__(self, rules: PageRules = PAPER) -> None:
        super().__init__("size of images", partial(image_fault, rules=rules))


class FirstOnPage(CountedStep):
    """Keeps the first of the images of a page that have the same address or the same file."""

    def __init__(self) -> None:
        super().__init__("first on the page")

    def process(self, document: EngineDocument) -> EngineDocument:
        """Drops the others."""
        images = list(document.media)
        first = first_of_each([(address_key(image), content_key(image)) for image in images])
        for image, is_first in zip(images, first, strict=True):
            if not is_first:
                self.drop_image(document, image, Unusable("repeated on its page", image.url or image.path or ""))
        return document


class AtLeastOneImage(DocumentRule):
    """Drops documents that have no image any more."""

    def __init__(self) -> None:
        super().__init__("at least one image", _without_image)


def _page_fault(document: EngineDocument, rules: PageRules) -> str | None:
    return page_fault(len(document.media), rules)


def _without_image(document: EngineDocument) -> str | None:
    return None if document.media else NO_IMAGE_LEFT
