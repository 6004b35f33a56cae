"""Fonts to draw pages with: those of a folder that hold ordinary letters, and which characters each of them has."""

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import ImageFont


_EXTENSIONS = (".ttf", ".otf", ".ttc")
# Without these a font draws symbols, or a script of its own, at the places of letters.
_ORDINARY = "ABCXYZabcxyz0189"
_PICTORIAL = 5


@dataclass(frozen=True)
class FontFile:
    """
    A font.

    Args:
        path: its file.
        name: its path below the folder of the fonts: the same on every machine.
        characters: code points of the characters that it has.
    """

    path: str
    name: str
    characters: frozenset[int]

    def sized(self, size: int) -> ImageFont.FreeTypeFont:
        """
        The font in a size, without the reordering and joining of letters that some scripts need.

        Args:
            size: size in pixels.
        """
        return ImageFont.truetype(self.path, size, layout_engine=ImageFont.Layout.BASIC)

    def has(self, text: str) -> bool:
        """
        Whether the font has all characters of a text.

        Args:
            text: the text.
        """
        return all(ord(letter) in self.characters or letter.isspace() for letter in text)


def find_fonts(folder: str | None) -> tuple[FontFile, ...]:
    """
    The fonts of a folder and those below it, sorted by their names. Fonts of symbols, and files that are no fonts, are left
    out.

    Args:
        folder: the folder. Unset, the fonts that matplotlib brings along, which are the same on every machine.

    Raises:
        ValueError: the folder does not exist, or has no font of ordinary letters.
    """
    import matplotlib

    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf") if folder is None else os.path.abspath(folder)
    found = _fonts_below(path)
    if not found:
        raise ValueError(
            f"{path} holds no font file ({', '.join(_EXTENSIONS)}) with ordinary letters. Give another folder."
        )
    return found


@lru_cache(maxsize=4)
def _fonts_below(folder: str) -> tuple[FontFile, ...]:
    return tuple(sorted(_ordinary_fonts(folder), key=lambda font: font.name))


def _ordinary_fonts(folder: str) -> Iterator[FontFile]:
    for path in Path(folder).rglob("*"):
        if path.suffix.lower() not in _EXTENSIONS or not path.is_file():
            continue
        try:
            with TTFont(path, lazy=True, fontNumber=0) as font:
                names = font.getBestCmap() or {}
                has_outlines = "glyf" in font or "CFF " in font or "CFF2" in font
                pictorial = "OS/2" in font and getattr(font["OS/2"].panose, "bFamilyType", 0) == _PICTORIAL
        # fontTools raises exceptions of many types for broken files.
        except Exception:
            continue
        if has_outlines and not pictorial and all(_is_named(names.get(ord(letter)), letter) for letter in _ORDINARY):
            yield FontFile(str(path), path.relative_to(folder).as_posix(), frozenset(names))


def _is_named(glyph: str | None, letter: str) -> bool:
    """Whether a glyph has the name of a letter, or one that says nothing."""
    if glyph is None:
        return False
    digit = unicodedata.name(letter).rpartition(" ")[2].lower()
    return glyph in (letter, digit) or glyph.startswith(("uni", "glyph", "gid", "cid", "u0"))
