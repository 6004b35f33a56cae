"""The common frame of the HTML pages that the commands write. Each page is one self-contained file."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """\
:root { color-scheme: light dark; --text: #1d2430; --muted: #5c6675; --page: #fbfbfc; --panel: #eef1f5; --line: #d5dae2; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ee; --muted: #a0a9b8; --page: #15181d; --panel: #20252d; --line: #343b46; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
section { margin-bottom: 2.75rem; }
h1 { margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 0 0 0.75rem; }
figure { margin: 0; }
"""

# A tile of a photograph is about ten times larger as PNG. Smaller images are thumbnails and drawings.
_LARGEST_PNG = 128


def write_html(path: Path, title: str, sections: Sequence[str], style: str) -> None:
    """
    Writes a self-contained HTML page, and the folder for it if there is none.

    Args:
        path: where to write the HTML file.
        title: title as plain text; it is escaped.
        sections: HTML of each section of the page.
        style: CSS rules beyond those that all pages share.
    """
    body = "\n".join(f"<section>\n{section}\n</section>" for section in sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_PAGE.format(title=escape(title), style=_STYLE + style, body=body), encoding="utf-8")


def data_uri(image: Image.Image) -> str:
    """
    An image as the address of an `<img>`, so that the page needs no file beside it: PNG up to 128 pixels, JPEG above.

    Args:
        image: any image; JPEG needs one without transparency.
    """
    kind, options = ("png", {}) if max(image.size) <= _LARGEST_PNG else ("jpeg", {"quality": 88})
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return encoded_uri(f"image/{kind}", buffer.getvalue())


def encoded_uri(media_type: str, content: bytes) -> str:
    """
    A file's content as the address of an `<img>`.

    Args:
        media_type: type of the content, such as `"image/svg+xml"`.
        content: bytes of the file.
    """
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
