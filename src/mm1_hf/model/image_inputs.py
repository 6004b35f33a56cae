"""Loads images given in any common form, and converts them to 8-bit pixels."""

import base64
import binascii
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import get_session
from PIL import Image, ImageOps
from transformers.image_utils import ChannelDimension, ImageInput, infer_channel_dimension_format


_EXIF_ORIENTATION = 0x0112
_PIXELS_PER_BAND = 2**18


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
    if isinstance(images, np.ndarray | torch.Tensor):
        return images
    with _broken_files_named(index):
        return open_image(images)


def open_image(source: Any) -> Image.Image:
    """
    Opens one image as [`fetch_images`] does, but raises the original exceptions: `FileNotFoundError` if there is no
    such file or URL, and an exception of nearly any type if the file is broken.

    Args:
        source: a Pillow image, the bytes of a file, a path, a URL or a base64 string.

    Raises:
        ValueError: `source` has another type.
    """
    image = source if isinstance(source, Image.Image) else Image.open(_source(source))
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    # Raises if a broken file header names an image mode that does not exist.
    image.getbands()
    return image


def image_size(source: Any) -> tuple[int, int]:
    """
    Returns `(height, width)` in pixels of the image that [`open_image`] would return, and raises the same exceptions.
    The pixels of a file are not decoded, except in PNG files that may store an orientation after their pixels.

    Args:
        source: an image in any form that [`open_image`] accepts.
    """
    if isinstance(source, Image.Image):
        return _upright_size(source)
    with Image.open(_source(source)) as image:
        image.getbands()
        # Pillow decodes all pixels of a PNG file to look for an orientation that is stored after them.
        if image.format == "PNG" and not _names_an_orientation(image.fp):
            return image.height, image.width
        return _upright_size(image)


def image_bytes(source: Any) -> bytes:
    """
    Returns the bytes of the file that [`open_image`] would open, without checking that they are an image. A Pillow
    image is encoded as a PNG file.

    Args:
        source: an image in any form that [`open_image`] accepts.
    """
    if isinstance(source, Image.Image):
        file = BytesIO()
        source.save(file, "PNG")
        return file.getvalue()
    opened = _source(source)
    return opened.getvalue() if isinstance(opened, BytesIO) else Path(opened).read_bytes()


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def _names_an_orientation(file: Any) -> bool:
    """Whether the bytes of a PNG file name a chunk that can hold an EXIF orientation."""
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    return any(name in data for name in (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp"))


def _source(image: Any) -> Any:
    """The path or file object that `Image.open` accepts."""
    if isinstance(image, bytes | bytearray | memoryview):
        return BytesIO(image)
    if isinstance(image, os.PathLike):
        return image
    if not isinstance(image, str):
        raise ValueError(
            f"its type is {type(image).__name__}; pass a Pillow image, an array, a tensor, a path, a URL, a base64 "
            "string or the bytes of a file"
        )
    if image.startswith(("http://", "https://")):
        return BytesIO(fetch_url(image))
    if not image.startswith("data:") and os.path.exists(image):
        return image
    encoded = image.partition(",")[2] if image.startswith("data:") else image
    try:
        return BytesIO(base64.b64decode("".join(encoded.split()), validate=True))
    except binascii.Error as error:
        raise FileNotFoundError(f"{image:.100} is neither an existing file nor a URL nor base64") from error


def fetch_url(url: str) -> bytes:
    """
    Downloads a URL and returns its content.

    Args:
        url: an `http` or `https` URL.

    Raises:
        FileNotFoundError: the download failed.
    """
    try:
        response = get_session().get(url, follow_redirects=True)
        response.raise_for_status()
    except Exception as error:
        raise FileNotFoundError(f"{url:.200}: {error or type(error).__name__}") from error
    return response.content


@contextmanager
def _broken_files_named(index: int) -> Generator[None, None, None]:
    """
    Turns any exception into a `ValueError` that names the image: Pillow's decoders raise exceptions of nearly any type
    for broken files.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"Image {index} of the batch cannot be read: {error or type(error).__name__}.") from error


def image_shapes(
    samples: list[list[Any]], input_data_format: ChannelDimension | str | None
) -> list[tuple[int, int, int]]:
    """
    Returns `(height, width, channels)` of every image of the batch in order, with height and width in pixels.

    Args:
        samples: Pillow images, arrays and tensors, one list per sample.
        input_data_format: position of the channel axis in arrays and tensors; inferred if unset.

    Raises:
        ValueError: an image has no pixels, or the shape of an array is not that of an image.
    """
    images = [image for sample in samples for image in sample]
    shapes = []
    for index, image in enumerate(images):
        if isinstance(image, Image.Image):
            shape = (image.height, image.width, len(image.getbands()))
        else:
            height_axis, width_axis, channel_axis = _axes(image, index, input_data_format)
            channels = 1 if channel_axis is None else image.shape[channel_axis]
            shape = (image.shape[height_axis], image.shape[width_axis], channels)
        if 0 in shape:
            raise ValueError(f"Image {index} of the batch is {shape[0]} x {shape[1]} pixels; give at least 1 x 1.")
        shapes.append(shape)
    return shapes


def _axes(
    image: np.ndarray | torch.Tensor, index: int, input_data_format: ChannelDimension | str | None
) -> tuple[int, int, int | None]:
    """Axes of height, width and channels in an array; a greyscale image `(height, width)` has `None` for the last."""
    if image.ndim == 2:
        return 0, 1, None
    data_format = input_data_format
    if data_format is None and image.ndim == 3:
        with suppress(ValueError):
            # Only the shape is read, so an array that takes no memory can stand in for the image, array or tensor.
            data_format = infer_channel_dimension_format(
                np.broadcast_to(0, tuple(image.shape)), num_channels=(1, 3, 4)
            )
    if data_format is None or image.ndim != 3:
        raise ValueError(
            f"Image {index} of the batch has the shape {tuple(image.shape)}; pass (height, width), (height, width, "
            "channels) or (channels, height, width) with 1, 3 or 4 channels, or set input_data_format."
        )
    return (1, 2, 0) if data_format == ChannelDimension.FIRST else (0, 1, 2)


def to_uint8_pixels(
    image: Any, index: int, do_convert_rgb: bool, do_rescale: bool, input_data_format: ChannelDimension | str | None
) -> torch.Tensor:
    """
    Converts an image to a uint8 tensor `(channels, height, width)` that is channels-last in memory. Float images in
    0..1 become `round(255 * x)`; 16-bit Pillow images are divided by 257 and rounded.

    Args:
        image: a Pillow image, an array or a tensor.
        index: index of the image in the batch, for error messages.
        do_convert_rgb: whether to convert to three channels; transparent pixels are then blended with white.
        do_rescale: whether the pixels are rescaled afterwards, which float images require.
        input_data_format: position of the channel axis in arrays and tensors; inferred if unset.

    Raises:
        ValueError: the image file is broken, or the values are not those of an image.
    """
    array: np.ndarray
    if isinstance(image, Image.Image):
        with _broken_files_named(index):
            if image.mode.startswith(("I", "F")):
                array = np.asarray(image)
                if array.dtype.itemsize == 2:
                    array = np.rint(array / 257).astype(np.uint8)
            elif do_convert_rgb and (image.mode != "RGB" or "transparency" in image.info):
                array = _picture_as_rgb(image)
            else:
                array = _copied(image)
        input_data_format = ChannelDimension.LAST
    elif isinstance(image, torch.Tensor):
        # NumPy has no bfloat16.
        array = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
    else:
        array = image
    channel_axis = _axes(array, index, input_data_format)[2]
    array = array[..., None] if channel_axis is None else np.moveaxis(array, channel_axis, -1)
    if array.dtype != np.uint8:
        array = _to_uint8(array, index, do_rescale)
    if do_convert_rgb and array.shape[2] != 3:
        array = _array_as_rgb(array)
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).permute(2, 0, 1)


def _picture_as_rgb(image: Image.Image) -> np.ndarray:
    """`(height, width, 3)`, uint8, with transparency laid over white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _array_as_rgb(array: np.ndarray) -> np.ndarray:
    """The same for `(height, width, channels)` in uint8: one channel is grey, a fourth one is transparency."""
    if array.shape[2] == 1:
        return array.repeat(3, axis=2)
    alpha = array[..., 3:] / 255
    return np.round(alpha * array[..., :3] + (1 - alpha) * 255).astype(np.uint8)


def _copied(image: Image.Image) -> np.ndarray:
    """
    Copies an image into an array, as `np.array` does. But `np.array` writes every pixel three times to new memory,
    which takes longer than resizing for large photographs, so large images are copied in bands of rows that fit into
    the processor's cache.
    """
    rows = max(_PIXELS_PER_BAND // image.width, 1)
    if image.mode != "RGB" or image.height <= 4 * rows:
        return np.array(image)
    array = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        array[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return array


def _to_uint8(array: np.ndarray, index: int, do_rescale: bool) -> np.ndarray:
    is_float = array.dtype.kind == "f"
    if is_float and not do_rescale:
        raise ValueError(
            f"Image {index} of the batch is {array.dtype}. Float images are converted to 8 bits, 0..255, before they "
            "are resized, and have to be rescaled afterwards: leave do_rescale on, or pass integers in 0..255."
        )
    highest = 1 if is_float else 255
    expected = "pass integers in 0..255 or floats in 0..1, without NaN."
    if array.dtype.kind not in "fui":
        raise ValueError(f"Image {index} of the batch is {array.dtype}; {expected}")
    lowest_found, highest_found = array.min(), array.max()
    # `not (...)` also rejects NaN, for which every comparison is false.
    if not (lowest_found >= 0 and highest_found <= highest):
        raise ValueError(
            f"Image {index} of the batch is {array.dtype} with values from {lowest_found} to {highest_found}; "
            f"{expected}"
        )
    return np.rint(array * 255).astype(np.uint8) if is_float else array.astype(np.uint8)
