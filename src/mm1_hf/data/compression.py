"""Opens compressed files for reading from the start to the end, without writing the expanded file anywhere."""

import bz2
import gzip
import importlib
import io
import lzma
import zlib
from typing import Any


# What is raised for compressed data that are cut off or broken. bz2 and gzip raise an OSError without an error number;
# one with a number comes from the disk.
BROKEN = (EOFError, zlib.error, lzma.LZMAError, OSError)

_FIRST_BYTES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"\x04\x22\x4d\x18": "lz4.frame",
}
_BUILT_IN: dict[str, Any] = {"gzip": gzip.GzipFile, "bz2": bz2.BZ2File, "xz": lzma.LZMAFile}


def open_expanded(path: str) -> io.BufferedReader:
    """
    Opens a file and expands it while it is read, whatever its name is.

    Args:
        path: a file that is not compressed, or compressed with gzip, bzip2, xz, Zstandard or LZ4.

    Raises:
        ValueError: the compression needs a package that is not installed.
    """
    with open(path, "rb") as file:
        start = file.read(6)
    kind = next((kind for first, kind in _FIRST_BYTES.items() if start.startswith(first)), None)
    if kind is None:
        return open(path, "rb")
    if kind in _BUILT_IN:
        return io.BufferedReader(_BUILT_IN[kind](path), 1 << 20)
    try:
        library = importlib.import_module(kind)
    except ImportError as error:
        package = kind.partition(".")[0]
        raise ValueError(
            f"{path} is compressed in a way that needs the package {package}, which is not installed: run pip install "
            f"{package}, or compress the file with gzip."
        ) from error
    return io.BufferedReader(library.open(path, "rb"), 1 << 20)


def is_broken(error: BaseException) -> bool:
    """
    Whether an error that was raised while a file was read says that its data are broken, and not that the disk failed.

    Args:
        error: one of [`BROKEN`].
    """
    return not isinstance(error, OSError) or error.errno is None
