"""Files of named entries, YAML or JSON, and dataclasses made from them. Wrong names are refused with the known ones."""

from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import yaml


Entries = TypeVar("Entries")


def read_entries(path: str | PathLike[str]) -> Any:
    """
    Reads a YAML or JSON file.

    Args:
        path: the file.

    Returns:
        What the file holds, usually a dict.

    Raises:
        ValueError: the file is neither YAML nor JSON.
        OSError: the file cannot be read.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error


def from_entries(kind: type[Entries], values: Any, where: str) -> Entries:
    """
    Makes a dataclass from entries that are named like its fields.

    Args:
        kind: the dataclass.
        values: the entries.
        where: where they were read, for error messages.

    Raises:
        ValueError: `values` is not a mapping, an entry is unknown, missing or wrong.
    """
    names = [each.name for each in fields(kind)]  # ty: ignore[invalid-argument-type] -- a dataclass
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{where} holds {values!r:.100}, but must hold entries with names and values. Their names may be "
            f"{', '.join(names)}."
        )
    if unknown := [str(name) for name in values if name not in names]:
        raise ValueError(f"{where} has unknown entries: {', '.join(unknown)}. The known ones are {', '.join(names)}.")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
