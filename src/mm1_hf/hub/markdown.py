"""Plain text as Markdown: what an author or a file says must not change the model card around it."""

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from mm1_hf.reporting.printable import printable


# Characters at the beginning of a line that would start a heading, a list, a quotation, a table, a block of code or a rule.
_BLOCK = re.compile(r"(?=[#>|+*=~`-])")
_NUMBERED = re.compile(r"^(\d{1,9})([.)])")


def cell(text: str) -> str:
    r"""
    Text as it is, without any markup, in one line, as a cell of a table or a part of a sentence.

    Args:
        text: plain text.

    Example:

    ```python
    >>> from mm1_hf.hub.markdown import cell

    >>> print(cell("a | b\n<b> `c` [d](e)"))
    a \| b &lt;b&gt; \`c\` \[d\](e)

    ```
    """
    text = re.sub(r"([\\`*|\[\]~])", r"\\\1", _line(text))
    # Inside of words, as in the names of data sets, an underscore is no markup.
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def prose(text: str) -> str:
    """
    An author's text as one paragraph or the item of a list. Emphasis, links and short code stay; HTML and blocks, such as
    headings, tables and code of several lines, become plain text.

    Args:
        text: text in Markdown.
    """
    line = re.sub(r"`{3,}|~{3,}", lambda found: "".join(f"\\{character}" for character in found[0]), _line(text))
    return _NUMBERED.sub(r"\1\\\2", line) if line[:1].isdigit() else _BLOCK.sub(r"\\", line[:1]) + line[1:]


def one_line(text: str) -> str:
    """
    Text in one line, without characters that hide or reorder it.

    Args:
        text: any text.
    """
    return " ".join(printable(" ".join(text.split())).split())


def _line(text: str) -> str:
    return one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def written(values: Any, write: Callable[[str], str], **others: Callable[[str], str]) -> Any:
    """
    A copy of a dataclass with all its texts rewritten, in nested dataclasses and tuples too.

    Args:
        values: the dataclass, or a value of one of its fields.
        write: how a text is written.
        others: how the texts of some fields of the dataclass are written instead, by name.
    """
    if isinstance(values, str):
        return write(values)
    if isinstance(values, tuple):
        return tuple(written(each, write) for each in values)
    if not is_dataclass(values) or isinstance(values, type):
        return values
    changed = {
        field.name: written(getattr(values, field.name), others.get(field.name, write)) for field in fields(values)
    }
    return replace(values, **changed)
