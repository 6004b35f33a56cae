"""Sample documents that a step kept or dropped, a few for each reason, for the page of a run."""

import base64
import hashlib
import heapq
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from datatrove.data import Document as EngineDocument
from datatrove.data import Media
from PIL import Image

from mm1_hf.corpus.atomic import whole_file
from mm1_hf.corpus.bridge import PLACE
from mm1_hf.model.image_inputs import open_image


SAMPLES_PER_REASON = 4
_TEXT_BEFORE, _TEXT = 120, 480
_MOST_IMAGES = 6
_THUMBNAIL = 112


@dataclass(frozen=True)
class Sample:
    """
    What the page shows of one document or image.

    Args:
        id: id of the document.
        detail: what exactly was wrong with it; empty if it was kept.
        parts: texts, and thumbnails as `{"image": base64 of a JPEG or "", "address": URL or path}`, in reading order.
    """

    id: str
    detail: str
    parts: list[str | dict[str, str]] = field(default_factory=list)


class Samples:
    """
    Keeps, for every reason, the documents whose ids have the smallest hashes. The choice depends on neither the order nor
    the number of tasks: the samples of several tasks are merged by the same rule.

    Args:
        number: how many samples are kept for each reason.
    """

    def __init__(self, number: int = SAMPLES_PER_REASON) -> None:
        self.number = number
        # Heaps of (minus the hash, as the largest has to be on top; a tie-breaker; the sample).
        self._kept: dict[str, list[tuple[int, str, Sample]]] = {}

    def add(
        self, reason: str, document: EngineDocument, detail: str = "", images: Sequence[Media] | None = None
    ) -> None:
        """
        Offers a document as a sample. Nothing is copied unless it is kept.

        Args:
            reason: what happened to it.
            document: the document.
            detail: what exactly was wrong with it.
            images: only these images are shown, without the text. Unset, the beginning of the whole document is shown.
        """
        key = document.id if images is None else f"{document.id} {[image.id for image in images]}"
        rank = -int.from_bytes(hashlib.md5(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        kept = self._kept.setdefault(reason, [])
        # Ids repeat where a page was crawled twice, and samples cannot be compared.
        if (len(kept) == self.number and (rank, key) <= kept[0][:2]) or any(key == known for _, known, _ in kept):
            return
        parts: list[str | dict[str, str]] = []
        parts += _beginning(document) if images is None else map(_shown, images)
        entry = (rank, key, Sample(document.id, detail, parts))
        (heapq.heappush if len(kept) < self.number else heapq.heapreplace)(kept, entry)

    def write(self, path: str | os.PathLike[str]) -> None:
        """
        Writes the samples as JSON.

        Args:
            path: the file.
        """
        state = {
            reason: [(rank, key, asdict(sample)) for rank, key, sample in kept] for reason, kept in self._kept.items()
        }
        with whole_file(path) as partial:
            partial.write_text(json.dumps(state), encoding="utf-8")


def merged_samples(
    states: Iterable[dict[str, list[Any]]], number: int = SAMPLES_PER_REASON
) -> dict[str, list[Sample]]:
    """
    The samples of all tasks of a step, by reason.

    Args:
        states: what [`Samples.write`] wrote for each task, parsed.
        number: how many samples are kept for each reason.
    """
    found: dict[str, list[tuple[int, str, Sample]]] = {}
    for state in states:
        for reason, kept in state.items():
            found.setdefault(reason, []).extend((rank, key, Sample(**sample)) for rank, key, sample in kept)
    return {
        reason: [sample for _, _, sample in sorted(kept, key=lambda entry: entry[:2], reverse=True)[:number]]
        for reason, kept in found.items()
    }


def _beginning(document: EngineDocument) -> list[str | dict[str, str]]:
    """The first images of a document, with the text around them."""
    if not document.media:
        return [_cut(document.text, _TEXT)]
    parts: list[str | dict[str, str]] = []
    written = 0
    for medium in document.media[:_MOST_IMAGES]:
        text = document.text[written : medium.metadata[PLACE]]
        parts += [_cut(text, _TEXT_BEFORE, end=True), _shown(medium)]
        written = medium.metadata[PLACE]
    parts.append(_cut(document.text[written:], _TEXT_BEFORE))
    if (more := len(document.media) - _MOST_IMAGES) > 0:
        parts.append(f"… and {more} more images")
    return [part for part in parts if part]


def _cut(text: str, longest: int, end: bool = False) -> str:
    text = re.sub(r"\n{2,}", "\n", text)
    if len(text) <= longest:
        return text
    return f"…{text[-longest:]}" if end else f"{text[:longest]}…"


def _shown(medium: Media) -> dict[str, str]:
    address = medium.url or os.path.basename(medium.path or "")
    # An image on the web that has not been fetched is not downloaded for the page alone.
    return {"image": _thumbnail(medium.media_bytes or medium.path), "address": address[:200]}


def _thumbnail(file: bytes | str | None) -> str:
    if not file:
        return ""
    try:
        image = open_image(file)
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        canvas = Image.new("RGB", image.size, "white")
        # What is transparent is shown on white.
        shown = image.convert("RGBA")
        canvas.paste(shown, mask=shown)
        encoded = io.BytesIO()
        canvas.save(encoded, "JPEG", quality=80)
    except Exception:
        # Pillow's decoders raise exceptions of nearly any type for broken files; such an image has no thumbnail.
        return ""
    return base64.b64encode(encoded.getvalue()).decode("ascii")
