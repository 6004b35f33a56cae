import base64
import io
import re

import pytest
from PIL import Image

from mm1_hf.reporting.page import data_uri, write_html


def test_a_page_is_one_file_whose_title_is_text(tmp_path):
    path = tmp_path / "new" / "page.html"
    write_html(path, "<b>rows & tiles</b>", ["<h1>One</h1>", "<h2>Two</h2>"], ".own { color: red; }\n")
    page = path.read_text(encoding="utf-8")
    assert "<title>&lt;b&gt;rows &amp; tiles&lt;/b&gt;</title>" in page
    assert re.findall(r"<section>\n(.*?)\n</section>", page) == ["<h1>One</h1>", "<h2>Two</h2>"]
    # A page's own rules come last, so that they win.
    assert page.index("box-sizing") < page.index(".own { color: red; }")
    assert not re.search(r"(?:src|href)=", page)


@pytest.mark.parametrize(("side", "kind"), [(8, "png"), (128, "png"), (129, "jpeg")])
def test_an_image_is_in_its_address(side, kind):
    image = Image.new("RGB", (side, 5), "teal")
    media_type, content = re.fullmatch(r"data:image/(\w+);base64,(.*)", data_uri(image)).groups()
    assert media_type == kind
    with Image.open(io.BytesIO(base64.b64decode(content))) as read:
        assert read.size == image.size and read.format == kind.upper()
        assert max(abs(a - b) for a, b in zip(read.getpixel((2, 2)), (0, 128, 128), strict=True)) <= 3
