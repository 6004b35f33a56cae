"""Converts images of any mode and arrays of any form to 8-bit pixels, a band of rows at a time."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format

from .image_files import broken_files_named


# A band of rows fits into the processor's cache, and large images need no further copy of their size.
_PIXELS_PER_BAND = 2**18


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


def require_dense(image: np.ndarray | torch.Tensor) -> None:
    """
    Checks that an array or tensor holds its values one by one.

    Args:
        image: an array or a tensor.

    Raises:
        ValueError: it is a tensor without values (of the device `meta`), a sparse, nested or quantised one.
    """
    if not isinstance(image, torch.Tensor):
        return
    kind = (
        "on the device meta, so it has no values"
        if image.is_meta
        else "nested"
        if image.is_nested
        else "quantised"
        if image.is_quantized
        else f"of the layout {image.layout}"
        if image.layout != torch.strided
        else None
    )
    if kind is not None:
        raise ValueError(f"it is a tensor that is {kind}; pass a dense tensor of integers or floats")


def to_uint8_pixels(
    image: Any, index: int, do_convert_rgb: bool, do_rescale: bool, input_data_format: ChannelDimension | str | None
) -> torch.Tensor:
    """
    Converts an image to a uint8 tensor `(channels, height, width)` that is channels-last in memory. Float arrays in
    0..1 become `round(255 * x)`; 16-bit Pillow images are divided by 257 and rounded.

    Args:
        image: a Pillow image of 8 or 16 bits, an array or a tensor.
        index: index of the image in the batch, for error messages.
        do_convert_rgb: whether to convert to three channels; transparent pixels are then blended with white.
        do_rescale: whether the pixels are rescaled afterwards, which float arrays require.
        input_data_format: position of the channel axis in arrays and tensors; inferred if unset.

    Raises:
        ValueError: the image file is broken, or the values are not those of an image.
    """
    if isinstance(image, Image.Image):
        # Only here the pixels of most files are decoded.
        with broken_files_named(index):
            array = levels_of(image, _rgb_levels if do_convert_rgb else _own_levels)
        return torch.from_numpy(array).permute(2, 0, 1)
    if isinstance(image, torch.Tensor):
        # NumPy has no bfloat16.
        array = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
    else:
        array = np.asarray(image)
    channel_axis = _axes(array, index, input_data_format)[2]
    array = array[..., None] if channel_axis is None else np.moveaxis(array, channel_axis, -1)
    if array.dtype != np.uint8:
        array = _to_uint8(array, index, do_rescale)
    if do_convert_rgb and array.shape[2] != 3:
        array = _array_as_rgb(array)
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).permute(2, 0, 1)


def levels_of(image: Image.Image, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """
    Converts an image to 8-bit levels, a part at a time, so that the steps between need little memory. For large
    photographs that are RGB already it is faster than `np.array` too, which writes every pixel three times to new memory.

    Args:
        image: a Pillow image.
        convert: converts an image, or a part of one, to an array `(height, width, channels)` of uint8.

    Returns:
        `(height, width, channels)`, uint8, in memory of its own.
    """
    image.load()
    if image.width * image.height <= 4 * _PIXELS_PER_BAND:
        return np.require(convert(image), requirements=["C", "O", "W"])
    channels = convert(image.crop((0, 0, 1, 1))).shape[2]
    array = np.empty((image.height, image.width, channels), dtype=np.uint8)
    for left, top, right, bottom in _parts(image.width, image.height):
        array[top:bottom, left:right] = convert(image.crop((left, top, right, bottom)))
    return array


def _parts(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes `(left, top, right, bottom)` that cover an image, whole rows where these are not longer than a band."""
    columns = min(width, _PIXELS_PER_BAND)
    rows = _PIXELS_PER_BAND // columns
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def _rgb_levels(image: Image.Image) -> np.ndarray:
    """`(height, width, 3)`, uint8, with transparency laid over white."""
    if image.mode.startswith("I;16"):
        return _own_levels(image).repeat(3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _own_levels(image: Image.Image) -> np.ndarray:
    """`(height, width, channels)`, uint8, in the channels of the image's mode."""
    if image.mode.startswith("I;16"):
        array = np.rint(np.asarray(image) / 257).astype(np.uint8)
    else:
        array = np.asarray(image.convert("L") if image.mode == "1" else image)
    return array[..., None] if array.ndim == 2 else array


def _array_as_rgb(array: np.ndarray) -> np.ndarray:
    """The same for `(height, width, channels)` in uint8: one channel is grey, a fourth one is transparency."""
    if array.shape[2] == 1:
        return array.repeat(3, axis=2)
    alpha = array[..., 3:] / 255
    return np.round(alpha * array[..., :3] + (1 - alpha) * 255).astype(np.uint8)


def _to_uint8(array: np.ndarray, index: int, do_rescale: bool) -> np.ndarray:
    is_float = array.dtype.kind == "f"
    if is_float and not do_rescale:
        raise ValueError(
            f"Image {index} of the batch is {array.dtype}. Float images are converted to 8 bits, 0..255, before they "
            "are resized, and have to be rescaled afterwards: leave do_rescale on, or pass integers in 0..255."
        )
    try:
        return eight_bit(array)
    except ValueError as error:
        raise ValueError(f"Image {index} of the batch is {error}.") from error


def eight_bit(array: np.ndarray) -> np.ndarray:
    """
    Converts integers in 0..255 as they are, and floats in 0..1 to `round(255 * x)`.

    Args:
        array: an array of any shape.

    Returns:
        The same shape in uint8.

    Raises:
        ValueError: the values are none of these.
    """
    expected = "pass integers in 0..255 or floats in 0..1, without NaN"
    if array.dtype.kind not in "fui":
        raise ValueError(f"{array.dtype}; {expected}")
    is_float = array.dtype.kind == "f"
    lowest, highest = array.min(), array.max()
    # `not (...)` also rejects NaN, for which every comparison is false.
    if not (lowest >= 0 and highest <= (1 if is_float else 255)):
        raise ValueError(f"{array.dtype} with values from {lowest} to {highest}; {expected}")
    return np.rint(array * 255).astype(np.uint8) if is_float else array.astype(np.uint8)
