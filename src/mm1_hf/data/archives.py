"""
WebDataset's tar archives, sample by sample.

datasets' own reader of them stops at the first text that is no JSON or no UTF-8, and at samples of different files.
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
    Every sample's key and files: those that follow each other and have one name up to its first dot. Where an archive breaks
    off, the sample there has the error instead, and the next archive follows.

    Args:
        archives: their paths, and when they were changed, by which a cache knows them.
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
            yield {"__key__": key, "__files__": [], "__error__": f"{path}: it has no end"}


def _is_whole(path: str) -> bool:
    """Whether a tar ends as it has to, with two empty blocks; where a header is cut, tarfile says nothing."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 1024))
        return file.read() == bytes(1024)


def _split(name: str) -> tuple[str, str]:
    """A file's name without its extensions, and these; hidden files have none."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension if stem else ""
