import io

import numpy as np
import pytest
from engine_documents import document
from image_server import picture
from PIL import Image, ImageFilter

from mm1_hf.corpus import image_extras
from mm1_hf.corpus.image_extras import blurred, extra_image_steps, has_qr_code, sharpness, too_little_text
from mm1_hf.data.documents import ImagePart


def part(image: Image.Image) -> ImagePart:
    file = io.BytesIO()
    image.save(file, "PNG")
    return ImagePart(file.getvalue())


def test_sharpness_is_the_variance_of_the_laplacian():
    levels = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(float)
    kernel = {(0, 1): 1, (1, 0): 1, (1, 2): 1, (2, 1): 1, (1, 1): -4}
    expected = np.array([
        [sum(weight * levels[row + y, column + x] for (y, x), weight in kernel.items()) for column in range(28)]
        for row in range(18)
    ])  # fmt: skip
    found = sharpness(part(Image.fromarray(levels.astype(np.uint8))))
    assert found == pytest.approx(expected.var())


def test_blurred_images():
    sharp = Image.open(io.BytesIO(picture(0)))
    assert blurred(part(sharp)) is None
    assert blurred(part(sharp.filter(ImageFilter.GaussianBlur(8)))) == "blurred"
    assert blurred(part(Image.new("RGB", (200, 200), "red"))) == "blurred"
    assert blurred(part(Image.new("L", (2, 500)))) == "blurred"
    # A large image is judged at the size of a small one.
    assert blurred(part(Image.new("L", (3000, 2000)))) == "blurred"


def test_qr_codes():
    zxingcpp = pytest.importorskip("zxingcpp")
    code = Image.fromarray(
        np.array(zxingcpp.create_barcode("https://a.example", zxingcpp.BarcodeFormat.QRCode).to_image(scale=8))
    )
    assert has_qr_code(part(code)) == "QR code"
    # A poster with a small code in its corner.
    poster = Image.fromarray(np.random.default_rng(0).integers(100, 140, (900, 900), np.uint8))
    assert has_qr_code(part(poster)) is None
    poster.paste(code.resize((120, 120)), (20, 20))
    assert has_qr_code(part(poster)) is None
    poster.paste(code.resize((600, 600)), (100, 100))
    assert has_qr_code(part(poster)) == "QR code"


def test_only_the_steps_that_are_asked_for(monkeypatch):
    pytest.importorskip("zxingcpp")
    assert extra_image_steps(False, False) == []
    assert [step.name for step in extra_image_steps(True, True)] == ["blurred images", "QR codes"]
    monkeypatch.setattr(image_extras, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install zxing-cpp"):
        extra_image_steps(False, True)


@pytest.mark.parametrize(
    ("words", "images", "why"), [(20, 2, None), (19, 2, "few words for its images"), (0, 0, None)]
)
def test_words_for_images(words, images, why):
    assert too_little_text(document("a", "word " * words, *[b"x"] * images)) == why
