"""The image processor of MM1, which splits images into tiles. It needs torch and Pillow, but not torchvision."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack

from .image_inputs import fetch_images
from .image_pixels import image_shapes, to_uint8_pixels
from .tiling import ImageLayout, TilingConfig, image_layout, place_in_canvas, sample_layouts


# Pillow's resampling filters, which transformers saves as numbers, and the mode of F.interpolate that matches each.
_INTERPOLATION_MODES = {
    PILImageResampling.NEAREST: "nearest-exact",
    PILImageResampling.BILINEAR: "bilinear",
    PILImageResampling.BICUBIC: "bicubic",
}


class MM1ImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    image_splitting (`str`, *optional*, defaults to `"dynamic"`):
        `"none"` (one tile per image), `"static"` (a fixed square grid) or `"dynamic"` (the grid that suits the image).
    static_grid (`int`, *optional*, defaults to 2):
        Number of rows, and of columns, of the fixed grid.
    min_tiles (`int`, *optional*, defaults to 4):
        Fewest tiles of a dynamic grid, the overview not counted.
    max_tiles (`int`, *optional*, defaults to 9):
        Most tiles of a dynamic grid, the overview not counted.
    overview_position (`str`, *optional*, defaults to `"after"`):
        Whether the overview comes `"before"` or `"after"` the tiles.
    position_indicators (`str`, *optional*, defaults to `"none"`):
        Text that marks the position of a tile: `"none"`, `"index"` or `"seps"`. It changes the text, not the pixels.
    max_split_images (`int`, *optional*, defaults to 2):
        Images are split only in samples that hold at most this number of images.
    split_last (`int`, *optional*):
        If set, this number of images at the end of each sample are split, regardless of `max_split_images`.
    whole_image_resize (`str`, *optional*, defaults to `"squash"`):
        How a whole image is fitted to a square: `"squash"` resizes both sides, `"pad"` keeps the aspect ratio
        and pads the rest.
    pad_position (`str`, *optional*, defaults to `"center"`):
        Position of an image in a canvas that it does not fill: `"center"` or `"top_left"`.
    pad_value (`int` or `list[int]`, *optional*):
        Colour of the padding: a number from 0 to 255, or one number per channel. By default the image mean.
    crop_to_patches (`bool`, *optional*):
        The same as `return_num_patches`, under the name that TRL's trainers use.
    return_num_patches (`bool`, *optional*):
        Whether to return `num_patches` too, the number of tiles of each image.
    """

    image_splitting: Literal["none", "static", "dynamic"]
    static_grid: int
    min_tiles: int
    max_tiles: int
    overview_position: Literal["before", "after"]
    position_indicators: Literal["none", "index", "seps"]
    max_split_images: int
    split_last: int | None
    whole_image_resize: Literal["squash", "pad"]
    pad_position: Literal["center", "top_left"]
    pad_value: int | list[int] | tuple[int, ...] | None
    crop_to_patches: bool | None
    return_num_patches: bool | None


class MM1ImageProcessor(BaseImageProcessor):
    """Splits images into tiles of the encoder's input size (MM1: static splitting; MM1.5: dynamic splitting).

    `pixel_values` is `(total_tiles, channels, tile, tile)` in float32. It holds the tiles of all images of the batch
    one after the other, in the order of their placeholder tokens in the text; images are not padded to a common number
    of tiles. With `do_rescale=False` and `do_normalize=False` it is uint8, which takes a quarter of the memory and of
    the transfer to the device. MM1 normalises such tiles itself, by `pixel_mean` and `pixel_scale` of its
    configuration.

    In a nested list of images, each inner list holds the images of one sample and may be empty; in a flat list, every
    image is a sample of one image. The difference matters because images are split only in samples of few images.

    Images are given as Pillow images, arrays, tensors, the bytes of a file, paths, URLs or base64, or undecoded images
    of `datasets`. Which files are read, and up to which size, is said in `image_files.py`; what of the web is, in
    `fetching.py`.

    Images are resized as 8-bit pixels. Float images must lie in 0..1 and are first converted to 8 bits by rounding
    `255 * x`. Pillow images of 16 bits, and PGM files, are divided by 257. Transparent pixels are blended with white, as
    in transformers. With `do_resize=False` no image is split,
    and every image must already have the size of a tile.

    The settings are those of `MM1ImageProcessorKwargs`; each of them can also be passed to a call. `size` is the size
    of a tile and must be square. Centre cropping and batch padding (`do_center_crop`, `do_pad`) are not part of MM1,
    and setting them has no effect.

    Raises:
        ValueError: If a setting is not valid.

    Example:

    ```python
    >>> from PIL import Image
    >>> from mm1_hf import MM1ImageProcessor

    >>> processor = MM1ImageProcessor(size={"height": 56, "width": 56})
    >>> batch = processor(Image.new("RGB", (160, 90)), return_num_patches=True, return_tensors="pt")
    >>> batch["pixel_values"].shape, batch["num_patches"].tolist()
    (torch.Size([7, 3, 56, 56]), [7])

    ```
    """

    valid_kwargs = MM1ImageProcessorKwargs
    model_input_names = ["pixel_values"]

    do_convert_rgb = True
    do_resize = True
    size = {"height": 672, "width": 672}
    resample = PILImageResampling.BICUBIC
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    image_splitting = "dynamic"
    static_grid = 2
    min_tiles = 4
    max_tiles = 9
    overview_position = "after"
    position_indicators = "none"
    max_split_images = 2
    split_last = None
    whole_image_resize = "squash"
    pad_position = "center"
    pad_value = None

    def __init__(self, **kwargs: Unpack[MM1ImageProcessorKwargs]):
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        # Invalid settings should raise here, where they are given, and not at the first image.
        self.tiling_config()
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    @property
    def backend(self) -> str:
        """`str`: the name by which transformers knows image processors that need no torchvision."""
        return "pil"

    def tiling_config(self, **kwargs: Any) -> TilingConfig:
        """Returns the settings of this processor that concern tiling.

        Args:
            kwargs: Settings that override those of this processor; settings that do not concern tiling are ignored.

        Returns:
            `TilingConfig`: The settings.

        Raises:
            ValueError: If a setting is not valid, or `size` is not square.
        """

        def setting(name: str) -> Any:
            return kwargs.get(name, getattr(self, name))

        size = self._standardize_kwargs(size=setting("size"), default_to_square=True)["size"]
        if size.height is None or size.height != size.width:
            raise ValueError(
                f"size is {dict(size)}, but tiles are square: set height and width to the same number of pixels, for "
                'example {"height": 672, "width": 672}.'
            )
        return TilingConfig(
            tile_size=size.height,
            splitting=setting("image_splitting") if setting("do_resize") else "none",
            static_grid=setting("static_grid"),
            min_tiles=setting("min_tiles"),
            max_tiles=setting("max_tiles"),
            overview=setting("overview_position"),
            indicators=setting("position_indicators"),
            max_split_images=setting("max_split_images"),
            split_last=setting("split_last"),
            whole_image_resize=setting("whole_image_resize"),
        )

    def image_sizes(
        self, images: ImageInput | Sequence[Any], input_data_format: ChannelDimension | str | None = None
    ) -> list[list[tuple[int, int]]]:
        """Returns the sizes of images without processing their pixels.

        Args:
            images (`ImageInput`): Images in any form that `preprocess` accepts.
            input_data_format (`ChannelDimension` or `str`, *optional*): Position of the channel axis in arrays and
                tensors; inferred by default.

        Returns:
            `list[list[tuple[int, int]]]`: `(height, width)` in pixels of each image, one inner list per sample.

        Raises:
            ValueError: If an image cannot be read, or single images and lists of images are mixed.
        """
        samples = self._samples(images)
        shapes = iter(image_shapes(samples, input_data_format))
        return [[next(shapes)[:2] for _ in sample] for sample in samples]

    def get_layouts(self, image_sizes: Sequence[Sequence[tuple[int, int]]], **kwargs: Any) -> list[list[ImageLayout]]:
        """Computes the layouts of images from their sizes.

        Args:
            image_sizes (`Sequence[Sequence[tuple[int, int]]]`): `(height, width)` in pixels of each image, one inner
                sequence per sample.
            kwargs: Settings that override those of this processor.

        Returns:
            `list[list[ImageLayout]]`: One layout per image, one inner list per sample.

        Raises:
            ValueError: If a setting is not valid, or a side of an image is below one pixel.
        """
        config = self.tiling_config(**kwargs)
        return [sample_layouts(sizes, config) for sizes in image_sizes]

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Returns the number of tiles of an image that is the only one in its sample.

        Processors and serving engines call this to compute how many image tokens an image needs.

        Args:
            height (`int`): Height of the image in pixels.
            width (`int`): Width of the image in pixels.
            images_kwargs (`dict`, *optional*): Settings that override those of this processor.

        Returns:
            `int`: The number of tiles, the overview included.

        Raises:
            ValueError: If a setting is not valid, or a side of the image is below one pixel.
        """
        return self.get_layouts([[(height, width)]], **(images_kwargs or {}))[0][0].num_tiles

    # transformers passes settings to this and the two other overriding methods by keyword, so their order may differ.
    def _standardize_kwargs(self, pad_value: int | Sequence[int] | None = None, **kwargs: Any) -> dict[str, Any]:  # ty: ignore[incompatible-method-override]
        kwargs = super()._standardize_kwargs(**kwargs)
        # JSON turns tuples into lists; with a tuple in both cases, settings are equal before and after saving.
        kwargs["pad_value"] = tuple(pad_value) if isinstance(pad_value, list) else pad_value
        return kwargs

    def _validate_preprocess_kwargs(  # ty: ignore[incompatible-method-override]
        self,
        resample: PILImageResampling | int | None = None,
        pad_position: str = "center",
        pad_value: int | tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        super()._validate_preprocess_kwargs(resample=resample, **kwargs)
        if resample is not None and resample not in _INTERPOLATION_MODES:
            accepted = ", ".join(f"{int(filter_)} ({filter_.name})" for filter_ in _INTERPOLATION_MODES)
            raise ValueError(f"resample is {resample!r}; set it to one of {accepted}.")
        if pad_position not in ("center", "top_left"):
            raise ValueError(f"pad_position is {pad_position!r}; set it to one of center, top_left.")
        if pad_value is not None and not all(0 <= level <= 255 for level in np.atleast_1d(pad_value)):
            raise ValueError(
                f"pad_value is {pad_value}; set it to numbers from 0 to 255, or to None for the image mean."
            )

    def fetch_images(self, image_url_or_urls: ImageInput | Sequence[Any]) -> Any:
        """Opens images given as paths, URLs, base64 or bytes; see [`~mm1_hf.model.image_inputs.fetch_images`]. In a
        nested list, `None` stands for a sample without images."""
        images = image_url_or_urls
        if isinstance(images, list | tuple) and any(isinstance(sample, list | tuple) for sample in images):
            # TRL's GRPO and RLOO trainers pass None for a prompt without images.
            images = [[] if sample is None else sample for sample in images]
        return fetch_images(images)

    def _samples(self, images: ImageInput | Sequence[Any]) -> list[list[Any]]:
        """The images as one list per sample."""
        fetched = self.fetch_images(images)
        entries: list[Any] = fetched if isinstance(fetched, list) else [fetched]
        nested = [isinstance(entry, list) for entry in entries]
        if all(nested):
            return entries
        if any(nested):
            raise ValueError(
                "images holds both single images and lists of images; pass either a flat list, in which every image "
                "is a sample, or one list of images per sample."
            )
        return [[image] for entry in entries for image in (entry if getattr(entry, "ndim", 0) == 4 else [entry])]

    def _preprocess_image_like_inputs(  # ty: ignore[incompatible-method-override]
        self,
        images: ImageInput | Sequence[Any],
        *,
        size: SizeDict,
        resample: PILImageResampling | int,
        do_resize: bool,
        do_convert_rgb: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | Sequence[float] | None,
        image_std: float | Sequence[float],
        pad_position: str,
        pad_value: int | Sequence[int] | None,
        input_data_format: ChannelDimension | str | None,
        return_tensors: str | None,
        return_num_patches: bool | None,
        crop_to_patches: bool | None,
        **kwargs: Any,
    ) -> BatchFeature:
        samples = self._samples(images)
        shapes = image_shapes(samples, input_data_format)
        channels = 3 if do_convert_rgb or not shapes else shapes[0][2]
        config = self.tiling_config(size=size, do_resize=do_resize, **kwargs)
        remaining = iter(shapes)
        layouts = [
            layout for sample in samples for layout in sample_layouts([next(remaining)[:2] for _ in sample], config)
        ]

        mean = _per_channel("image_mean", 0.0 if image_mean is None else image_mean, channels)
        if pad_value is None:
            # Rounded to 8 bits, so normalised padding is zero up to half an 8-bit level. The mean refers to rescaled
            # pixels, unless pixels are normalised without being rescaled.
            level = mean if do_normalize and not do_rescale else mean / rescale_factor
            colour = level.round().clamp(0, 255).to(torch.uint8)
        else:
            colour = _per_channel("pad_value", pad_value, channels).to(torch.uint8)
        scale, shift = torch.tensor(rescale_factor if do_rescale else 1.0, dtype=torch.float64), torch.zeros(channels)
        if do_normalize:
            std = _per_channel("image_std", image_std, channels)
            scale, shift = scale / std, -mean / std
        scale, shift = scale.float().view(-1, 1, 1), shift.float().view(-1, 1, 1)
        mode = _INTERPOLATION_MODES[PILImageResampling(resample)] if do_resize else None
        tile = config.tile_size

        is_float = do_rescale or do_normalize
        num_tiles = sum(layout.num_tiles for layout in layouts)
        # Allocated by NumPy, which asks for huge pages: torch would take longer to allocate the batch than to fill it.
        pixel_values = torch.from_numpy(
            np.empty((num_tiles, channels, tile, tile), dtype=np.float32 if is_float else np.uint8)
        )
        start = 0
        flat = (image for sample in samples for image in sample)
        for index, (image, (height, width, _), layout) in enumerate(zip(flat, shapes, layouts, strict=True)):
            if mode is None and (height, width) != (tile, tile):
                raise ValueError(
                    f"Image {index} of the batch is {height} x {width} pixels; with do_resize=False every image must "
                    f"be {tile} x {tile}. Leave do_resize on, or resize the image first."
                )
            pixels = to_uint8_pixels(image, index, do_convert_rgb, do_rescale, input_data_format)
            if pixels.shape[0] != channels:
                raise ValueError(
                    f"Image {index} of the batch has {pixels.shape[0]} channels, others have {channels}; leave "
                    "do_convert_rgb on, or pass images with the same number of channels."
                )
            parts = [layout]
            if layout.overview:
                whole = image_layout(height, width, config, split=False)
                parts = [whole, layout] if config.overview == "before" else [layout, whole]
            for part in parts:
                tiles = pixel_values[start : start + part.rows * part.cols]
                for target in _draw_tiles(tiles, pixels, part, mode, pad_position, colour):
                    # Normalised tile by tile, while the tile is still in the processor's cache.
                    if is_float:
                        target.mul_(scale).add_(shift)
                start += len(tiles)

        data: dict[str, Any] = {"pixel_values": pixel_values.numpy()}
        if return_num_patches or crop_to_patches:
            data["num_patches"] = np.array([layout.num_tiles for layout in layouts], dtype=np.int64)
        return BatchFeature(data=data, tensor_type=return_tensors)


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> torch.Tensor:
    values = torch.as_tensor(value, dtype=torch.float64)
    if values.numel() not in (1, channels):
        raise ValueError(
            f"{name} is {value}, but the images have {channels} channels; set it to one number or {channels} numbers."
        )
    return values.expand(channels)


def _draw_tiles(
    tiles: torch.Tensor,
    pixels: torch.Tensor,
    layout: ImageLayout,
    mode: str | None,
    pad_position: str,
    colour: torch.Tensor,
) -> Iterator[torch.Tensor]:
    """Resizes `pixels` to the layout's size and writes its tiles, padded with `colour`, into `tiles` `(rows * cols,
    channels, tile, tile)`, where the 8-bit pixels are converted to the dtype of `tiles`. Yields each tile once it is
    written."""
    height, width = layout.resized_height, layout.resized_width
    if mode is not None and pixels.shape[1:] != (height, width):
        # For 8-bit channels-last input torch has a faster kernel, whose results agree with Pillow's. The batch
        # dimension is added before the channels are moved to the front, because its stride makes the kernel keep the
        # output channels-last, too, which takes half the time.
        batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        pixels = F.interpolate(batch, size=(height, width), mode=mode, antialias=mode != "nearest-exact")[0]
    tile = tiles.shape[-1]
    top, left = place_in_canvas(layout, tile, pad_position)
    for index, target in enumerate(tiles):
        # The tile's upper left corner in the scaled image; it lies outside the image if the tile has padding there.
        y, x = index // layout.cols * tile - top, index % layout.cols * tile - left
        y_start, y_end = max(y, 0), min(y + tile, height)
        x_start, x_end = max(x, 0), min(x + tile, width)
        if (y_end - y_start, x_end - x_start) != (tile, tile):
            target.copy_(colour.view(-1, 1, 1))
        # For a narrow image in a square grid, some tiles hold only padding.
        if y_start < y_end and x_start < x_end:
            # NumPy is faster than torch at moving the channels to the front and converting to float.
            part = target.numpy()[:, y_start - y : y_end - y, x_start - x : x_end - x]
            part[...] = pixels[:, y_start:y_end, x_start:x_end].numpy()
        yield target


__all__ = ["MM1ImageProcessor", "MM1ImageProcessorKwargs"]
