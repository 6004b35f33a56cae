"""
Documents: the common form of captions, interleaved documents and plain text. Also counts the records that are dropped.
"""

import math
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from PIL import Image
from transformers.utils import logging

from mm1_hf.model.fetching import fetch_url
from mm1_hf.model.image_inputs import image_bytes, image_size, open_image
from mm1_hf.reporting.printable import printable


logger = logging.get_logger(__name__)

DocumentKind = Literal["caption", "interleaved", "text"]


class Unusable(ValueError):  # noqa: N818 (the name describes a record, not an error of the program)
    """
    A record that cannot become a document.

    Args:
        reason: the kind of problem in a few words, which many records share, for example `"corrupt image"`.
        detail: what exactly is wrong with this record.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class ImagePart:
    """
    An image of a document. It is opened only when it is needed.

    Args:
        source: the bytes of a file, a path, a URL (`http`, `https`, `data`) or a PIL image. A URL is downloaded once,
            and the content is kept.
    """

    source: bytes | str | Image.Image

    def size(self) -> tuple[int, int]:
        """
        `(height, width)` in pixels, after the rotation that EXIF prescribes. The pixels are not decoded.

        Raises:
            Unusable: `"missing file"` or `"corrupt image"`.
        """
        with _unusable(self.source):
            return image_size(self._content)

    def load(self) -> Image.Image:
        """
        The image, decoded, and rotated as EXIF prescribes.

        Raises:
            Unusable: `"missing file"` or `"corrupt image"`.
        """
        with _unusable(self.source):
            image = open_image(self._content)
            image.load()
            return image

    def read(self) -> bytes:
        """
        The bytes of the image file. A PIL image is encoded as PNG.

        Raises:
            Unusable: `"missing file"` or `"corrupt image"`.
        """
        with _unusable(self.source):
            return image_bytes(self._content)

    @cached_property
    def _content(self) -> bytes | str | Image.Image:
        is_url = isinstance(self.source, str) and self.source.startswith(("http://", "https://"))
        return fetch_url(self.source) if is_url else self.source


@contextmanager
def _unusable(source: bytes | str | Image.Image) -> Generator[None, None, None]:
    """Turns any error into [`Unusable`]: Pillow's decoders raise many types of exceptions for corrupt files."""
    try:
        yield
    except Exception as error:
        reason = "missing file" if isinstance(error, FileNotFoundError | IsADirectoryError) else "corrupt image"
        name = source[:200] if isinstance(source, str) else f"a {type(source).__name__} object"
        raise Unusable(reason, f"{name}: {str(error) or type(error).__name__}") from error


@dataclass(frozen=True)
class Document:
    """
    Text and images in reading order.

    Args:
        kind: `"caption"` for an image (or several) and its description, `"interleaved"` for text with images between
            its parts, or `"text"`.
        parts: the texts and images. The texts hold no placeholders for the images.
        name: where the document comes from, for error messages.
    """

    kind: DocumentKind
    parts: tuple[str | ImagePart, ...]
    name: str

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The images of the document in reading order."""
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


class Drops:
    """
    Counts the dropped records by source and reason, and raises an error when a source has too many. The first record
    that is dropped for a reason is logged as a warning.

    A record is judged twice: when it is read and encoded, by [`~Drops.seen`], and when the images of its examples are
    decoded, which may be much later, by [`~Drops.decoded`]. The share of a source that is dropped is computed from both
    shares, each of what has been judged so far.

    The error is raised when this share is above the limit by more than four standard deviations. Otherwise, if many
    readers with few records each count separately, one of them would stop the run by mere chance.

    Args:
        max_share: largest share of a source's records that may be dropped, from 0 to 1.
        min_seen: number of records of a source that must be judged before its share is checked.

    Raises:
        ValueError: `max_share` is not between 0 and 1.
    """

    def __init__(self, max_share: float = 0.05, min_seen: int = 100) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share is {max_share}; give the share of records that may be dropped, from 0 to 1.")
        self.max_share = max_share
        self.min_seen = min_seen
        self._seen: Counter[str] = Counter()
        self._decoded: Counter[str] = Counter()
        self._broken: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._dropped: dict[str, Counter[str]] = {}
        self._examples: dict[str, dict[str, str]] = {}

    def seen(self, source: str, why: Unusable | None = None) -> None:
        """
        Counts a record that was read. To be called for every record, when it is known whether it is dropped: a record
        that is counted before counts as a good one.

        Args:
            source: name of the record's source.
            why: why the record is dropped, if it is.

        Raises:
            ValueError: too many of the source's records were dropped.
        """
        self._seen[source] += 1
        if why is not None:
            self._note(source, why)
        if why is not None or self._seen[source] == self.min_seen:
            self._judge(source)

    def decoded(self, source: str, why: Unusable | None = None) -> None:
        """
        Counts an example of a record whose images were decoded, or that has no images.

        Args:
            source: name of the record's source.
            why: why the example is dropped, if an image turned out to be corrupt.

        Raises:
            ValueError: too many of the source's records were dropped.
        """
        self._decoded[source] += 1
        if why is not None:
            self._broken[source] += 1
            self._note(source, why)
        if why is not None or self._decoded[source] == self.min_seen:
            self._judge(source)

    def left_out(self, source: str, images: int) -> None:
        """
        Counts images of a record that is not dropped, which are left out because no text is in a row with them. They do
        not count in the share of dropped records.

        Args:
            source: name of the record's source.
            images: number of the images.
        """
        if images and not self._left_out[source]:
            logger.warning(
                f"{images} images of a record of {source} are left out, because a row would hold nothing but images and "
                "so nothing to learn from: the record has more images in a row than fit (max_images). Others are "
                "counted, not logged"
            )
        self._left_out[source] += images

    def _note(self, source: str, why: Unusable) -> None:
        reasons = self._dropped.setdefault(source, Counter())
        reasons[why.reason] += 1
        if reasons[why.reason] == 1:
            self._examples.setdefault(source, {})[why.reason] = str(why)
            logger.warning(
                f"A record of {source} is dropped: {printable(str(why))} (others with this reason are counted, not logged)"
            )

    def merge(self, other: "Drops") -> None:
        """
        Adds the counts of another `Drops`, for example of another data worker.

        Args:
            other: the counts to add. They are not changed.

        Raises:
            ValueError: by the sum of the counts, too many records of a source were dropped.
        """
        self._seen.update(other._seen)
        self._decoded.update(other._decoded)
        self._broken.update(other._broken)
        self._left_out.update(other._left_out)
        for source, reasons in other._dropped.items():
            self._dropped.setdefault(source, Counter()).update(reasons)
            self._examples[source] = other._examples[source] | self._examples.get(source, {})
        for source in self._seen:
            self._judge(source)

    def report(self) -> dict[str, dict[str, Any]]:
        """
        `{source: {"seen": records judged, "dropped": {reason: number}, "share": share that is dropped}}`, and for sources
        of which images were left out, their number under `"images_left_out"`.
        """
        return {
            source: {"seen": seen, "dropped": dict(self._dropped.get(source, {})), "share": self._share(source)}
            | ({"images_left_out": self._left_out[source]} if self._left_out[source] else {})
            for source, seen in self._seen.items()
        }

    def _refused(self, source: str) -> int:
        """Number of records that were dropped before their images were decoded."""
        return sum(self._dropped.get(source, {}).values()) - self._broken[source]

    def _share(self, source: str) -> float:
        refused = self._refused(source) / max(self._seen[source], 1)
        return refused + (1 - refused) * self._broken[source] / max(self._decoded[source], 1)

    def state_dict(self) -> dict[str, Any]:
        """The counts, and one example for each reason, in a form that JSON can hold."""
        return {
            "seen": dict(self._seen),
            "decoded": dict(self._decoded),
            "broken": dict(self._broken),
            "left_out": {source: images for source, images in self._left_out.items() if images},
            "dropped": {source: dict(reasons) for source, reasons in self._dropped.items()},
            "examples": {source: dict(examples) for source, examples in self._examples.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Replaces the counts by saved ones.

        Args:
            state: what [`~Drops.state_dict`] returned.
        """
        self._seen = Counter(state["seen"])
        # Checkpoints of earlier versions do not have these counts.
        self._decoded, self._broken = Counter(state.get("decoded", {})), Counter(state.get("broken", {}))
        self._left_out = Counter(state.get("left_out", {}))
        self._dropped = {source: Counter(reasons) for source, reasons in state["dropped"].items()}
        self._examples = {source: dict(examples) for source, examples in state["examples"].items()}

    def _judge(self, source: str) -> None:
        seen, decoded, refused = self._seen[source], self._decoded[source], self._refused(source)
        if seen < self.min_seen:
            return
        # A few decoded examples say nothing about the source yet.
        few = decoded < self.min_seen
        share, judged = (refused / seen, seen) if few else (self._share(source), min(seen, decoded))
        if share <= self.max_share + 4 * math.sqrt(self.max_share * (1 - self.max_share) / judged):
            return
        broken = self._broken[source]
        of_examples = f", and of the {decoded} examples whose images were decoded, {broken}" if broken else ""
        counts = ", ".join(f"{reason} {number}" for reason, number in self._dropped[source].most_common())
        reason = self._dropped[source].most_common(1)[0][0]
        missing = "missing file" in self._dropped[source]
        elsewhere = "give the folder of the images if they lie apart from the data (image_folder), " if missing else ""
        raise ValueError(
            f"Of the {seen} records of {source} read so far, {refused} were dropped{of_examples} ({counts}), more than "
            f"the allowed share of {self.max_share:.0%}. Correct the data, choose another layout, {elsewhere}or allow a "
            "larger share (max_share, in mixtures max_dropped_share). One of the dropped records: "
            f"{self._examples[source][reason]}"
        )


def merged_drops(states: Iterable[Mapping[str, Any]]) -> Drops:
    """
    The sum of counts, for example of all lanes or ranks of a run, without a limit of their share.

    Args:
        states: what [`Drops.state_dict`] returned for each of them.
    """
    merged = Drops(max_share=1.0)
    for state in states:
        own = Drops(max_share=1.0)
        own.load_state_dict(state)
        merged.merge(own)
    return merged
