"""Keeps what was computed of pictures, so that a picture of many prompts is encoded once."""

from collections import OrderedDict
from collections.abc import Hashable
from hashlib import blake2b
from typing import Any

from PIL import Image

from mm1_hf.data.documents import ImagePart


class FeatureCache:
    """
    The least recently used values are dropped first.

    Args:
        max_bytes: how much the kept tensors may take. A larger one is not kept.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable) -> Any:
        """
        Returns a value, or None if it is not kept. Counts a hit or a miss.

        Args:
            key: the key.
        """
        if key not in self._values:
            self.misses += 1
            return None
        self.hits += 1
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """
        Keeps a value, and drops others if there is no room for it.

        Args:
            key: the key, which is not kept yet.
            value: the value.
            size: its size in bytes.
        """
        if size > self.max_bytes:
            return
        while self.bytes + size > self.max_bytes:
            _, (_, freed) = self._values.popitem(last=False)
            self.bytes -= freed
        self._values[key] = (value, size)
        self.bytes += size


def picture_key(part: ImagePart) -> bytes:
    """
    Identifies a picture by its content, a file by its bytes.

    Args:
        part: the picture.

    Raises:
        Unusable: its file cannot be read.
    """
    if isinstance(part.source, Image.Image):
        image = part.load()
        content = repr((image.mode, image.size, image.getpalette())).encode() + image.tobytes()
    else:
        content = part.read()
    return blake2b(content, digest_size=16).digest()
