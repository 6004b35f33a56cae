"""Images in every form that people hold them, up to their 8-bit pixels."""

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
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import ChannelDimension, ImageInput, infer_channel_dimension_format


_EXIF_ORIENTATION = 0x0112
_PIXELS_PER_BAND = 2**18


def fetch_images(images: ImageInput | Sequence[Any]) -> Any:
    """
    Opens what is given as a path, a URL (`http`, `https`, `data`), base64 or a file's bytes, and turns pictures upright
    as their EXIF says; pictures, arrays and tensors pass. Pixels are not decoded unless a picture is turned.

    Args:
        images: one of these, or a list, nested as deep as one likes.

    Returns:
        The images, nested as they came.

    Raises:
        ValueError: something that is no image, by its place in the batch.
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
    What [`fetch_images`] does for one picture, with the errors of whoever raises them: `FileNotFoundError` where there is
    nothing, and nearly anything where there is something broken.

    Args:
        source: a picture, a file's bytes, a path, a URL or base64.
    """
    image = source if isinstance(source, Image.Image) else Image.open(_source(source))
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    # A broken head may name a mode that does not exist.
    image.getbands()
    return image


def image_size(source: Any) -> tuple[int, int]:
    """
    `(height, width)` of what [`open_image`] gives, which raises the same. No pixel of a file is decoded.

    Args:
        source: as [`open_image`] takes it.
    """
    if isinstance(source, Image.Image):
        return _upright_size(source)
    with Image.open(_source(source)) as image:
        image.getbands()
        # To look for the orientation behind the pixels of a PNG, Pillow decodes them.
        if image.format == "PNG" and not _names_an_orientation(image.fp):
            return image.height, image.width
        return _upright_size(image)


def image_bytes(source: Any) -> bytes:
    """
    The bytes of the file that [`open_image`] opens, with its errors; those of a picture are a PNG's.

    Args:
        source: as [`open_image`] takes it.
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
    """Whether the chunks of a PNG that can hold one occur anywhere."""
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    return any(name in data for name in (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp"))


def _source(image: Any) -> Any:
    """What Pillow opens: a path or a file."""
    if isinstance(image, bytes | bytearray | memoryview):
        return BytesIO(image)
    if isinstance(image, os.PathLike):
        return image
    if not isinstance(image, str):
        raise ValueError(
            f"it is a {type(image).__name__}; give a picture, an array, a tensor, a path, a URL, base64 or a file's bytes"
        )
    if image.startswith(("http://", "https://")):
        return BytesIO(fetch_url(image))
    if not image.startswith("data:") and os.path.exists(image):
        return image
    encoded = image.partition(",")[2] if image.startswith("data:") else image
    try:
        return BytesIO(base64.b64decode("".join(encoded.split()), validate=True))
    except binascii.Error as error:
        raise FileNotFoundError(f"{image:.100} is no file here, no URL and no base64") from error


def fetch_url(url: str) -> bytes:
    """
    What a URL gives.

    Args:
        url: `http` or `https`.

    Raises:
        FileNotFoundError: nothing comes from there.
    """
    try:
        response = get_session().get(url, follow_redirects=True)
        response.raise_for_status()
    except Exception as error:
        raise FileNotFoundError(f"{url:.200}: {error or type(error).__name__}") from error
    return response.content


@contextmanager
def _broken_files_named(index: int) -> Generator[None, None, None]:
    """Broken files make Pillow's decoders raise nearly everything; it all means the same to who gave the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"Image {index} of the batch cannot be read: {error or type(error).__name__}.") from error


def image_shapes(
    samples: list[list[Any]], input_data_format: ChannelDimension | str | None
) -> list[tuple[int, int, int]]:
    """
    `(height, width, channels)` of every image of the batch in pixels, in order.

    Args:
        samples: pictures, arrays and tensors, one list per sample.
        input_data_format: where arrays hold their channels; unset, inferred.

    Raises:
        ValueError: an image without pixels, or an array of another shape than an image's.
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
    """Axes of height, width and channels (`None` for a grey image without them) in an array."""
    if image.ndim == 2:
        return 0, 1, None
    data_format = input_data_format
    if data_format is None and image.ndim == 3:
        with suppress(ValueError):
            # It reads the shape alone, though its annotation asks for an array.
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
    An image as a uint8 tensor `(channels, height, width)`, in memory channels-last. Float images are brought from 0..1 to 8
    bits by rounding, 16-bit ones by division; transparency is laid over white.

    Args:
        image: a picture, an array or a tensor.
        index: its place in the batch, for errors.
        do_convert_rgb: whether to make three channels of any.
        do_rescale: whether pixels are rescaled afterwards, as float images must be.
        input_data_format: where arrays hold their channels; unset, inferred.

    Raises:
        ValueError: a file that turns out broken, or values that are no image's.
    """
    array: np.ndarray
    if isinstance(image, Image.Image):
        with _broken_files_named(index):
            if image.mode.startswith(("I", "F")):
                array = np.asarray(image)
                if array.dtype.itemsize == 2:
                    array = np.rint(array / 257).astype(np.uint8)
            elif do_convert_rgb and (image.mode != "RGB" or "transparency" in image.info):
                array = np.asarray(convert_to_rgb(image, return_numpy=True))
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
        array = np.asarray(convert_to_rgb(array, return_numpy=True, input_data_format=ChannelDimension.LAST))
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).permute(2, 0, 1)


def _copied(image: Image.Image) -> np.ndarray:
    """What `np.array` gives. That writes every pixel three times to new memory, which for large photographs takes longer
    than resizing them; so they go over in bands of rows that stay in the processor's cache."""
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
            f"Image {index} of the batch is {array.dtype} in 0..1, which is brought to 8 bits before it is resized; "
            "leave do_rescale on."
        )
    highest = 1 if is_float else 255
    expected = "pass integers in 0..255 or floats in 0..1, without NaN."
    if array.dtype.kind not in "fui":
        raise ValueError(f"Image {index} of the batch is {array.dtype}; {expected}")
    lowest_found, highest_found = array.min(), array.max()
    # Written so that NaN, for which every comparison is false, is refused.
    if not (lowest_found >= 0 and highest_found <= highest):
        raise ValueError(
            f"Image {index} of the batch is {array.dtype} with values from {lowest_found} to {highest_found}; {expected}"
        )
    return np.rint(array * 255).astype(np.uint8) if is_float else array.astype(np.uint8)
