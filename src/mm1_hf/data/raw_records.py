"""
Turns what a reader found in a file into a record: a line of JSON, or the files of a sample in an archive.

A reader marks such raw records by keys of its own. In the records of a data set these keys mean nothing.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from mm1_hf.data.documents import Unusable


Record = Mapping[str, Any]

FOLDER = "__folder__"
LINE = "__line__"
FILES = "__files__"
KEY = "__key__"
ERROR = "__error__"
# Keys that only a reader may give to a record: a record of the data must not choose its own folder, for example.
READER_KEYS = frozenset({FOLDER, LINE, FILES, ERROR})

WRONG_LAYOUT = "not a record of this layout"
CORRUPT_ARCHIVE = "corrupt archive"
CORRUPT_FILE = "corrupt file"
CORRUPT_RECORD = "corrupt record"
MAX_NESTING = 64
# Largest number of bytes of a record in a text file.
MAX_RECORD_BYTES = 1 << 26

_TEXT_EXTENSIONS = ("caption", "text", "txt")
# A string, also one that does not end, or a bracket outside of strings.
_BRACKETS = re.compile(r'"(?:[^"\\]+|\\.)*+"?|[\[\]{}]', re.DOTALL)


def unwrapped(record: Record, name: str = "") -> Record:
    """
    Parses a record that is still a line of JSON or the files of an archive. Other records are returned unchanged.

    Args:
        record: a record that [`mm1_hf.data.readers.read`] returned.
        name: where the record comes from, for error messages.

    Raises:
        Unusable: the line or the files cannot be parsed.
    """
    if LINE in record:
        found = _of_line(record, name)
    elif FILES in record:
        found = _of_files(record, name)
    elif FOLDER in record and ERROR in record:
        _require_no_error(record, name)
        found = record
    else:
        return record
    found = {key: value for key, value in found.items() if key not in READER_KEYS}
    return found | ({FOLDER: record[FOLDER]} if FOLDER in record else {})


def parse_json(text: str | bytes) -> Any:
    """
    Parses JSON of a data set.

    Args:
        text: the JSON, as text or as UTF-8.

    Raises:
        ValueError: the text is not JSON, an object has a key twice, or lists and objects are nested deeper than
            `MAX_NESTING` levels.
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
    # Counted before, because Python's parser fails at a depth that depends on its caller's.
    if text.count("[") + text.count("{") > MAX_NESTING and _nesting(text) > MAX_NESTING:
        raise ValueError(f"lists and objects are nested deeper than {MAX_NESTING} levels")
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r:.100} appears twice in an object")
    return found


def _nesting(text: str) -> int:
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        if match[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in "]}":
            depth -= 1
    return deepest


def _require_no_error(record: Record, name: str) -> None:
    if record.get(ERROR) is not None:
        reason, _, detail = record[ERROR].partition(": ")
        raise Unusable(reason, f"{name}: {detail}")


def _of_line(record: Record, name: str) -> dict[str, Any]:
    _require_no_error(record, name)
    line = record[LINE]
    try:
        found = parse_json(line)
    except ValueError as error:
        raise Unusable(CORRUPT_RECORD, f"{name}: {error}: {line!r:.100}") from error
    if not isinstance(found, dict):
        raise Unusable(WRONG_LAYOUT, f"{name}: the line is {found!r:.100}, not a JSON object")
    return found


def _of_files(record: Record, name: str) -> dict[str, Any]:
    _require_no_error(record, name)
    found: dict[str, Any] = {KEY: record.get(KEY)}
    for file in record[FILES]:
        extension, content = file["extension"].lower(), file["bytes"]
        try:
            if extension == "json":
                content = parse_json(content)
            elif extension in _TEXT_EXTENSIONS:
                content = content.decode()
        except ValueError as error:
            raise Unusable(CORRUPT_RECORD, f"{name}: {record.get(KEY)}.{extension}: {error}") from error
        found[extension] = content
    return found
