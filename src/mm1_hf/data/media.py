"""
The images of a record: reads every form in which records name them, keeps local paths inside the folder of the data, and
refuses media that a layout does not read.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.data.raw_records import FOLDER, WRONG_LAYOUT, Record, parse_json
from mm1_hf.data.wall import require_unicode
from mm1_hf.model.image_inputs import unwrap


NO_IMAGE = "no image"
UNREAD_MEDIA = "unread media"
UNREAD_ADDRESS = "unread address"
OUTSIDE = "outside of the data's folder"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?=//|[^/\\])")
_BASE64 = re.compile(r"(/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|AAAAI|Qk)[A-Za-z0-9+/\s]+={0,2}\s*")
# Paths are shorter than encoded images.
_SHORTEST_BASE64 = 256
_SNAPSHOT = re.compile(r"(.*/(?:models|datasets|spaces)--[^/]+)/snapshots/[^/]+(?:/.*)?")

_IMAGE_WORD = re.compile("images?|imgs?|pictures?|pics?|photos?|screenshots?|thumbnails?|frames?")
_MEDIA_WORD = re.compile(f"{_IMAGE_WORD.pattern}|videos?|audios?|sounds?|speech|movies?|clips?")
# What may follow such a word in the name of a column that holds media. Other words make it a column about them.
_ADDRESS_WORD = re.compile("ur[li]s?|paths?|files?|filenames?|names?|src|links?|bytes|base64|b64|data|content|list")
_EXTENSION = re.compile(
    "jpe?g|png|webp|gif|bmp|tiff?|avif|jp2|hei[cf]|p[pg]m|ico|eps|svg|pdf|mp4|webm|avi|mov|mkv|mpe?g|wav|mp3|flac|ogg|m4a"
    "|opus|aac"
)
_MAGIC = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....(?:WEBP|WAVE|AVI )|II\*\0|MM\0\*|....ftyp|OggS|fLaC|ID3|\x1aE\xdf\xa3|%PDF",
    re.DOTALL,
)
_DATA_URL = re.compile(r"data:(image|video|audio)/", re.IGNORECASE)


def record_image(value: Any, record: Record, name: str) -> ImagePart:
    """
    The image that a record holds.

    Args:
        value: see [`given_image`].
        record: see [`given_image`].
        name: see [`given_image`].

    Raises:
        Unusable: there is no image, it has another form, or its file is not in the folder of the data.
    """
    found = given_image(value, record, name)
    if isinstance(found, bytes | str | Image.Image):
        return ImagePart(found)
    raise Unusable(WRONG_LAYOUT, f"{name}: an image is {value!r:.100}; give bytes, a path, a URL or a PIL image")


def given_image(value: Any, record: Record, name: str) -> Any:
    """
    Unwraps the image that a record holds. Its address is checked, but it is not opened.

    Args:
        value: bytes, a path, a URL, base64, a PIL image, an array, a tensor, or an undecoded image of `datasets`.
        record: the record. Relative paths start at the folder under its key [`FOLDER`], if it has one, and then no
            file outside of that folder is read.
        name: name of the record, for error messages.

    Returns:
        Bytes, an absolute path, a URL, a PIL image, an array or a tensor.

    Raises:
        Unusable: there is no image, it has another form, or its file is not in the folder of the data.
    """
    if is_empty(value):
        raise Unusable(NO_IMAGE, name)
    try:
        found = unwrap(value["url"] if isinstance(value, Mapping) and value.keys() == {"url"} else value)
    except ValueError as error:
        raise Unusable(WRONG_LAYOUT, f"{name}: {error}") from error
    if is_empty(found):
        raise Unusable(NO_IMAGE, name)
    if isinstance(found, str):
        return _address(found, record, name)
    if isinstance(found, bytes | Image.Image | np.ndarray | torch.Tensor):
        return found
    raise Unusable(WRONG_LAYOUT, f"{name}: an image is {value!r:.100}; give bytes, a path, a URL or a PIL image")


def _address(value: str, record: Record, name: str) -> str:
    value = read_text(value, f"{name}: the address of an image")
    scheme = _SCHEME.match(value)
    kind = scheme[1].lower() if scheme else ""
    if kind in ("http", "https", "data"):
        return kind + value[len(kind) :]
    if len(value) >= _SHORTEST_BASE64 and _BASE64.fullmatch(value):
        return f"data:;base64,{value}"
    if kind and "://" in value:
        raise Unusable(UNREAD_ADDRESS, f"{name}: {value:.200} is neither a path nor an address of http, https or data")
    if FOLDER not in record:
        return value
    try:
        return local_file(value, record[FOLDER] or "")
    except Unusable as error:
        raise Unusable(error.reason, f"{name}: {error.detail}") from error


def local_file(path: str, folder: str) -> str:
    """
    The path of a local file that a record or a page names, which must lie in the folder of the data. Links are followed:
    what counts is where the file really is. Where the data are a snapshot in the Hub's cache, whose files are links, the
    files of this repository count as inside.

    Args:
        path: a path, or a URL (`file://`). A relative path starts at `folder`.
        folder: the folder of the data. If it is empty, no file is inside.

    Raises:
        Unusable: the file is not in the folder.
    """
    try:
        found = os.path.join(folder, unwrap(path))
    except ValueError as error:
        raise Unusable(UNREAD_ADDRESS, str(error)) from error
    if folder and "\0" not in found:
        real = os.path.realpath(found)
        if any(os.path.commonpath([real, root]) == root for root in _roots(folder)):
            return found
    where = f"the data's folder {folder}" if folder else "any folder of the data"
    raise Unusable(
        OUTSIDE,
        f"{path!r:.200} is not in {where}. If you trust the data, give the folder of the images by name (image_folder)",
    )


@lru_cache(maxsize=256)
def _roots(folder: str) -> tuple[str, ...]:
    snapshot = _SNAPSHOT.fullmatch(os.path.abspath(folder))
    roots = [folder, os.path.join(snapshot[1], "blobs")] if snapshot else [folder]
    return tuple(os.path.realpath(root) for root in roots)


def images_in(value: Any, name: str) -> list[Any]:
    """
    The images of a column: `None`, an empty text, an empty list and a list of nothing else mean that there are none.

    Args:
        value: one image, a list of images, or a list of paths as JSON.
        name: name of the record and column, for error messages.

    Raises:
        Unusable: a list holds images, but also an empty entry.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = of_json(value, name)
    given = list(value) if isinstance(value, list | tuple) else [value]
    empty = [is_empty(image) for image in given]
    if any(empty) and not all(empty):
        raise Unusable(NO_IMAGE, f"{name}: entry {empty.index(True)} of {len(given)} is empty, others are images")
    return [] if all(empty) else given


def is_empty(value: Any) -> bool:
    """
    Whether a value says that there is no image: `None`, an empty text, list or file, or a dictionary of such values.

    Args:
        value: any value of a record.
    """
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(is_empty(entry) for entry in value.values())
    return value is None or (isinstance(value, bytes | bytearray | list | tuple) and not len(value))


def of_json(value: str, name: str) -> Any:
    """
    Parses JSON that stands in a text, as tables hold lists.

    Args:
        value: the text.
        name: name of the record and column, for error messages.

    Raises:
        Unusable: the text is not JSON.
    """
    try:
        return parse_json(value)
    except ValueError as error:
        raise Unusable(WRONG_LAYOUT, f"{name} is a text, but not JSON: {error}: {value!r:.100}") from error


def read_text(value: Any, name: str) -> str:
    """
    Checks that a value is a text.

    Args:
        value: the value.
        name: name of the record, for error messages.

    Raises:
        Unusable: it is not a string, or one that UTF-8 cannot encode, such as half of an emoji.
    """
    if not isinstance(value, str):
        raise Unusable(WRONG_LAYOUT, f"{name}: a text is {value!r:.100}, not a string")
    require_unicode(value, name)
    return value


def require_read(record: Record, read: Collection[str], images: int, name: str) -> None:
    """
    Checks that a layout reads every medium of a record. A column holds media if its value is an image, a sound or a
    video, or if its name says so, such as `image_2` or `video_path`. A column of addresses, such as `image_url`, may
    stand beside as many images: it is taken to say where they are from.

    Args:
        record: the record, or a part of one.
        read: the columns that the layout reads.
        images: number of images that the layout found.
        name: name of the record, for error messages.

    Raises:
        Unusable: there is such a column that the layout does not read.
    """
    unread = [
        str(column)
        for column, value in record.items()
        if column not in read and _is_medium(str(column), value) and not _is_address(str(column), value, images)
    ]
    if unread:
        raise Unusable(
            UNREAD_MEDIA,
            f"{name}: {', '.join(sorted(unread)):.200} would be lost, because the layout does not read it. Move images into "
            "the columns that it reads, choose another layout, or remove what is not to be learned",
        )


def _words(column: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column)
    return re.findall(r"base64|b64|[a-z]+|\d+", spaced.lower())


def _is_address(column: str, value: Any, images: int) -> bool:
    words = _words(column)
    entries = value if isinstance(value, list | tuple) else [value]
    return (
        images > 0
        and len(entries) == images
        and all(isinstance(entry, str) and not _DATA_URL.match(entry) for entry in entries)
        and len(words) > 1
        and _IMAGE_WORD.fullmatch(words[0]) is not None
        and all(map(_ADDRESS_WORD.fullmatch, words[1:]))
    )


def _is_medium(column: str, value: Any) -> bool:
    if column.startswith("__") or isinstance(value, bool | int | float) or is_empty(value):
        return False
    words = _words(column)
    places = [index for index, word in enumerate(words) if _MEDIA_WORD.fullmatch(word)]
    rest = words[places[-1] + 1 :] if places else []
    extension = column.lower().rpartition(".")[2]
    named = _EXTENSION.fullmatch(extension) is not None or (
        bool(places) and all(_ADDRESS_WORD.fullmatch(word) or word.isdigit() or len(word) == 1 for word in rest)
    )
    if named and not _is_numbers(value):
        return True
    return any(map(_is_media_value, _leaves(value)))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(entry, bool | int | float) for entry in value)


def _leaves(value: Any) -> Iterator[Any]:
    """The values inside lists and dictionaries, and those dictionaries that may be images or sounds themselves."""
    stack = [value]
    while stack:
        entry = stack.pop()
        if isinstance(entry, Mapping):
            yield entry
            stack += entry.values()
        elif isinstance(entry, list | tuple):
            stack += entry
        else:
            yield entry


def _is_media_value(value: Any) -> bool:
    if isinstance(value, Mapping):
        keys = {key for key, entry in value.items() if not is_empty(entry)}
        return bool(keys) and ((value.keys() == {"bytes", "path"}) or {"array", "sampling_rate"} <= keys)
    if isinstance(value, str):
        return bool(_DATA_URL.match(value))
    if isinstance(value, bytes | bytearray):
        return bool(_MAGIC.match(value))
    return isinstance(value, Image.Image) or type(value).__name__ in ("AudioDecoder", "VideoDecoder")
