"""
Reads the tar archives of WebDataset, sample by sample.

The WebDataset reader of `datasets` is not used: it fails at the first text that is not valid JSON or UTF-8, and where
samples differ in the types of their files. Archives are not trusted: nothing is written to the disk, and the memory
that an archive takes is bounded, whatever its headers claim.
"""

import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

from datasets import Features, List, Value

from mm1_hf.data.compression import is_broken, open_expanded
from mm1_hf.data.raw_records import CORRUPT_ARCHIVE, ERROR, FILES, KEY


SAMPLE_FEATURES = Features(
    {
        KEY: Value("string"),
        FILES: List({"extension": Value("string"), "bytes": Value("binary")}),
        ERROR: Value("string"),
    }
)
# Largest number of bytes of all files of a sample, and largest number of its files.
MAX_SAMPLE_BYTES = 1 << 27
MAX_SAMPLE_FILES = 1000
# Largest number of bytes that say what a member of an archive is, such as its name.
MAX_HEADER_BYTES = 1 << 16


def read_archives(archives: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """
    Yields every sample as its key and its files. Consecutive files whose names are equal up to the first dot form a
    sample, and that common name is its key. A sample that cannot be used, for example because it is larger than
    `MAX_SAMPLE_BYTES`, has an error message and no files. Where an archive cannot be read any further, such a sample
    takes the place of the current one, and reading continues with the next archive.

    Args:
        archives: path and modification time of each archive. The time is not used here: it makes `datasets` notice
            that an archive in its cache has changed.
    """
    for path, _ in archives:
        sample = _Sample("")
        try:
            with open_expanded(path) as file:
                members = _Members(file)
                for member in members:
                    key, extension = _split(member.name)
                    if member.isdir() or not extension:
                        continue
                    if key != sample.key:
                        if sample.begun:
                            yield sample.record()
                        sample = _Sample(key)
                    sample.add(member, extension, members)
        # tarfile raises errors of many types for broken headers.
        except Exception as error:
            if isinstance(error, OSError) and not is_broken(error):
                raise
            message = str(error) or type(error).__name__
            yield _record(sample.key, [], f"{CORRUPT_ARCHIVE}: {path}: {message}")
            continue
        if sample.begun:
            yield sample.record()
        if members.fault is not None:
            yield _record(sample.key, [], f"{CORRUPT_ARCHIVE}: {path}: {members.fault}")


class _Sample:
    """The files of a sample that were read so far, or what is wrong with it."""

    def __init__(self, key: str):
        self.key = key
        self.files: dict[str, bytes] = {}
        self.size = 0
        self.error: str | None = None

    @property
    def begun(self) -> bool:
        return bool(self.files) or self.error is not None

    def add(self, member: tarfile.TarInfo, extension: str, members: "_Members") -> None:
        self.size += member.size
        if self.error is None:
            self.error = self._fault(member, extension.lower())
        if self.error is None:
            self.files[extension.lower()] = members.content(member)
        else:
            self.files = {}

    def _fault(self, member: tarfile.TarInfo, extension: str) -> str | None:
        name = _printable(member.name)
        if not member.isreg() or member.issparse():
            return f"not a regular file: {name} is a link, a device or a sparse file of the archive; store files as they are"
        if extension in self.files:
            return f"two files of one extension: {name} is the second file {extension} of its sample"
        if self.size > MAX_SAMPLE_BYTES:
            return (
                f"member too large: with {name}, of {member.size} bytes, the files of its sample have more than "
                f"{MAX_SAMPLE_BYTES} bytes"
            )
        if len(self.files) == MAX_SAMPLE_FILES:
            return f"too many files in a sample: {name} follows {MAX_SAMPLE_FILES} others"
        return None

    def record(self) -> dict[str, Any]:
        files = [{"extension": _printable(extension), "bytes": content} for extension, content in self.files.items()]
        return _record(self.key, files, self.error)


def _record(key: str, files: list[dict[str, Any]], error: str | None) -> dict[str, Any]:
    return {KEY: _printable(key), FILES: files, ERROR: None if error is None else _printable(error)}


class _Members:
    """
    The members of an archive, one after the other. Stands between `tarfile` and the file, because `tarfile` reads as
    many bytes as a header claims, and ends without an error at a broken one.

    After the last member, `fault` says what is wrong with the end of the archive, or is `None`.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._position = self._read_of_header = 0
        self._last = b""
        self.fault: str | None = None

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        tar = tarfile.TarFile(fileobj=cast(IO[bytes], self), mode="r", encoding="utf-8")
        while (member := tar.next()) is not None:
            if member.size < 0:
                raise tarfile.ReadError(f"{_printable(member.name)} has a size below 0")
            if len(tar.pax_headers) > MAX_SAMPLE_FILES:
                raise tarfile.ReadError("its global headers have too many entries")
            yield member
            # tarfile would keep all members.
            tar.members = []  # ty: ignore[missing-attribute] -- the stubs leave it out
            self._read_of_header = 0
        self.fault = self._fault_of_end()

    def _fault_of_end(self) -> str | None:
        if not self._last:
            return "the archive is cut off"
        if self._last.strip(b"\0"):
            return f"the header before byte {self._position} is broken"
        if self._file.read(MAX_HEADER_BYTES).strip(b"\0"):
            return "more data follow after the end of the archive, for example a second archive, which is not read"
        return None

    def content(self, member: tarfile.TarInfo) -> bytes:
        found = self._file.read(member.size)
        self._position += len(found)
        if len(found) < member.size:
            raise tarfile.ReadError("unexpected end of data")
        return found

    # What tarfile calls.

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        self._read_of_header += size
        if self._read_of_header > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header is longer than {MAX_HEADER_BYTES} bytes")
        self._last = self._file.read(size)
        self._position += len(self._last)
        return self._last

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("a header points back to what was read before")
        while self._position < position:
            skipped = len(self._file.read(min(1 << 20, position - self._position)))
            if not skipped:
                return
            self._position += skipped


def _printable(name: str) -> str:
    """Bytes of a name that are not UTF-8, which tarfile turns into lone surrogates, become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _split(name: str) -> tuple[str, str]:
    """A file's name without its extensions, and the extensions. The extensions of a hidden file are empty."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension if stem else ""
