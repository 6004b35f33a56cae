"""Images into tiles: which pixels go where, with what values, from what inputs."""

import numpy as np
import pytest
import torch
from PIL import Image

from mm1_hf.model.image_processing_mm1 import MM1ImageProcessor


MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# What the CLIP mean is in levels of 8 bits.
MEAN_COLOUR = (123, 117, 104)


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth picture with edges and grain, as photographs have them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    smooth = [np.sin(7 * x + 3 * y + phase) * np.cos(5 * y - phase) for phase in (0.0, 1.0, 2.0)]
    pixels = 128 + 90 * np.stack(smooth, axis=-1) + rng.normal(0, 12, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 5, 60)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def raw(tile: int = 32, **settings: object) -> MM1ImageProcessor:
    """A processor that leaves the levels of 8 bits as they are."""
    return MM1ImageProcessor(size={"height": tile, "width": tile}, do_rescale=False, do_normalize=False, **settings)


def pixel_values(processor: MM1ImageProcessor, images: object, **settings: object) -> torch.Tensor:
    """In float32, so that differences of levels have a sign."""
    return processor(images, return_tensors="pt", **settings)["pixel_values"].float()


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def cut(canvas: Image.Image, tile: int) -> torch.Tensor:
    """`(tiles, 3, tile, tile)`, each cropped by Pillow, row by row."""
    corners = [(left, top) for top in range(0, canvas.height, tile) for left in range(0, canvas.width, tile)]
    return torch.stack([as_tensor(canvas.crop((x, y, x + tile, y + tile))) for x, y in corners])


# --- tiles


@pytest.mark.parametrize("pad_position", ["center", "top_left"])
@pytest.mark.parametrize(("height", "width"), [(90, 200), (200, 90), (427, 640), (64, 64), (40, 500), (301, 299)])
def test_tiles_are_those_of_a_canvas_that_pillow_drew(height: int, width: int, pad_position: str) -> None:
    image, tile = photo(height, width), 32
    processor = raw(tile, pad_position=pad_position)
    (layout,) = processor.get_layouts([[(height, width)]])[0]
    canvas = Image.new("RGB", (layout.cols * tile, layout.rows * tile), MEAN_COLOUR)
    resized = image.resize((layout.resized_width, layout.resized_height), Image.Resampling.BICUBIC)
    free = (canvas.width - resized.width, canvas.height - resized.height)
    canvas.paste(resized, (free[0] // 2, free[1] // 2) if pad_position == "center" else (0, 0))

    found = pixel_values(processor, image)
    overview = as_tensor(image.resize((tile, tile), Image.Resampling.BICUBIC))[None]
    assert (found - torch.cat([cut(canvas, tile), overview])).abs().max() <= 2


@pytest.mark.parametrize(
    ("resample", "tolerance"), [(Image.Resampling.BICUBIC, 2), (Image.Resampling.BILINEAR, 2), (0, 0)]
)
def test_resizing_agrees_with_pillow(resample: int, tolerance: int) -> None:
    image = photo(313, 471)
    found = pixel_values(raw(224, image_splitting="none", resample=resample), image)[0]
    expected = as_tensor(image.resize((224, 224), resample))
    assert (found - expected).abs().max() <= tolerance


@pytest.mark.parametrize("pad_position", ["center", "top_left"])
@pytest.mark.parametrize(("height", "width"), [(160, 4), (4, 160)])
def test_tiles_may_be_all_padding(height: int, width: int, pad_position: str) -> None:
    image, tile = photo(height, width), 32
    processor = raw(tile, pad_position=pad_position, image_splitting="static", static_grid=3, whole_image_resize="pad")
    (layout,) = processor.get_layouts([[(height, width)]])[0]
    canvas = Image.new("RGB", (96, 96), MEAN_COLOUR)
    resized = image.resize((layout.resized_width, layout.resized_height), Image.Resampling.BICUBIC)
    free = (96 - resized.width, 96 - resized.height)
    canvas.paste(resized, (free[0] // 2, free[1] // 2) if pad_position == "center" else (0, 0))
    found = pixel_values(processor, image)[:9]
    assert (found - cut(canvas, tile)).abs().max() <= 2
    assert sum((one == torch.tensor(MEAN_COLOUR).view(3, 1, 1)).all().item() for one in found) == 6


def test_an_image_of_the_canvas_size_is_not_resampled() -> None:
    image = photo(64, 64)
    assert torch.equal(pixel_values(raw(), image)[:4], cut(image, 32))


def test_the_overview_stands_where_it_is_asked_for() -> None:
    image = photo(64, 64)
    after, before = pixel_values(raw(), image), pixel_values(raw(overview_position="before"), image)
    overview = pixel_values(raw(image_splitting="none"), image)
    assert torch.equal(after, torch.cat([cut(image, 32), overview]))
    assert torch.equal(before, torch.cat([overview, cut(image, 32)]))


@pytest.mark.parametrize(("tile", "canvas"), [(672, 1344), (896, 1792)])
def test_static_splitting_gives_five_images(tile: int, canvas: int) -> None:
    image = photo(300, 400)
    found = pixel_values(raw(tile, image_splitting="static"), image)
    assert found.shape == (5, 3, tile, tile)
    whole = image.resize((canvas, canvas), Image.Resampling.BICUBIC)
    assert (found[:4] - cut(whole, tile)).abs().max() <= 2


def test_whole_images_are_squashed_or_padded() -> None:
    white = Image.new("RGB", (64, 16), "white")
    assert (pixel_values(raw(image_splitting="none"), white) == 255).all()
    padded = pixel_values(raw(image_splitting="none", whole_image_resize="pad", pad_value=7), white)[0]
    assert (padded[:, 12:20] == 255).all()
    assert (padded[:, :12] == 7).all()
    assert (padded[:, 20:] == 7).all()


def test_padding_stands_on_both_sides_or_behind() -> None:
    white = Image.new("RGB", (64, 48), "white")
    settings = {"pad_value": (1, 2, 3), "min_tiles": 4, "max_tiles": 4}
    colour = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)

    def canvas(pad_position: str) -> torch.Tensor:
        tiles = pixel_values(raw(pad_position=pad_position, **settings), white)[:4].view(2, 2, 3, 32, 32)
        return tiles.permute(2, 0, 3, 1, 4).reshape(3, 64, 64)

    center, top_left = canvas("center"), canvas("top_left")
    assert (center[:, 8:56] == 255).all()
    assert (center[:, :8] == colour).all()
    assert (center[:, 56:] == colour).all()
    assert (top_left[:, :48] == 255).all()
    assert (top_left[:, 48:] == colour).all()


def test_padding_is_zero_after_normalisation_by_default() -> None:
    processor = MM1ImageProcessor(size={"height": 32, "width": 32}, pad_position="top_left", max_tiles=4)
    last_tile = pixel_values(processor, photo(10, 64))[3]
    # The image takes 20 of the 32 rows; half a level of 8 bits is left of the rest.
    assert last_tile[:, :20].abs().max() > 0.5
    assert last_tile[:, 20:].abs().max() <= 0.5 / 255 / min(STD)
    raw_levels = {"do_rescale": False, "image_mean": [100.0, 110.0, 120.0], "image_std": 1.0}
    assert (pixel_values(processor, photo(10, 64), **raw_levels)[3, :, 20:] == 0).all()


def test_values_are_rescaled_and_normalised() -> None:
    image = photo(32, 32)
    levels = as_tensor(image)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    processor = MM1ImageProcessor(size={"height": 32, "width": 32}, image_splitting="none")
    torch.testing.assert_close(pixel_values(processor, image)[0], (levels / 255 - mean) / std)
    torch.testing.assert_close(pixel_values(processor, image, do_normalize=False)[0], levels / 255)
    unscaled = pixel_values(processor, image, do_rescale=False, image_mean=[9.0, 8.0, 7.0], image_std=2.0)[0]
    torch.testing.assert_close(unscaled, (levels - torch.tensor([9.0, 8.0, 7.0]).view(3, 1, 1)) / 2)


def test_without_resizing_nothing_is_split_or_changed() -> None:
    image = photo(32, 32)
    assert torch.equal(pixel_values(raw(do_resize=False), image)[0], as_tensor(image))
    assert raw(do_resize=False).get_number_of_image_patches(32, 32) == 1
    with pytest.raises(ValueError, match=r"Image 1 of the batch is 33 x 32 pixels; with do_resize=False"):
        raw(do_resize=False)([image, photo(33, 32)])


# --- samples


def test_images_are_counted_by_sample() -> None:
    image = photo(64, 64)
    assert len(pixel_values(raw(), [image] * 3)) == 15
    assert len(pixel_values(raw(), [[image] * 3])) == 3
    assert len(pixel_values(raw(), [[image] * 2, [image]])) == 15
    assert len(pixel_values(raw(split_last=1), [[image] * 3])) == 7


def test_tiles_of_a_batch_follow_one_another() -> None:
    samples = [[photo(64, 64, 1), photo(40, 90, 2)], [], [photo(20, 300, 3)]]
    expected = [pixel_values(raw(), image) for sample in samples for image in sample]
    assert torch.equal(pixel_values(raw(), samples), torch.cat(expected))


def test_samples_may_be_empty() -> None:
    image = photo(64, 64)
    assert torch.equal(pixel_values(raw(), [[], [image], []]), pixel_values(raw(), image))
    for images in ([], [[]], [[], []]):
        encoded = raw()(images, return_tensors="pt", return_num_patches=True)
        assert encoded["pixel_values"].shape == (0, 3, 32, 32)
        assert encoded["num_patches"].shape == (0,)


def test_image_sizes_follow_the_nesting() -> None:
    grey = np.zeros((5, 6), dtype=np.uint8)
    first, last = np.zeros((3, 7, 8), dtype=np.uint8), np.zeros((9, 10, 3), dtype=np.uint8)
    processor = MM1ImageProcessor()
    assert processor.image_sizes([[photo(11, 12), grey], [], [torch.from_numpy(first)]]) == [
        [(11, 12), (5, 6)],
        [],
        [(7, 8)],
    ]
    assert processor.image_sizes([first, last]) == [[(7, 8)], [(9, 10)]]
    assert processor.image_sizes(photo(11, 12)) == [[(11, 12)]]
    assert processor.image_sizes(np.zeros((2, 7, 8, 3), dtype=np.uint8)) == [[(7, 8)], [(7, 8)]]


def test_counts_equal_tiles() -> None:
    samples = [[photo(64, 64), photo(30, 500)], [photo(100, 40)], [photo(50, 50)] * 3]
    processor = raw()
    encoded = processor(samples, return_tensors="pt", return_num_patches=True)
    layouts = processor.get_layouts(processor.image_sizes(samples))
    assert [layout.num_tiles for sample in layouts for layout in sample] == encoded["num_patches"].tolist()
    assert encoded["num_patches"].sum() == len(encoded["pixel_values"])
    assert processor.get_number_of_image_patches(30, 500) == encoded["num_patches"][1]
    assert processor.get_number_of_image_patches(30, 500, {"image_splitting": "none"}) == 1


def test_nothing_but_pixel_values_is_returned_unasked() -> None:
    image = photo(64, 64)
    assert set(raw()(image)) == {"pixel_values"}
    for name in ("return_num_patches", "crop_to_patches"):
        encoded = raw()([image, image], return_tensors="pt", **{name: True})
        assert set(encoded) == {"pixel_values", "num_patches"}
        assert encoded["num_patches"].tolist() == [5, 5]


def test_an_image_is_counted_without_its_pixels() -> None:
    # No machine could go through so many of them.
    assert MM1ImageProcessor().get_number_of_image_patches(10**9, 10**9) == 10


# --- inputs


def test_all_forms_of_an_image_give_the_same_tiles() -> None:
    image = photo(50, 90)
    last = np.array(image)
    first = np.ascontiguousarray(last.transpose(2, 0, 1))
    forms = [
        last,
        first,
        last[::-1][::-1],
        torch.from_numpy(first),
        torch.from_numpy(last),
        last.astype(np.int64),
        image.convert("RGBA"),
        np.array(image.convert("RGBA")),
    ]
    expected = pixel_values(raw(), image)
    for form in forms:
        assert torch.equal(pixel_values(raw(), form), expected)
    assert torch.equal(pixel_values(raw(), forms), torch.cat([expected] * len(forms)))
    assert torch.equal(pixel_values(raw(), np.stack([last, last])), torch.cat([expected] * 2))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images_in_0_to_1_are_brought_to_8_bits(dtype: type) -> None:
    processor = MM1ImageProcessor(size={"height": 32, "width": 32})
    image = photo(50, 90)
    floats = (np.array(image) / 255).astype(dtype)
    assert torch.equal(pixel_values(processor, floats), pixel_values(processor, image))
    assert torch.equal(pixel_values(processor, torch.from_numpy(floats)), pixel_values(processor, image))


def test_bfloat16_images_are_taken() -> None:
    processor = MM1ImageProcessor(size={"height": 32, "width": 32}, do_normalize=False)
    found = pixel_values(processor, torch.ones(3, 32, 32, dtype=torch.bfloat16))
    torch.testing.assert_close(found, torch.ones(5, 3, 32, 32))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGB"])
def test_pillow_modes_become_rgb(mode: str) -> None:
    image = photo(40, 40).convert(mode)
    assert torch.equal(pixel_values(raw(), image), pixel_values(raw(), image.convert("RGB")))


def test_grey_images_become_rgb() -> None:
    grey = np.array(photo(40, 40).convert("L"))
    expected = pixel_values(raw(), Image.fromarray(grey).convert("RGB"))
    for form in (grey, grey[..., None], grey[None], torch.from_numpy(grey)):
        assert torch.equal(pixel_values(raw(), form), expected)


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    assert (pixel_values(raw(), clear) == 255).all()
    assert (pixel_values(raw(), np.array(clear)) == 255).all()


def test_channel_order_can_be_told() -> None:
    # As tall as it has channels: 3 x 40 pixels, which could be read either way.
    last = np.array(photo(40, 40))[:3]
    assert MM1ImageProcessor().image_sizes(last, "channels_last") == [[(3, 40)]]
    found = pixel_values(raw(), last, input_data_format="channels_last")
    assert torch.equal(found, pixel_values(raw(), Image.fromarray(last)))


def test_other_numbers_of_channels_pass_without_conversion() -> None:
    four = np.array(photo(40, 40).convert("RGBA"))
    settings = {"do_convert_rgb": False, "image_mean": 0.5}
    found = pixel_values(raw(), four, **settings)
    assert found.shape == (5, 4, 32, 32)
    assert torch.equal(found[:, :3], pixel_values(raw(), photo(40, 40), image_mean=0.5))
    with pytest.raises(ValueError, match="Image 1 of the batch has 3 channels, others have 4"):
        pixel_values(raw(), [four, photo(40, 40)], **settings)


def test_inputs_are_left_as_they_were() -> None:
    image = np.array(photo(64, 64))
    before = image.copy()
    MM1ImageProcessor(size={"height": 32, "width": 32})(image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", ["pt", "np", None])
def test_return_types(kind: str | None) -> None:
    found = raw()(photo(64, 64), return_tensors=kind, return_num_patches=True)
    expected = torch.Tensor if kind == "pt" else np.ndarray
    assert isinstance(found["pixel_values"], expected)
    assert isinstance(found["num_patches"], expected)
    assert str(found["pixel_values"].dtype).endswith("uint8")
    normalised = MM1ImageProcessor(size={"height": 32, "width": 32})(photo(64, 64), return_tensors=kind)
    assert str(normalised["pixel_values"].dtype).endswith("float32")


@pytest.mark.parametrize(("do_rescale", "do_normalize"), [(True, True), (True, False), (False, True), (False, False)])
def test_tiles_are_uint8_where_their_levels_are_left_alone(do_rescale: bool, do_normalize: bool) -> None:
    settings = {"do_rescale": do_rescale, "do_normalize": do_normalize}
    found = raw()(photo(40, 90), return_tensors="pt", **settings)["pixel_values"]
    assert found.dtype == (torch.float32 if do_rescale or do_normalize else torch.uint8)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((8, 8, 3), np.nan), "values from nan to nan"),
        (np.full((8, 8, 3), 1.5), "values from 1.5 to 1.5; pass integers in 0..255 or floats in 0..1"),
        (np.full((8, 8, 3), -0.5, dtype=np.float32), "values from -0.5"),
        (np.full((8, 8, 3), 256, dtype=np.int32), "is int32 with values from 256 to 256"),
        (np.zeros((8, 8, 3), dtype=bool), "is bool"),
        (np.zeros((8, 8, 7), dtype=np.uint8), r"has the shape \(8, 8, 7\)"),
        (np.zeros((8,), dtype=np.uint8), r"has the shape \(8,\)"),
    ],
)
def test_what_is_no_image_is_refused_by_index(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"^Image 1 of the batch .*{message}"):
        MM1ImageProcessor()([photo(8, 8), array])


def test_float_images_need_rescaling() -> None:
    with pytest.raises(ValueError, match=r"Image 0 of the batch is float64.*leave do_rescale on"):
        raw()(np.zeros((8, 8, 3)))


def test_single_images_and_lists_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="both single images and lists of images"):
        raw()([photo(8, 8), [photo(8, 8)]])


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"height": 32, "width": 64}}, "size is .*tiles are square"),
        ({"size": {"shortest_edge": 32}}, "size is .*tiles are square"),
        ({"resample": Image.Resampling.LANCZOS}, r"resample is .*0 \(NEAREST\), 2 \(BILINEAR\), 3 \(BICUBIC\)"),
        ({"pad_position": "bottom"}, "pad_position is 'bottom'"),
        ({"pad_value": 256}, "pad_value is 256"),
        ({"pad_value": [0, -1, 0]}, r"pad_value is \(0, -1, 0\)"),
        ({"image_splitting": "grid"}, "splitting is 'grid'"),
        ({"min_tiles": 5, "max_tiles": 8}, "min_tiles is 5 and max_tiles is 8"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MM1ImageProcessor(**settings)


@pytest.mark.parametrize(
    ("name", "value"), [("pad_value", [1, 2]), ("image_mean", [0.1, 0.2]), ("image_std", [1.0] * 4)]
)
def test_colours_need_a_number_per_channel(name: str, value: list) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*the images have 3 channels"):
        MM1ImageProcessor(size=32)(photo(8, 8), **{name: value})


SETTINGS = {
    "size": {"height": 48, "width": 48},
    "resample": Image.Resampling.BILINEAR,
    "image_splitting": "static",
    "static_grid": 3,
    "min_tiles": 1,
    "max_tiles": 16,
    "overview_position": "before",
    "position_indicators": "seps",
    "max_split_images": 5,
    "split_last": 2,
    "whole_image_resize": "pad",
    "pad_position": "top_left",
    "pad_value": [1, 2, 3],
    "image_mean": [0.5, 0.5, 0.5],
    "do_convert_rgb": False,
}


def test_settings_survive_saving(tmp_path) -> None:
    processor = MM1ImageProcessor(**SETTINGS)
    processor.save_pretrained(tmp_path)
    loaded = MM1ImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.tiling_config() == processor.tiling_config()
    for name, value in SETTINGS.items():
        expected = dict(value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
        found = getattr(loaded, name)
        assert (dict(found) if name == "size" else found) == expected
    image = photo(20, 100)
    assert torch.equal(pixel_values(loaded, image), pixel_values(processor, image))


def test_settings_may_change_on_loading(tmp_path) -> None:
    MM1ImageProcessor().save_pretrained(tmp_path)
    assert MM1ImageProcessor.from_pretrained(tmp_path, image_splitting="none").image_splitting == "none"


def test_settings_may_change_for_one_call() -> None:
    image = photo(40, 90)
    # An enlarging resize differs between filters, and a padded canvas shows colour and place.
    changes = {name: SETTINGS[name] for name in SETTINGS if name != "do_convert_rgb"}
    base = MM1ImageProcessor(size={"height": 32, "width": 32})
    changed = MM1ImageProcessor(**changes)
    assert torch.equal(pixel_values(base, image, **changes), pixel_values(changed, image))
    assert base.get_layouts([[(40, 90)]], **changes) == changed.get_layouts([[(40, 90)]])
    assert base.tiling_config(**changes) == changed.tiling_config()
    assert base.to_dict() == MM1ImageProcessor(size={"height": 32, "width": 32}).to_dict()


def test_split_last_can_be_taken_back_for_one_call() -> None:
    assert raw(split_last=1).tiling_config(split_last=None).split_last is None


def test_the_published_setting_is_the_default() -> None:
    config = MM1ImageProcessor().tiling_config()
    assert (config.tile_size, config.min_tiles, config.max_tiles) == (672, 4, 9)
    assert (config.splitting, config.overview, config.max_split_images) == ("dynamic", "after", 2)
    assert MM1ImageProcessor().backend == "pil"
