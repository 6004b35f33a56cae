"""
Checks a GGUF file before another library reads it. transformers' reader believes every count in the file: it hangs, or asks
for any amount of memory, if a count is wrong. The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_STRING, _ARRAY = 8, 9
# Formats of the types that have a fixed size, by their number in the file.
_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# The largest vocabularies have about 260,000 tokens, with a score and a type each, and twice as many merges.
_MAX_ITEMS = 3_000_000
_MAX_ENTRIES = 100_000
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class Header:
    """
    What the header of a GGUF file says.

    Args:
        values: values of the metadata by name, without arrays.
        elements: number of weights in the file.
    """

    values: dict[str, Any]
    elements: int


class _Cursor:
    """A place in a file, before which everything has been read."""

    def __init__(self, data: mmap.mmap):
        self.data, self.place, self.items = data, 0, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.place:
            raise ValueError(f"at byte {self.place:,} it says that {size:,} bytes follow, but the file ends before.")
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        """The value of an entry; an array is passed over."""
        if kind in _FIXED:
            return self.number(_FIXED[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(
                f"at byte {self.place:,} it names a type of value with the number {kind}, which does not exist."
            )
        inner, count = self.number("I"), self.number("Q")
        self.items += count
        if self.items > _MAX_ITEMS:
            raise ValueError(f"its metadata has arrays with {self.items:,} items; at most {_MAX_ITEMS:,} are read.")
        if inner in _FIXED:
            self.take(count * struct.calcsize(f"<{_FIXED[inner]}"))
        elif inner == _STRING:
            for _ in range(count):
                self.text()
        else:
            raise ValueError(f"it has an array of the type {inner}; only arrays of numbers and of texts are read.")
        return None


def read_header(path: Path) -> Header:
    """
    Reads the header of a GGUF file and checks that all it describes lies in the file.

    Args:
        path: path of the file.

    Raises:
        ValueError: the file is not a GGUF file of version 2 or 3, or it is damaged.
    """
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        if cursor.take(4) != _MAGIC:
            raise ValueError("it does not begin as a GGUF file does.")
        if (version := cursor.number("I")) not in _VERSIONS:
            raise ValueError(f"it is of version {version} of the format, or big-endian. Versions 2 and 3 are read.")
        tensors, entries = cursor.number("Q"), cursor.number("Q")
        if max(tensors, entries) > _MAX_ENTRIES:
            raise ValueError(
                f"it names {tensors:,} tensors and {entries:,} values; at most {_MAX_ENTRIES:,} are read."
            )
        values: dict[str, Any] = {}
        for _ in range(entries):
            name = cursor.text()
            if name in values:
                raise ValueError(f"the value {name} stands twice in it.")
            values[name] = cursor.value(cursor.number("I"))
        return Header(values, _weights(cursor, tensors, values.get("general.alignment", _DEFAULT_ALIGNMENT)))


def _weights(cursor: _Cursor, count: int, alignment: Any) -> int:
    """The number of all weights, after a check of where they lie."""
    constants = import_module("gguf.constants")
    sizes = {int(kind): size for kind, size in constants.GGML_QUANT_SIZES.items()}
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}, but must be a positive integer.")
    elements, spans, names = 0, [], set()
    for _ in range(count):
        name, dimensions = cursor.text(), cursor.number("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS or name in names:
            raise ValueError(f"the tensor {name} has {dimensions} dimensions, or stands twice in it.")
        names.add(name)
        shape = [cursor.number("Q") for _ in range(dimensions)]
        kind, offset = cursor.number("I"), cursor.number("Q")
        if kind not in sizes:
            raise ValueError(f"the tensor {name} has the type {kind}, which the package gguf does not know.")
        block, size = sizes[kind]
        if math.prod(shape) < 1 or shape[0] % block or offset % alignment:
            raise ValueError(f"the tensor {name} cannot have the shape {shape} and begin at {offset}.")
        elements += math.prod(shape)
        spans.append((offset, offset + math.prod(shape) // block * size, name))
    available = len(cursor.data) - -(-cursor.place // alignment) * alignment
    last, before = 0, ""
    for start, stop, name in sorted(spans):
        if start < last or stop > available:
            place = f"overlaps {before}" if start < last else "ends after the file"
            raise ValueError(f"the tensor {name} {place}. Download the whole file again.")
        last, before = stop, name
    return elements
