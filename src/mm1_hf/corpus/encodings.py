"""The characters of a web page: which encoding its bytes are in, as browsers decide it."""

import codecs
import re


# Encodings of web pages. Browsers read the names on the left as those on the right; Python knows others that are none.
_AS_BROWSERS_DO = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-16": "utf-16-le",
}
_OTHERS = re.compile(
    r"utf-8|utf-16-[bl]e|cp125[0-8]|cp86[46]|cp874|cp932|cp949|iso8859-(?:[2-8]|1[0-6])|koi8-[ru]|mac-(?:roman|cyrillic)"
    r"|gb18030|hz|big5(?:hkscs)?|euc_jp|iso2022_jp"
)
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_DECLARED = re.compile(
    rb"""<(?:meta[^>]{1,200}?charset|\?xml[^>]{1,200}?encoding)\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE
)
# How far browsers look for a declaration.
_HEAD_BYTES = 1024


def decode_page(page: bytes, declared: str | None = None) -> str:
    r"""
    Decodes a page by its byte order mark, the encoding that its server named, the one that it names itself, UTF-8 if it is
    valid UTF-8, or Windows-1252. Bytes that are not valid in the encoding become replacement characters.

    Args:
        page: the bytes of the page.
        declared: the encoding that the server named, if any.

    Example:

    ```python
    >>> from mm1_hf.corpus.encodings import decode_page

    >>> decode_page(b"<meta charset=iso-8859-1>caf\xe9")
    '<meta charset=iso-8859-1>café'

    ```
    """
    for mark, encoding in _MARKS.items():
        if page.startswith(mark):
            return page[len(mark) :].decode(encoding, "replace")
    own = _DECLARED.search(page, 0, _HEAD_BYTES)
    for name in (declared, own and own[1].decode("ascii")):
        if name and (encoding := _encoding(name)):
            # A declaration inside of the page was read as ASCII, so the page cannot be UTF-16.
            return page.decode("utf-8" if encoding.startswith("utf-16") and name != declared else encoding, "replace")
    try:
        return page.decode("utf-8")
    except UnicodeDecodeError:
        return page.decode("cp1252", "replace")


def _encoding(name: str) -> str | None:
    try:
        known = codecs.lookup(name).name
    except (LookupError, ValueError):
        return None
    known = _AS_BROWSERS_DO.get(known, known)
    return known if _OTHERS.fullmatch(known) else None
