"""
Reads the tar archives of WebDataset, sample by sample.

The WebDataset reader of `datasets` is not used: it fails at the first text that is not valid JSON or UTF-8, and where
samples differ in the types of their files.
"""

import os
import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

from datasets import Features, List, Value


SAMPLE_FEATURES = Features(
    {
        "__key__": Value("string"),
        "__files__": List({"extension": Value("string"), "bytes": Value("binary")}),
        "__error__": Value("string"),
    }
)


def read_archives(archives: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """
    Yields every sample as its key and its files. Consecutive files whose names are equal up to the first dot form a
    sample, and that common name is its key. Where an archive cannot be read any further, a sample with an error
    message and without files takes the place of the current one, and reading continues with the next archive.

    Args:
        archives: path and modification time of each archive. The time is not used here: it makes `datasets` notice
            that an archive in its cache has changed.
    """
    for path, _ in archives:
        key, files = "", []
        try:
            with tarfile.open(path, "r|*") as tar:
                for member in tar:
                    sample, extension = _split(member.name)
                    if not member.isfile() or not extension:
                        continue
                    if sample != key and files:
                        yield {"__key__": key, "__files__": files, "__error__": None}
                        files = []
                    key = sample
                    content = cast(IO[bytes], tar.extractfile(member)).read()
                    files.append({"extension": extension, "bytes": content})
        except (tarfile.TarError, EOFError, OSError) as error:
            yield {"__key__": key, "__files__": [], "__error__": f"{path}: {error}"}
            continue
        if files:
            yield {"__key__": key, "__files__": files, "__error__": None}
        if path.endswith(".tar") and not _is_whole(path):
            yield {"__key__": key, "__files__": [], "__error__": f"{path}: the archive is cut off"}


def _is_whole(path: str) -> bool:
    """Whether a tar ends with two empty blocks, as it must. tarfile accepts an archive that is cut inside a header."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 1024))
        return file.read() == bytes(1024)


def _split(name: str) -> tuple[str, str]:
    """A file's name without its extensions, and the extensions. The extensions of a hidden file are empty."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension if stem else ""
