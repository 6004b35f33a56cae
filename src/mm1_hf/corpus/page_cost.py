"""
Bounds the time and memory that parsing a page takes, before it is parsed.

The parser (lexbor) takes time that is quadratic in the depth of open elements and in the number of attributes of an
element, and it repeats formatting elements that a page never closes in every later block, as HTML prescribes. It cannot be
stopped once it has begun.
"""

import re
from collections import Counter

from mm1_hf.data.documents import Unusable


MAX_PAGE_BYTES = 1 << 25
# What one page may cost, in steps of the parser. It takes a second for about this number.
MAX_STEPS = 50_000_000
_STEPS_OF_REPEATED_ELEMENT = 100

_ATTRIBUTE = rb"""=?[^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*"|'[^']*'|[^\s>"'][^\s>]*+)?)?"""
_ATTRIBUTES = re.compile(rb"[\s/]+(?!>)" + _ATTRIBUTE)
_TAG = rb"<(?P<end>/?)(?P<name>[a-zA-Z][^\s/>]*+)(?P<attributes>(?:[\s/]++|" + _ATTRIBUTE + rb")*+)(?:>|\Z)"
_TAGS = re.compile(_TAG)
_TAGS_AND_COMMENTS = re.compile(rb"<!--(?:-?>|.*?(?:--!?>|\Z))|<[!?][^>]*+>?|</[^a-zA-Z][^>]*+>?|" + _TAG, re.DOTALL)
# Elements whose content is text up to their end tag, unless they lie in an SVG or a formula. For `noscript`, it depends
# on the parser.
_RAW = {
    name: re.compile(b"</" + name + rb"(?=[\s/>])", re.IGNORECASE)
    for name in (b"script", b"style", b"textarea", b"title", b"xmp", b"iframe", b"noembed", b"noframes", b"noscript")
}
_FOREIGN = (b"svg", b"math")
# An end tag inside of one of these closes no element outside of it.
_BARRIERS = frozenset((*_FOREIGN, b"table", b"object", b"applet", b"marquee", b"template", b"button", b"select"))
# Elements that are never open, or that the next one of their kind closes.
_NOT_NESTED = frozenset(
    b"area base br col embed hr html head body img image input link meta param source track wbr"
    b" p li dt dd tr td th tbody thead tfoot colgroup".split()
)
_FORMATTING = frozenset(b"a b big code em font i nobr s small strike strong tt u".split())
# The parser keeps at most this number of equal formatting elements.
_EQUAL_ELEMENTS = 3


def require_affordable(page: bytes, name: str) -> None:
    """
    Checks that a page is small enough, and not nested so deeply, that it can be parsed.

    Args:
        page: the HTML of the page.
        name: the URL or path of the page, for the error message.

    Raises:
        Unusable: the page is too large, or parsing it would take too long.
    """
    if len(page) > MAX_PAGE_BYTES:
        raise Unusable("page too large", f"{name} has {len(page)} bytes, and a page may have {MAX_PAGE_BYTES}")
    if page_steps(page) > MAX_STEPS:
        raise Unusable(
            "page nested too deeply",
            f"{name} has so many elements inside of each other, or attributes of one element, that parsing it would take "
            f"more than {MAX_STEPS} steps",
        )


def page_steps(page: bytes) -> int:
    """
    An upper bound of what parsing a page costs, in steps of the parser. Counting stops above `MAX_STEPS`.

    Args:
        page: the HTML of the page.
    """
    opened, steps, position, trusted_from = _Opened(), 0, 0, 0
    while steps <= MAX_STEPS:
        # Where it is not sure that the parser reads markup, start tags count, but no end tag and no comment does.
        markup = _TAGS_AND_COMMENTS if position >= trusted_from else _TAGS
        match = markup.search(page, position)
        if match is None:
            break
        position = match.end()
        name = (match["name"] or b"").lower()
        if match[0].startswith(b"<![CDATA[") or name == b"frameset":
            # What ends such a section differs between HTML and SVG, and a frame set ignores most elements, so that no
            # later end tag is sure to be one.
            trusted_from = len(page)
        if not name:
            continue
        if match["end"]:
            if match.start() >= trusted_from:
                opened.end(name)
        else:
            attributes = match["attributes"]
            opened.start(name, attributes)
            steps += opened.depth + _STEPS_OF_REPEATED_ELEMENT * opened.repeated
            if len(attributes) > 1000:
                steps += sum(1 for _ in _ATTRIBUTES.finditer(attributes)) ** 2
            if name in _RAW and position > trusted_from:
                end = _RAW[name].search(page, position)
                stop = len(page) if end is None else end.start()
                if opened.foreign or name == b"noscript":
                    trusted_from = stop
                # Inside of a comment in a script, the first end tag may not be the last.
                elif name == b"script" and page.find(b"<!--", position, stop) >= 0:
                    trusted_from = len(page)
                else:
                    position = stop
    return steps


class _Opened:
    """
    The elements that may be open in the parser: at least those that are, and more where end tags are left out.

    `depth` is their number, `repeated` the number of formatting elements that each later block repeats, and `foreign`
    the number of SVGs and formulas.
    """

    def __init__(self) -> None:
        self.depth = self.repeated = self.foreign = 0
        # The elements inside of each open barrier.
        self._levels: list[tuple[bytes, Counter[bytes]]] = [(b"", Counter())]
        self._formatting: dict[bytes, Counter[bytes]] = {}

    def start(self, name: bytes, attributes: bytes) -> None:
        if name in _FORMATTING:
            equal = self._formatting.setdefault(name, Counter())
            if equal[attributes] < _EQUAL_ELEMENTS:
                equal[attributes] += 1
                self.repeated += 1
        if self.foreign and attributes.endswith(b"/"):
            return
        if name in _BARRIERS:
            self._levels.append((name, Counter()))
            self.depth += 1
            self.foreign += name in _FOREIGN
        elif self.foreign or name not in _NOT_NESTED:
            self._levels[-1][1][name] += 1
            self.depth += 1

    def end(self, name: bytes) -> None:
        barrier, inside = self._levels[-1]
        if name == barrier:
            self._levels.pop()
            self.depth -= 1 + inside.total()
            self.foreign -= name in _FOREIGN
        elif inside[name]:
            inside[name] -= 1
            self.depth -= 1
            if name in self._formatting and not any(level[name] for _, level in self._levels):
                self.repeated -= self._formatting.pop(name).total()
