"""The frame of the pages that the commands write: one file, which needs nothing beside it."""

from html import escape
from pathlib import Path


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


def write_html(path: Path, title: str, style: str, body: str) -> None:
    """
    Writes a page.

    Args:
        path: of the file.
        title: text, not HTML.
        style: CSS.
        body: HTML.
    """
    path.write_text(_PAGE.format(title=escape(title), style=style, body=body), encoding="utf-8")
