"""
How a document of this package travels through the steps of datatrove, and back.

A datatrove document holds one text and a list of media. Here its text is the whole text of the document without
placeholders, so that datatrove's filters of text read it as it is, and the place of an image is the number of characters of
that text before it. A step that drops an image therefore changes nothing else. A step that changes the text of a document
with images would move them: [`from_engine`] refuses it.
"""

from typing import Any, cast

from datatrove.data import Document as EngineDocument
from datatrove.data import Media, MediaType

from mm1_hf.data.documents import Document, DocumentKind, ImagePart


# What a step gets and yields: an iterator of datatrove documents, or nothing. datatrove's own name for it,
# `DocumentsPipeline`, is a type that no generator is assignable to.
Documents = Any
# Keys of the metadata of a medium and of a document.
PLACE = "place"
KIND = "kind"
CHARACTERS = "characters"


def to_engine(document: Document) -> EngineDocument:
    """
    A document in datatrove's form. Its name becomes its `id`. An image that is bytes or a PIL image becomes a medium with
    `media_bytes`; an address of the web or a `data:` URL becomes its `url`, and a local path its `path`.

    Args:
        document: the document to send through steps.
    """
    texts: list[str] = []
    media: list[Media] = []
    characters = 0
    for part in document.parts:
        if isinstance(part, str):
            texts.append(part)
            characters += len(part)
        else:
            media.append(_medium(part, len(media), characters))
    return EngineDocument("".join(texts), document.name, media, {KIND: document.kind, CHARACTERS: characters})


def from_engine(document: EngineDocument) -> Document:
    """
    The document of this package that a datatrove document holds. Its images are in the order of their places.

    Args:
        document: a document that [`to_engine`] made, after any steps.

    Raises:
        ValueError: it has images, and a step has changed its text.
    """
    characters = document.metadata.get(CHARACTERS, len(document.text))
    if document.media and characters != len(document.text):
        raise ValueError(
            f"The text of {document.id} had {characters} characters when its {len(document.media)} images got their "
            f"places, and has {len(document.text)} now: a step changed it. Use steps that change text before the images "
            "are placed or on documents without images; filters may drop a document but must not change it."
        )
    parts: list[str | ImagePart] = []
    written = 0
    for medium in document.media:
        place = medium.metadata[PLACE]
        parts += [document.text[written:place], image_of(medium)]
        written = place
    parts.append(document.text[written:])
    # A document whose images were all dropped is a text.
    kind = document.metadata.get(KIND) or "interleaved"
    kind = cast(DocumentKind, kind if document.media else "text")
    return Document(kind, tuple(part for part in parts if part != ""), document.id)


def image_of(medium: Media) -> ImagePart:
    """
    The image that a medium holds or names: its bytes if it has been fetched, or else its local path or its address.

    Args:
        medium: a medium of a document.
    """
    return ImagePart(medium.media_bytes or medium.path or medium.url)


def _medium(image: ImagePart, index: int, place: int) -> Media:
    medium = Media(str(index), MediaType.IMAGE, "", metadata={PLACE: place})
    if not isinstance(image.source, str):
        medium.media_bytes = image.read()
    elif image.source.startswith(("http://", "https://", "data:")):
        medium.url = image.source
    else:
        medium.path = image.source
    return medium
