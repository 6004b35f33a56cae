"""
What pre-training reads: captions, interleaved documents and plain text in one form, and the count of what cannot be read.
"""

import math
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from PIL import Image
from transformers.utils import logging

from mm1_hf.model.image_inputs import fetch_url, image_bytes, image_size, open_image


logger = logging.get_logger(__name__)

DocumentKind = Literal["caption", "interleaved", "text"]


class Unusable(ValueError):  # noqa: N818 (it says what a record is, not that the program erred)
    """
    A record that cannot become a document.

    Args:
        reason: what is wrong with it in a few words that many records share, such as `"corrupt image"`.
        detail: about this record.
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
    An image of a document, opened when it is needed.

    Args:
        source: a file's bytes, a path, a URL (`http`, `https`, `data`) or a picture. What a URL gives is kept.
    """

    source: bytes | str | Image.Image

    def size(self) -> tuple[int, int]:
        """
        `(height, width)` in pixels, turned upright as EXIF says. The pixels are not decoded.

        Raises:
            Unusable: `"missing file"` or `"corrupt image"`.
        """
        with _unusable(self.source):
            return image_size(self._content)

    def load(self) -> Image.Image:
        """
        The picture, decoded and upright.

        Raises:
            Unusable: `"missing file"` or `"corrupt image"`.
        """
        with _unusable(self.source):
            image = open_image(self._content)
            image.load()
            return image

    def read(self) -> bytes:
        """
        The file's bytes; those of a picture are a PNG's.

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
    """Broken files make Pillow's decoders raise nearly everything."""
    try:
        yield
    except Exception as error:
        reason = "missing file" if isinstance(error, FileNotFoundError | IsADirectoryError) else "corrupt image"
        name = source[:200] if isinstance(source, str) else f"a {type(source).__name__} object"
        raise Unusable(reason, f"{name}: {error or type(error).__name__}") from error


@dataclass(frozen=True)
class Document:
    """
    Text and images in reading order.

    Args:
        kind: `"caption"`, an image (or several) and what describes it; `"interleaved"`, text with images in places; or
            `"text"`.
        parts: texts, in which nothing stands for an image, and images.
        name: where it comes from, for messages.
    """

    kind: DocumentKind
    parts: tuple[str | ImagePart, ...]
    name: str

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """Its images in reading order."""
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


class Drops:
    """
    Counts the records that are left out, by source and reason, and stops where they are too many. The first record of each
    reason is logged as a warning.

    A source's share has to be above the limit by four standard deviations: many readers with a few records each would
    otherwise stop a run over bad luck.

    Args:
        max_share: of a source's records that may be left out.
        min_seen: records of a source before it is judged.

    Raises:
        ValueError: `max_share` is not a share.
    """

    def __init__(self, max_share: float = 0.05, min_seen: int = 100) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share is {max_share}; give the share of records that may be left out, from 0 to 1.")
        self.max_share = max_share
        self.min_seen = min_seen
        self._seen: Counter[str] = Counter()
        self._dropped: dict[str, Counter[str]] = {}
        self._examples: dict[str, dict[str, str]] = {}

    def seen(self, source: str) -> None:
        """
        A record of `source` was read; to be said of every one, before what is wrong with it.

        Args:
            source: its name.

        Raises:
            ValueError: too many of the source's records are left out.
        """
        self._seen[source] += 1
        if self._seen[source] == self.min_seen:
            self._judge(source)

    def drop(self, source: str, why: Unusable) -> None:
        """
        The record last seen is left out.

        Args:
            source: its name.
            why: the reason.

        Raises:
            ValueError: too many of the source's records are left out.
        """
        reasons = self._dropped.setdefault(source, Counter())
        reasons[why.reason] += 1
        if reasons[why.reason] == 1:
            self._examples.setdefault(source, {})[why.reason] = str(why)
            logger.warning(f"A record of {source} is left out: {why} (further ones of this reason are only counted)")
        if self._seen[source] >= self.min_seen:
            self._judge(source)

    def merge(self, other: "Drops") -> None:
        """
        Adds what another one counted, such as a data worker's.

        Args:
            other: it stays as it is.

        Raises:
            ValueError: together, too many records of a source are left out.
        """
        self._seen.update(other._seen)
        for source, reasons in other._dropped.items():
            self._dropped.setdefault(source, Counter()).update(reasons)
            self._examples[source] = other._examples[source] | self._examples.get(source, {})
        for source, seen in self._seen.items():
            if seen >= self.min_seen:
                self._judge(source)

    def report(self) -> dict[str, dict[str, Any]]:
        """`{source: {"seen": records, "dropped": {reason: records}, "share": dropped of seen}}`."""
        return {
            source: {"seen": seen, "dropped": dict(self._dropped.get(source, {})), "share": self._share(source)}
            for source, seen in self._seen.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The counts and examples, ready for JSON."""
        return {
            "seen": dict(self._seen),
            "dropped": {source: dict(reasons) for source, reasons in self._dropped.items()},
            "examples": {source: dict(examples) for source, examples in self._examples.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Goes on from what [`~Drops.state_dict`] gave.

        Args:
            state: it.
        """
        self._seen = Counter(state["seen"])
        self._dropped = {source: Counter(reasons) for source, reasons in state["dropped"].items()}
        self._examples = {source: dict(examples) for source, examples in state["examples"].items()}

    def _share(self, source: str) -> float:
        return sum(self._dropped.get(source, {}).values()) / max(self._seen[source], 1)

    def _judge(self, source: str) -> None:
        chance = 4 * math.sqrt(self.max_share * (1 - self.max_share) / self._seen[source])
        if self._share(source) <= self.max_share + chance:
            return
        counts = ", ".join(f"{reason} {number}" for reason, number in self._dropped[source].most_common())
        reason = self._dropped[source].most_common(1)[0][0]
        raise ValueError(
            f"Of the {self._seen[source]} records of {source} read so far, {sum(self._dropped[source].values())} were left "
            f"out ({counts}), more than max_share={self.max_share:.0%}. One of them: {self._examples[source][reason]} "
            "Mend the data or its layout, or allow a larger share."
        )
