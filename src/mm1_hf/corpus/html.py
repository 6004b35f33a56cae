"""Web pages as interleaved documents (MM1, appendix A.1): the text body with the images in their places."""

import os
import re
from urllib.parse import unquote, urljoin

from selectolax.lexbor import LexborHTMLParser, LexborNode

from mm1_hf.data.documents import Document, ImagePart, Unusable


# What is never a page's text.
_LEFT_OUT = re.compile(
    "annotation|aside|audio|button|canvas|datalist|dialog|footer|head|iframe|input|nav|noscript|object|script|select|style|svg"
    "|template|textarea|title|video"
)
_LEFT_OUT_ROLES = re.compile("navigation|banner|contentinfo|search|menu|menubar|dialog")
# Words of an element's class, or its whole id.
_LEFT_OUT_WORDS = re.compile(
    "nav|navbar|navheader|navfooter|navigation|breadcrumbs?|sidebar|sphinxsidebar|footer|menu|toc|toctree|headerlink|cookies?"
    "|advert|advertisement|pagination"
)
# What stands apart by an empty line, and what by a line break.
_BLOCKS = re.compile(
    "address|article|blockquote|body|details|div|dl|dt|fieldset|figcaption|figure|form|header|h[1-6]|hr|main|ol|p|pre|section"
    "|table|ul"
)
_LINES = re.compile("br|dd|li|tr")
_CELLS = ("td", "th")


def html_document(page: str | bytes, base: str) -> Document:
    """
    The text body of a page without what leads around it (navigation, headers, footers, forms), with its images in place.
    White space is as a browser shows it; blocks stand apart by an empty line.

    Args:
        page: its HTML.
        base: its URL or path, from which its images' addresses are taken, and its name.

    Raises:
        Unusable: `"no text"`.
    """
    tree = LexborHTMLParser(page)
    root = tree.css_first("main, [role=main]") or tree.body
    text = _Text()
    if root is not None:
        _write(root, text, base)
    parts = text.end()
    if not any(isinstance(part, str) for part in parts):
        raise Unusable("no text", base)
    has_images = any(isinstance(part, ImagePart) for part in parts)
    return Document("interleaved" if has_images else "text", tuple(parts), base)


class _Text:
    """Parts in the making: words with the white space that a browser would show between them."""

    def __init__(self) -> None:
        self._parts: list[str | ImagePart] = []
        self._line = ""
        self._breaks = 0
        self._space = False

    def add(self, words: str) -> None:
        """Running text."""
        found = words.split()
        if not found:
            self._space |= bool(words)
            return
        self._space |= words[0].isspace()
        self._separate()
        self._line += " ".join(found)
        self._space = words[-1].isspace()

    def add_lines(self, lines: str) -> None:
        """Text whose white space counts."""
        if lines.strip():
            self._separate()
            self._line += lines.rstrip()

    def break_line(self, breaks: int) -> None:
        """At least so many line breaks before what comes."""
        self._breaks = max(self._breaks, breaks)

    def add_space(self) -> None:
        self._space = True

    def add_image(self, image: ImagePart) -> None:
        # What separates them stays with the text before, so that without the image the texts are still apart.
        self._separate()
        self._parts += [self._line, image] if self._line else [image]
        self._line = ""

    def end(self) -> list[str | ImagePart]:
        return [*self._parts, self._line] if self._line else self._parts

    def _separate(self) -> None:
        if self._line:
            self._line += "\n" * self._breaks or " " * self._space
        self._breaks, self._space = 0, False


def _write(root: LexborNode, text: _Text, base: str) -> None:
    """Depth first, without recursion: pages nest deeper than Python does."""
    # Nodes to visit, and breaks to write after their elements.
    stack: list[LexborNode | int] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, int):
            text.break_line(node)
        elif node.tag == "-text":
            text.add(node.text_content or "")
        elif node.tag == "img":
            if source := _address(node, base):
                text.add_image(ImagePart(source))
        elif node.tag == "pre":
            text.break_line(2)
            text.add_lines(node.text().strip("\n"))
            text.break_line(2)
        elif node is root or not _is_left_out(node):
            tag = node.tag or ""
            breaks = 2 if _BLOCKS.fullmatch(tag) else 1 if _LINES.fullmatch(tag) else 0
            text.break_line(breaks)
            if tag in _CELLS:
                text.add_space()
            children = list(node.iter(include_text=True))
            stack += [breaks, *reversed(children)]


def _is_left_out(node: LexborNode) -> bool:
    if node.tag is None or not node.tag[0].isalpha() or _LEFT_OUT.fullmatch(node.tag):
        return True
    attributes = node.attributes
    if "hidden" in attributes or _LEFT_OUT_ROLES.fullmatch(attributes.get("role") or ""):
        return True
    # A page's header leads around, an article's is its title.
    if node.tag == "header" and not (node.parent and node.parent.tag in ("article", "main", "section")):
        return True
    words = re.split(r"[\s_-]+", (attributes.get("class") or "").lower())
    return any(_LEFT_OUT_WORDS.fullmatch(word) for word in [*words, attributes.get("id") or ""])


def _address(image: LexborNode, base: str) -> str | None:
    """Where an image is: a URL, or a path beside a page that is a file. What a page loads late it names in `data-src`."""
    source = image.attributes.get("data-src") or image.attributes.get("src")
    if not source or source.startswith("data:"):
        return source or None
    if re.match("https?://", base):
        return urljoin(base, source)
    if re.match("(https?:)?//", source):
        return urljoin("https:", source)
    return os.path.normpath(os.path.join(os.path.dirname(base), unquote(source.partition("?")[0].partition("#")[0])))
