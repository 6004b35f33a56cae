import base64
import functools
import http.server
import threading
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps
from tiny import tiny_mm1

from mm1_hf import MM1ImageProcessor
from mm1_hf.model.image_inputs import image_bytes, image_size, no_local_files, open_image, unwrap
from mm1_hf.model.image_pixels import to_uint8_pixels


PROCESSOR = MM1ImageProcessor(size={"height": 28, "width": 28}, do_rescale=False, do_normalize=False)


def picture(height: int = 40, width: int = 60) -> Image.Image:
    image = Image.new("RGB", (width, height), (250, 240, 10))
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 5, width // 2, height - 5), fill=(200, 30, 60))
    draw.rectangle((width // 2, height // 3, width - 3, height - 3), fill=(10, 90, 180))
    return image


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiles(image, **settings) -> torch.Tensor:
    return PROCESSOR(image, return_tensors="pt", **settings)["pixel_values"]


@pytest.fixture
def served(tmp_path_factory, monkeypatch):
    """The picture's path and its URL."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("mm1_hf.model.fetching.ALLOWED_HOSTS", {"127.0.0.1"})
    folder = tmp_path_factory.mktemp("served")
    picture().save(folder / "picture.png")

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder / "picture.png", f"http://127.0.0.1:{server.server_port}/picture.png"
    server.shutdown()


def test_every_source_of_a_picture_gives_its_tiles(served):
    path, url = served
    data = path.read_bytes()
    encoded = base64.b64encode(data).decode()
    sources = [
        path,
        str(path),
        url,
        data,
        bytearray(data),
        memoryview(data),
        encoded,
        base64.encodebytes(data).decode(),
        f"data:image/png;base64,{encoded}",
        path.as_uri(),
        {"bytes": data, "path": None},
        {"bytes": data, "path": "/no/such/picture.png"},
        {"bytes": None, "path": str(path)},
    ]
    expected = tiles(picture())
    for source in sources:
        assert torch.equal(tiles(source), expected)
    assert PROCESSOR.image_sizes(sources) == [[(40, 60)]] * len(sources)
    _, processor = tiny_mm1()
    together = processor(text=["<image>"] * 2, images=[[data], [str(path)]], return_tensors="pt")
    one = processor(text="<image>", images=picture(), return_tensors="pt")
    assert torch.equal(together["pixel_values"], torch.cat([one["pixel_values"]] * 2))


def test_a_page_that_is_not_there_is_named(served):
    with pytest.raises(ValueError, match=r"^Image 1 of the batch cannot be read: .*404"):
        tiles([picture(), served[1].replace("picture", "none")])


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("as_file", [True, False])
def test_photographs_stand_upright(orientation, as_file):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(picture(), exif=exif)
    source = data if as_file else Image.open(BytesIO(data))
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert upright.size == ((60, 40) if orientation < 5 else (40, 60))
    assert torch.equal(tiles(source), tiles(np.array(upright)))
    # Counted as it is drawn.
    assert PROCESSOR.image_sizes(source) == [[upright.size[::-1]]]


def test_sixteen_bits_become_eight():
    levels = np.linspace(0, 65535, 40 * 60).astype(np.uint16).reshape(40, 60)
    eight = np.rint(levels / 257).astype(np.uint8)
    image = Image.fromarray(levels)
    assert image.mode == "I;16"
    for source in (image, file_of(image)):
        assert torch.equal(tiles(source), tiles(eight))


def test_floating_point_and_32_bit_pictures_are_read_like_arrays():
    levels = np.arange(240, dtype=np.uint8).reshape(12, 20)
    settings = {"do_rescale": True, "do_normalize": False}
    expected = tiles(levels, **settings)
    for source in (Image.fromarray(levels.astype(np.float32) / 255), Image.fromarray(levels.astype(np.int32))):
        assert source.mode in ("F", "I")
        assert torch.equal(tiles(source, **settings), expected)
    with pytest.raises(ValueError, match=r"float32 with values from 0.0 to 239.0; pass integers in 0..255 or floats"):
        tiles(Image.fromarray(levels.astype(np.float32)), **settings)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_every_opaque_mode_becomes_rgb(mode):
    image = picture().convert(mode)
    assert torch.equal(tiles(image), tiles(np.array(image.convert("RGB"))))


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA"])
def test_every_transparency_is_laid_over_white(mode):
    image = picture().convert("L" if mode == "LA" else "P" if mode == "PA" else "RGB").convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    white = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    assert torch.equal(tiles(image), tiles(np.array(expected)))


@pytest.mark.parametrize("as_file", [True, False])
def test_a_palette_s_transparency_is_laid_over_white(as_file):
    image = Image.new("P", (40, 40), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.info["transparency"] = 0
    source = file_of(image, transparency=0) if as_file else image
    assert (tiles(source) == 255).all()


def test_an_animation_shows_its_first_picture():
    frames = [picture().convert("P"), Image.new("RGB", (60, 40), "blue").convert("P")]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert torch.equal(tiles(data), tiles(Image.open(BytesIO(data)).convert("RGB")))


def test_one_pixel_is_a_picture():
    assert (tiles(Image.new("RGB", (1, 1), (9, 8, 7)))[0] == torch.tensor([9, 8, 7]).view(3, 1, 1)).all()


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (3, 2000)])
def test_any_shape_fits_the_grids(size):
    found = tiles(Image.new("RGB", size, "white"))
    assert len(found) == PROCESSOR.get_number_of_image_patches(size[1], size[0])


HALF = file_of(Image.effect_noise((60, 40), 90))[:300]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (HALF, "truncated"),
        (b"", "cannot identify"),
        (b"no picture at all", "cannot identify"),
        ("/no/such/picture.png", "/no/such/picture.png is neither an existing file nor a URL nor base64"),
        ("data:image/png;base64,AAAA", "cannot identify"),
        (None, "its type is NoneType; pass a Pillow image, an array"),
        (5, "its type is int; pass a Pillow image"),
        ({"bytes": b""}, "cannot identify"),
        ({"bytes": None, "path": None}, "the keys .'bytes', 'path'., without bytes and without a path"),
        ({"url": "x"}, "the keys .'url'., without bytes and without a path"),
        ("file://elsewhere/picture.png", "names a file of the machine 'elsewhere'; write file:///path"),
        (np.zeros((0, 5, 3), np.uint8), "is 0 x 5 pixels; give at least 1 x 1"),
        (Image.new("RGB", (0, 5)), "is 5 x 0 pixels; give at least 1 x 1"),
        (np.array([[1, "a"]], dtype=object), "is object; pass integers in 0..255 or floats in 0..1"),
        (np.ones((5, 5, 3), complex), "is complex128; pass integers"),
        (torch.full((3, 5, 5), -1), "values from -1 to -1; pass integers in 0..255"),
        (torch.full((3, 5, 5), float("nan")), "leave do_rescale on"),
        (torch.ones((3, 5, 5), dtype=torch.complex64), "is complex64; pass integers"),
        (torch.ones((3, 5, 5), dtype=torch.bool), "is bool; pass integers"),
        (torch.zeros((3, 0, 5), dtype=torch.uint8), "is 0 x 5 pixels; give at least 1 x 1"),
        (torch.empty((3, 5, 5), device="meta"), "a tensor that is on the device meta, so it has no values"),
        (torch.ones((3, 5, 5)).to_sparse(), "a tensor that is of the layout torch.sparse_coo; pass a dense tensor"),
        (torch.ones((5, 5)).to_sparse_csr(), "a tensor that is of the layout torch.sparse_csr"),
        (torch.quantize_per_tensor(torch.ones((3, 5, 5)), 1.0, 0, torch.quint8), "a tensor that is quantised"),
        (torch.nested.nested_tensor([torch.ones(5, 5), torch.ones(4, 5)]), "a tensor that is nested"),
        (np.array([["2020-01-01"]], dtype="datetime64[D]"), "is datetime64"),
        (np.array([["a"]]), "is <U1; pass integers"),
        (np.zeros((5, 5), dtype=[("red", "u1")]), "pass integers in 0..255"),
        (np.zeros((2, 2, 2, 2, 2), np.uint8), "has the shape"),
        (np.uint8(7), "its type is uint8; pass a Pillow image"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_place(bad, message):
    with pytest.raises(ValueError, match=f"^Image 1 of the batch .*{message}"):
        tiles([[picture()], [bad]])


@pytest.mark.parametrize("name", ["float8_e4m3fn", "bfloat16", "float16", "float64", "uint16", "int64"])
def test_every_number_type_of_torch_is_read(name):
    dtype = getattr(torch, name)
    values = torch.ones((3, 5, 5), dtype=torch.float32).to(dtype)
    expected = 255 if dtype.is_floating_point else 1
    assert (tiles(values, do_rescale=True) * 255).round().unique().tolist() == [expected]


def test_a_failure_without_words_is_named(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("mm1_hf.model.image_inputs.open_file", fail)
    with pytest.raises(ValueError, match=r"^Image 0 of the batch cannot be read: MemoryError\.$"):
        tiles(file_of(picture()))


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({"bytes": b"content", "path": "name.png"}, b"content"),
        ({"bytes": None, "path": "name.png"}, "name.png"),
        ({"path": "name.png"}, "name.png"),
        ({"bytes": bytearray(b"content")}, b"content"),
        ({"bytes": None, "path": "file:///folder/a%20name.png"}, "/folder/a name.png"),
        ("FILE://localhost/name.png", "/name.png"),
        (memoryview(b"content"), b"content"),
        (Path("folder") / "name.png", str(Path("folder") / "name.png")),
        ("http://host/name.png", "http://host/name.png"),
        ("name.png", "name.png"),
        (None, None),
        (5, 5),
    ],
)
def test_an_image_is_taken_out_of_what_it_is_wrapped_in(given, held):
    assert unwrap(given) == held


@pytest.mark.parametrize("given", [{}, {"bytes": None}, {"bytes": {"bytes": b"content"}}, {"url": "http://host/"}])
def test_a_mapping_that_holds_no_image_is_refused(given):
    with pytest.raises(ValueError, match="without bytes and without a path"):
        unwrap(given)


def test_local_files_can_be_forbidden(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    picture().save(path)
    names = [
        str(path),
        path,
        path.as_uri(),
        {"bytes": None, "path": str(path)},
        str(tmp_path / "none.png"),
        "/dev/zero",
    ]
    data = file_of(picture())
    readable = [data, picture(), base64.b64encode(data).decode(), {"bytes": data, "path": str(path)}]

    def check() -> None:
        said = set()
        for name in names:
            for ask in (open_image, image_size, image_bytes):
                # The same words, whether there is such a file or not.
                with pytest.raises(FileNotFoundError, match="and local files are not read here") as caught:
                    ask(name)
                said.add(str(caught.value).partition(" is neither")[2])
            with pytest.raises(ValueError, match=r"^Image 0 of the batch cannot be read: .*local files are not read"):
                tiles(name)
        assert len(said) == 1
        for source in readable:
            assert torch.equal(tiles(source), tiles(picture()))

    with no_local_files():
        check()
    assert torch.equal(tiles(path), tiles(picture()))
    monkeypatch.setattr("mm1_hf.model.image_inputs.LOCAL_FILES", False)
    check()


def test_a_bomb_is_not_opened(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(
        ValueError, match=r"^Image 0 of the batch cannot be read: .*2400 pixels.* exceeds limit of 2000"
    ):
        tiles(file_of(picture()))
    # Between Pillow's limit and twice that, it warns.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiles(file_of(picture(30, 40)))
    assert [warning.category for warning in caught] == [Image.DecompressionBombWarning]


def test_a_tensor_that_learns_is_read():
    learned = torch.full((3, 9, 9), 0.5, requires_grad=True)
    settings = {"do_rescale": True, "do_normalize": False}
    assert torch.equal(tiles(learned, **settings), tiles(learned.detach().numpy(), **settings))


@pytest.mark.parametrize(("height", "width"), [(1601, 700), (9, 270_000)])
def test_large_pictures_keep_every_pixel(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = to_uint8_pixels(Image.fromarray(pixels), 0, True, True, None)
    np.testing.assert_array_equal(found.permute(1, 2, 0), pixels)


def test_a_large_picture_that_breaks_off_is_refused():
    file = file_of(picture(1601, 700))
    with pytest.raises(ValueError, match=r"Image 0 of the batch cannot be read: .*truncated"):
        tiles(file[: len(file) // 2])
