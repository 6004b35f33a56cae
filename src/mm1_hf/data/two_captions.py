"""Images with two captions, the alt text that they came with and one that models wrote. Training draws one of them."""

import hashlib
from dataclasses import dataclass

from mm1_hf.data.documents import Document


@dataclass(frozen=True)
class TwoCaptions(Document):
    """
    An image with its alt text, which are the parts of this document, and with a synthetic caption beside it.

    Args:
        synthetic: the same image with the synthetic caption.
    """

    synthetic: Document


def two_documents(alt: Document, synthetic: Document) -> TwoCaptions:
    """
    Both captions of an image. Their documents are named after the caption that they hold.

    Args:
        alt: the image with its alt text.
        synthetic: the image with the synthetic caption.
    """
    other = Document(synthetic.kind, synthetic.parts, f"{synthetic.name} (synthetic caption)")
    return TwoCaptions(alt.kind, alt.parts, f"{alt.name} (alt text)", other)


def drawn_caption(document: Document, share: float, key: str) -> Document:
    """
    Draws one of the two captions of a document. The draw depends on the key and on both captions alone, so that it is
    the same on every rank and after a resumed run, whatever the order in which records are read.

    Args:
        document: a document with one caption, which is returned as it is, or with two.
        share: probability of the synthetic caption, from 0 to 1.
        key: seed of the draw, for example a seed, the name of a source and the number of an epoch.
    """
    if not isinstance(document, TwoCaptions):
        return document
    texts = [part for each in (document, document.synthetic) for part in each.parts if isinstance(part, str)]
    digest = hashlib.blake2b("\0".join((key, *texts)).encode(), digest_size=8).digest()
    # The highest of the 2**64 numbers is still below a share of 1.
    return document.synthetic if int.from_bytes(digest) < share * 2**64 else document
