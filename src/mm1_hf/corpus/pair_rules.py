"""
Rules for the captions of images. MM1 names no filters of its captions. These are the ones that public sets of alt texts
share: CC12M's number of words, DataComp's shortest texts, and texts that are not captions.
"""

import re
from collections import Counter

from datatrove.data import Document as EngineDocument


# CC12M keeps captions of 3 to 256 words, DataComp's basic filter those of more than 2 words and 5 characters.
MIN_WORDS, MAX_WORDS = 3, 256
MIN_CHARACTERS, MAX_CHARACTERS = 6, 3000
# Smallest share of letters among the characters that are not white space.
MIN_LETTERS = 0.6
# Largest share of the most frequent word, in captions of this number of words or more.
MAX_ONE_WORD, FROM_WORDS = 0.5, 6

_ADDRESS = re.compile(r"(https?://|www\.)\S+", re.IGNORECASE)
_FILE = re.compile(r"\S*\.(jpe?g|png|gif|webp|bmp|tiff?|svg|heic|avif)\b", re.IGNORECASE)
# What cameras, telephones and programs call images.
_DEVICE_NAME = re.compile(
    r"(img|dsc[nf]?|dcim|pict?|p|mvi|image|photo|picture|screenshot|screen shot|untitled|whatsapp image|unnamed)"
    r"[\s_\-\d().:]*(at|am|pm|copy|edited)?[\s_\-\d().:apm]*",
    re.IGNORECASE,
)


def one_image(document: EngineDocument) -> str | None:
    """
    The reason to drop a document that does not have exactly one image, or `None`.

    Args:
        document: a document.
    """
    if len(document.media) == 1:
        return None
    return "several images" if document.media else "no image left"


def caption_fault(text: str) -> str | None:
    """
    The reason to drop an image for its caption, or `None`.

    Args:
        text: the caption.
    """
    text = " ".join(text.split())
    words = text.split()
    # First, as some of the other rules take time that grows with the square of the length.
    if len(words) > MAX_WORDS or len(text) > MAX_CHARACTERS:
        return "caption too long"
    if text and not _FILE.sub("", _ADDRESS.sub("", text)).strip(" -_|,.:;"):
        return "caption is an address or a file name"
    if _DEVICE_NAME.fullmatch(text):
        return "caption is the name of a device or program"
    # Where no spaces stand between words, their number says nothing.
    if (text.isascii() or " " in text) and (len(text) < MIN_CHARACTERS or len(words) < MIN_WORDS):
        return "caption too short"
    signs = [sign for sign in text if not sign.isspace()]
    if sum(sign.isalpha() for sign in signs) < MIN_LETTERS * len(signs):
        return "caption of few letters"
    ((_, most),) = Counter(word.lower() for word in words).most_common(1) or [("", 0)]
    if len(words) >= FROM_WORDS and most > MAX_ONE_WORD * len(words):
        return "caption repeats a word"
    return None


def caption_rule(document: EngineDocument) -> str | None:
    """
    [`caption_fault`] of a document.

    Args:
        document: an image with its caption.
    """
    return caption_fault(document.text)
