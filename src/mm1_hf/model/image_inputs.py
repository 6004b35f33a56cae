"""Opens images that are given in any common form."""

import base64
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from io import BytesIO
from itertools import count
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_utils import ImageInput

from .fetching import fetch_url
from .image_files import broken_files_named, open_file, read_file
from .image_pixels import eight_bit, levels_of, require_dense


# Whether an image may be named by a path or a `file://` URL of this machine. A server that reads what its clients write
# sets it to False; [`no_local_files`] is for a part of a program.
LOCAL_FILES: bool = True

_EXIF_ORIENTATION = 0x0112
# The orientations that exchange height and width.
_TURNED = (5, 6, 7, 8)
_local_files: ContextVar[bool] = ContextVar("local_files", default=True)


@contextmanager
def no_local_files() -> Generator[None, None, None]:
    """
    Inside, no image is read from a file of this machine: a path or a `file://` URL raises `FileNotFoundError`, whether
    there is such a file or not. URLs of the web, base64 and bytes are still read.

    It applies to the calling thread and to asyncio tasks and `asyncio.to_thread` calls that are started inside.
    """
    token = _local_files.set(False)
    try:
        yield
    finally:
        _local_files.reset(token)


def unwrap(value: Any) -> Any:
    """
    Takes one image out of the forms that data sets and libraries wrap it in. Nothing is opened or checked to exist.

    | given | returned |
    |---|---|
    | an undecoded image of `datasets`, `{"bytes": ..., "path": ...}` | its bytes, or its path if they are `None` |
    | a `file://` URL | its path |
    | a path of `pathlib` | its path as a string |
    | a `bytearray` or `memoryview` | `bytes` |
    | anything else | the value itself |

    Args:
        value: one image in any form.

    Raises:
        ValueError: `value` is a mapping without bytes and path, or a `file://` URL of another machine.
    """
    if isinstance(value, Mapping):
        held = value.get("path") if value.get("bytes") is None else value["bytes"]
        if held is None or isinstance(held, Mapping):
            raise ValueError(
                f"an image is a mapping with the keys {sorted(map(str, value))[:10]}, without bytes and without a "
                'path; pass an undecoded image of datasets, {"bytes": ..., "path": ...}'
            )
        return unwrap(held)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str) and value[:7].lower() == "file://":
        parts = urlsplit(value)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"{value:.200} names a file of the machine {parts.netloc!r}; write file:///path")
        return url2pathname(parts.path)
    return value


def fetch_images(images: ImageInput | Sequence[Any]) -> Any:
    """
    Opens images that are given as a path, a URL (`http`, `https`, `data`), a base64 string or the bytes of a file, and
    rotates them upright as their EXIF orientation says. Pillow images are only rotated; arrays and tensors are
    returned unchanged. The pixels of a file are not decoded, unless the image has to be rotated or is a PNG file
    without EXIF data before its pixels.

    Args:
        images: one image, or a list of images, nested to any depth.

    Returns:
        The images, nested as in `images`.

    Raises:
        ValueError: an image cannot be read; the message gives its index in the batch.
    """
    return _fetch(images, count())


def _fetch(images: Any, counter: Iterator[int]) -> Any:
    if isinstance(images, list | tuple):
        return [_fetch(image, counter) for image in images]
    index = next(counter)
    with broken_files_named(index):
        if isinstance(images, np.ndarray | torch.Tensor):
            require_dense(images)
            return images
        return open_image(images)


def open_image(source: Any) -> Image.Image:
    """
    Opens one image as [`fetch_images`] does, but raises the original exceptions: `FileNotFoundError` if there is no
    such file or URL, and an exception of nearly any type if the file is broken.

    Images of 32 bits are converted to 8 bits, mode `L`: integers in 0..255 as they are, those of PGM files, which are in
    0..65535, divided by 257, and floats in 0..1 times 255.

    Args:
        source: a Pillow image, the bytes of a file, a path, a URL (`http`, `https`, `data`, `file`), a base64 string, or
            an undecoded image of `datasets`.

    Raises:
        ValueError: `source` has another type, the file is not of one of
            [`IMAGE_FORMATS`][mm1_hf.model.image_files.IMAGE_FORMATS] or too large, or the values of an image of 32 bits
            are not those of an image.
    """
    source = unwrap(source)
    image = source if isinstance(source, Image.Image) else open_file(_source(source))
    if _orientation(image) != 1:
        # Decoding a TIFF file turns it upright.
        image.load()
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
    # Raises if a broken file header names an image mode that does not exist.
    image.getbands()
    return _of_32_bits(image) if image.mode in ("I", "F") else image


def image_size(source: Any) -> tuple[int, int]:
    """
    Returns `(height, width)` in pixels of the image that [`open_image`] would return, and raises the same exceptions.
    The pixels of a file are not decoded, except in images of 32 bits and in PNG files that may store an orientation
    after their pixels.

    Args:
        source: an image in any form that [`open_image`] accepts.
    """
    source = unwrap(source)
    image = source if isinstance(source, Image.Image) else open_file(_source(source))
    image.getbands()
    if image.mode in ("I", "F"):
        image = open_image(image)
    # Pillow decodes all pixels of a PNG file to look for an orientation that is stored after them.
    elif image.format != "PNG" or image is source or _names_an_orientation(getattr(image, "fp", None)):
        # The size of a TIFF file is turned already, but only by its own tag.
        turned_by_tag = getattr(image, "tag_v2", {}).get(_EXIF_ORIENTATION) in _TURNED
        if _orientation(image) in _TURNED and not turned_by_tag:
            return image.width, image.height
    return image.height, image.width


def image_bytes(source: Any) -> bytes:
    """
    Returns the bytes of the file that [`open_image`] would open, without checking that they are an image. A Pillow
    image is encoded as a PNG file.

    Args:
        source: an image in any form that [`open_image`] accepts.
    """
    source = unwrap(source)
    if isinstance(source, Image.Image):
        file = BytesIO()
        source.save(file, "PNG")
        return file.getvalue()
    return read_file(_source(source))


def _orientation(image: Image.Image) -> Any:
    return image.getexif().get(_EXIF_ORIENTATION, 1)


def _of_32_bits(image: Image.Image) -> Image.Image:
    """An image of 32 bits converted to 8 bits."""
    if image.format == "PPM" and image.mode == "I":
        return Image.fromarray(
            levels_of(image, lambda part: np.rint(np.asarray(part) / 257).astype(np.uint8)[..., None])[..., 0]
        )
    try:
        return Image.fromarray(levels_of(image, lambda part: eight_bit(np.asarray(part))[..., None])[..., 0])
    except ValueError as error:
        raise ValueError(f"its pixels are {error}") from error


def _names_an_orientation(file: Any) -> bool:
    """Whether the bytes of a PNG file name a chunk that can hold an EXIF orientation."""
    position, last, found = file.tell(), b"", False
    file.seek(0)
    while not found and (block := file.read(2**20)):
        found = any(name in last + block for name in (b"eXIf", b"exif", b"xmp\0"))
        last = block[-3:]
    file.seek(position)
    return found


def _source(image: Any) -> bytes | str:
    """The content of a file, or the path of a file that is there."""
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str):
        raise ValueError(
            f"its type is {type(image).__name__}; pass a Pillow image, an array, a tensor, a path, a URL, a base64 "
            "string or the bytes of a file"
        )
    if image[:8].lower().startswith(("http://", "https://")):
        return fetch_url(image)
    is_data = image[:5].lower() == "data:"
    local = LOCAL_FILES and _local_files.get()
    if local and not is_data and os.path.exists(image):
        return image
    encoded = image.partition(",")[2] if is_data else image
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError as error:
        named = "an existing file nor a URL" if local else "a URL, and local files are not read here,"
        raise FileNotFoundError(f"{image:.100} is neither {named} nor base64") from error
