"""Converts web pages to interleaved documents (MM1, appendix A.1): the text of the body with the images in place."""

import os
import re
from urllib.parse import unquote, urljoin

from selectolax.lexbor import LexborHTMLParser, LexborNode

from mm1_hf.corpus.page_cost import require_affordable
from mm1_hf.data.documents import Document, ImagePart, Unusable
from mm1_hf.data.media import local_file
from mm1_hf.data.wall import around_record


# Elements that never hold text of the page's body.
_LEFT_OUT = re.compile(
    "annotation|aside|audio|button|canvas|datalist|dialog|footer|head|iframe|input|nav|noscript|object|script|select|style|svg"
    "|template|textarea|title|video"
)
_LEFT_OUT_ROLES = re.compile("navigation|banner|contentinfo|search|menu|menubar|dialog")
# Elements are left out if a word of their class, or their whole id, is one of these.
_LEFT_OUT_WORDS = re.compile(
    "nav|navbar|navheader|navfooter|navigation|breadcrumbs?|sidebar|sphinxsidebar|footer|menu|toc|toctree|headerlink|cookies?"
    "|advert|advertisement|pagination"
)
# Elements that are separated from their surroundings by an empty line, and elements separated by a line break.
_BLOCKS = re.compile(
    "address|article|blockquote|body|details|div|dl|dt|fieldset|figcaption|figure|form|header|h[1-6]|hr|main|ol|p|pre|section"
    "|table|ul"
)
_LINES = re.compile("br|dd|li|tr")
_CELLS = ("td", "th")


def html_document(page: str | bytes, base: str, folder: str | None = None) -> Document:
    """
    Converts a page to a document: the text of its body with the images in place, without navigation, headers, footers
    and form controls. White space is collapsed as in a browser; blocks are separated by an empty line.

    Args:
        page: the HTML of the page.
        base: the URL or path of the page. Addresses of images are resolved against it, and the document is named after
            it. Images with an address of another kind, such as `blob:`, are ignored, as nobody else can see them.
        folder: where the page is a local file, the folder that its images must lie in. Unset, it is the folder of the
            page.

    Raises:
        Unusable: the page has no text (reason `"no text"`), names a file outside of its folder, is too large or nested too
            deeply to be parsed, or cannot be read for another reason.
    """
    with around_record(base):
        require_affordable(page if isinstance(page, bytes) else page.encode("utf-8", "surrogatepass"), base)
        return _document(page, base, os.path.dirname(base) if folder is None else folder)


def _document(page: str | bytes, base: str, folder: str) -> Document:
    tree = LexborHTMLParser(page)
    root = tree.css_first("main, [role=main]") or tree.body
    text = _Text()
    if root is not None:
        _write(root, text, base, folder)
    parts = text.end()
    if not any(isinstance(part, str) for part in parts):
        raise Unusable("no text", base)
    has_images = any(isinstance(part, ImagePart) for part in parts)
    return Document("interleaved" if has_images else "text", tuple(parts), base)


class _Text:
    """Collects the parts of a document, with the white space that a browser would show between words."""

    def __init__(self) -> None:
        self._parts: list[str | ImagePart] = []
        # Joined only at the end of the text, because adding to a long text copies it each time.
        self._line: list[str] = []
        self._breaks = 0
        self._space = False

    def add(self, words: str) -> None:
        """Adds running text, whose white space is collapsed."""
        found = words.split()
        if not found:
            self._space |= bool(words)
            return
        self._space |= words[0].isspace()
        self._separate()
        self._line.append(" ".join(found))
        self._space = words[-1].isspace()

    def add_lines(self, lines: str) -> None:
        """Adds preformatted text, whose white space is kept."""
        if lines.strip():
            self._separate()
            self._line.append(lines.rstrip())

    def break_line(self, breaks: int) -> None:
        """Puts at least this number of line breaks before the next words or image."""
        self._breaks = max(self._breaks, breaks)

    def add_space(self) -> None:
        self._space = True

    def add_image(self, image: ImagePart) -> None:
        # The white space goes to the text before the image, so that the texts stay separated if the image is dropped.
        self._separate()
        self._parts = self._joined()
        self._parts.append(image)

    def end(self) -> list[str | ImagePart]:
        return self._joined()

    def _joined(self) -> list[str | ImagePart]:
        if self._line:
            self._parts.append("".join(self._line))
            self._line = []
        return self._parts

    def _separate(self) -> None:
        if self._line:
            self._line.append("\n" * self._breaks or " " * self._space)
        self._breaks, self._space = 0, False


def _write(root: LexborNode, text: _Text, base: str, folder: str) -> None:
    """Writes a tree depth first. Without recursion, because pages nest deeper than Python's recursion limit."""
    # Nodes to visit, and numbers of line breaks to write after all children of an element.
    stack: list[LexborNode | int] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, int):
            text.break_line(node)
        elif node.tag == "-text":
            text.add(node.text_content or "")
        elif node.tag == "img":
            if source := _address(node, base, folder):
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
    # The header of a page holds its navigation, but the header of an article holds its title.
    if node.tag == "header" and not (node.parent and node.parent.tag in ("article", "main", "section")):
        return True
    words = re.split(r"[\s_-]+", (attributes.get("class") or "").lower())
    return any(_LEFT_OUT_WORDS.fullmatch(word) for word in [*words, attributes.get("id") or ""])


def _address(image: LexborNode, base: str, folder: str) -> str | None:
    """
    The URL of an image, or its path if the page is a local file. Images that the page loads only when they come into
    view have their address in `data-src`.
    """
    source = image.attributes.get("data-src") or image.attributes.get("src")
    if not source or source.startswith("data:"):
        return source or None
    if re.match("https?://", base):
        source = urljoin(base, source)
    elif re.match("(https?:)?//", source):
        source = urljoin("https:", source)
    elif not re.match(r"[a-zA-Z][\w+.-]+:", source):
        path = unquote(source.partition("?")[0].partition("#")[0])
        path = os.path.normpath(os.path.join(os.path.dirname(base), path))
        local_file(os.path.abspath(path), os.path.abspath(folder))
        return path
    return source if re.match("https?://", source) else None
