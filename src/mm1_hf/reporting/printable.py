"""Text of data sets, models and files, made fit for a terminal or a log."""

import re
import unicodedata


# Joiners and variation selectors: invisible, but Persian, Indic scripts and emoji need them between visible characters.
_JOINERS = frozenset("\u200c\u200d")
_EMOJI_SELECTORS = ("\ufe0e", "\ufe0f")
_SELECTORS = frozenset(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
# Characters that Unicode counts as letters or marks, although nothing is seen of them.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c\u200d\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def printable(text: str, keep: str = "") -> str:
    r"""
    Replaces every character that could command a terminal, or hide or reorder what is read: control characters (as their
    symbols, such as ␛, or as `\x9b`), marks that change the direction of writing, line and paragraph separators, halves of
    surrogate pairs, private and unassigned characters, and invisible characters (as `\u202e`). Joiners and variation
    selectors stay where scripts and emoji need them, between visible characters outside of ASCII.

    Args:
        text: any text.
        keep: control characters that stay, such as `"\n\t"`.

    Example:

    ```python
    >>> from mm1_hf.reporting.printable import printable

    >>> print(printable("\x1b[2J and \u202e."))
    ␛[2J and \u202e.

    ```
    """
    if text.isprintable() and not _INVISIBLE.search(text):
        return text
    return "".join(
        character if character in keep else _shown(character, text[place - 1 : place], text[place + 1 : place + 2])
        for place, character in enumerate(text)
    )


def _shown(character: str, before: str, after: str) -> str:
    code = ord(character)
    if character in _SELECTORS and _is_joined(before):
        return character
    if character in _JOINERS and (_is_joined(before) or before in _EMOJI_SELECTORS) and _is_joined(after):
        return character
    # isprintable() is false for spaces other than the plain one, which do no harm.
    if (character.isprintable() or unicodedata.category(character) == "Zs") and not _INVISIBLE.match(character):
        return character
    if code < 32:
        return chr(0x2400 + code)
    if code == 127:
        return "\u2421"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_joined(neighbour: str) -> bool:
    """Whether a joiner or selector beside this character changes how it looks."""
    return neighbour > "\x7f" and neighbour.isprintable() and not _INVISIBLE.match(neighbour)
