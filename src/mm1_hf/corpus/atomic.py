"""
Files that are either whole or not there, whenever a process is killed.

A file is written under another name in the same folder and renamed when it is complete. The other name is unique, so that a
process that outlived its killed parent and the one that repeats its task do not write into the same file.
"""

import os
import socket
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


_PARTIAL = ".partial"


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Generator[Path, None, None]:
    """
    Yields the path of a temporary file beside `path`, which replaces `path` when the block ends without an exception, and is
    removed otherwise. Missing folders are created.

    Args:
        path: where the complete file should be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial_files(folder: str | os.PathLike[str]) -> int:
    """
    Removes what killed processes left unfinished in a folder and those below it. No run may be writing there.

    Args:
        folder: the folder, which need not exist.

    Returns:
        The number of files that were removed.
    """
    removed = 0
    for partial in Path(folder).rglob(f".*{_PARTIAL}"):
        partial.unlink(missing_ok=True)
        removed += 1
    return removed
