"""Splits JSON files into their records, one after the other, without parsing the whole file."""

import itertools
import re
from collections.abc import Iterator
from typing import IO

from mm1_hf.data.raw_records import MAX_RECORD_BYTES, parse_json


_BLOCK = 1 << 20
_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"(?:[^"\\]+|\\.)*+"', re.DOTALL)
# A string, or what is left of one that does not end in the data, or a bracket.
_TOKEN = re.compile(rb'"(?:[^"\\]+|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_WORD = re.compile(rb'[^ \t\r\n,:\[\]{}"]+')


class CorruptFileError(ValueError):
    """The rest of a file cannot be read."""


def json_records(file: IO[bytes], field: str | None = None) -> Iterator[bytes]:
    """
    Yields the JSON text of each record: the entries of a list, or else the lines of JSON lines, or else whole objects
    that follow one another. Entries that are strings become the `text` of a record.

    Args:
        file: the file, as UTF-8.
        field: if the file is one object, the key of the list of records in it.

    Raises:
        CorruptFileError: the file is not JSON of one of these forms, or a record is larger than `MAX_RECORD_BYTES`.
    """
    data = _Data(file)
    if field is not None:
        data.go_to(field)
    start = data.peek()
    if start == b"[":
        yield from map(_as_object, _entries(data))
    elif start:
        first = data.line()
        if field is None and _is_json(first):
            lines = (line.strip() for line in itertools.chain([first], iter(data.line, b"")))
            yield from (_as_object(line) for line in lines if line)
        else:
            data.put_back(first)
            while data.peek():
                yield _as_object(data.value())


def _entries(data: "_Data") -> Iterator[bytes]:
    data.take()
    if data.peek() == b"]":
        data.take()
    else:
        while True:
            yield data.value()
            separator = data.take()
            if separator == b"]":
                break
            if separator != b",":
                raise CorruptFileError(f"a record of the list is followed by {separator!r}, not by a comma")


def _as_object(value: bytes) -> bytes:
    return b'{"text": ' + value + b"}" if value.startswith(b'"') else value


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


class _Data:
    """The part of a file that has been read and not been used yet."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._data, self._start, self._ended = b"", 0, False

    def _more(self) -> bool:
        """Reads more of the file, at least as much as there is already, so that the work stays linear."""
        rest = self._data[self._start :]
        if len(rest) > MAX_RECORD_BYTES:
            raise CorruptFileError(f"a record has more than {MAX_RECORD_BYTES} bytes")
        found = self._file.read(max(_BLOCK, len(rest)))
        self._data, self._start, self._ended = rest + found, 0, not found
        return bool(found)

    def peek(self) -> bytes:
        """The next byte that is not white space, or nothing at the end of the file."""
        while True:
            space = _SPACE.match(self._data, self._start)
            self._start = self._start if space is None else space.end()
            if self._start < len(self._data):
                return self._data[self._start : self._start + 1]
            if not self._more():
                return b""

    def take(self) -> bytes:
        """The next byte that is not white space, which is used."""
        found = self.peek()
        self._start += len(found)
        return found

    def line(self) -> bytes:
        """The rest of the line with its end, or nothing at the end of the file."""
        while (end := self._data.find(b"\n", self._start)) < 0 and self._more():
            pass
        stop = len(self._data) if end < 0 else end + 1
        found, self._start = self._data[self._start : stop], stop
        return found

    def put_back(self, found: bytes) -> None:
        self._start -= len(found)

    def value(self) -> bytes:
        """The next value, which is used."""
        first = self.peek()
        while (end := self._end_of_value(first)) is None:
            if not self._more():
                raise CorruptFileError("the file ends inside of a record")
        found, self._start = self._data[self._start : end], end
        return found

    def _end_of_value(self, first: bytes) -> int | None:
        if first in (b"{", b"["):
            depth = 0
            for token in _TOKEN.finditer(self._data, self._start):
                if token[0] in (b"{", b"["):
                    depth += 1
                elif token[0] in (b"}", b"]"):
                    depth -= 1
                    if not depth:
                        return token.end()
            return None
        if first == b'"':
            string = _STRING.match(self._data, self._start)
            return None if string is None else string.end()
        word = _WORD.match(self._data, self._start)
        if word is None:
            raise CorruptFileError(f"{first!r} stands where a record has to begin")
        return word.end() if word.end() < len(self._data) or self._ended else None

    def go_to(self, field: str) -> None:
        """Goes to the value of a key of the object that the file is."""
        separator = self.take()
        while separator in (b"{", b","):
            key = self.value()
            if self.take() != b":":
                break
            if _is_json(key) and parse_json(key) == field:
                return
            self.value()
            separator = self.take()
        raise CorruptFileError(f"the file is not an object with the key {field!r}")
