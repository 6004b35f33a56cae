"""A document whose images are files of the same sample of a WebDataset archive."""

from collections.abc import Mapping
from typing import Any

from mm1_hf.data.documents import Unusable
from mm1_hf.data.media import UNREAD_MEDIA
from mm1_hf.data.raw_records import FOLDER, KEY, READER_KEYS, Record


def document_sample(record: Record, name: str) -> Record:
    """
    The record of the layout `documents` that a sample holds: its `json`, in which an image is the name of another file of
    the sample without the key, such as `0.jpg`. Other records are returned unchanged.

    Args:
        record: a record, or a sample of an archive.
        name: where it comes from, for error messages.

    Raises:
        Unusable: the sample has an image that the document does not name.
    """
    content = record.get("json")
    if "parts" in record or not isinstance(content, Mapping) or not isinstance(content.get("parts"), list):
        return record
    files = {column: value for column, value in record.items() if isinstance(value, bytes)}
    parts: list[Any] = []
    for part in content["parts"]:
        image = part.get("image") if isinstance(part, Mapping) else None
        if isinstance(image, str) and image in files:
            part = {**part, "image": files[image]}
        parts.append(part)
    named = {
        part["image"] for part in content["parts"] if isinstance(part, Mapping) and isinstance(part.get("image"), str)
    }
    if unread := sorted(files.keys() - named):
        raise Unusable(UNREAD_MEDIA, f"{name}: no part of the document names {', '.join(unread):.200}")
    own = {key: value for key, value in content.items() if key not in READER_KEYS}
    kept = {key: record[key] for key in (FOLDER, KEY) if key in record}
    return {**own, "parts": parts, **kept}
