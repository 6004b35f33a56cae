"""Files of named entries, YAML or JSON, and dataclasses made from them. Each value is checked by its field's type."""

import dataclasses
import json
import math
import re
import types
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.constructor import ConstructorError


Entries = TypeVar("Entries")

_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NUMBER = re.compile(r"[-+]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
# Names for parts of a YAML file ("anchors") can make a few lines grow without bound.
_MOST_VALUES = 100_000
_DEEPEST = 100

_INT, _FLOAT, _TIMESTAMP = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))


class _Loader(yaml.SafeLoader):
    """
    Reads numbers as YAML 1.2 and JSON do: PyYAML takes 1e-4 for a string, and 1:30 for the number 90. Dates stay
    strings.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT, _TIMESTAMP)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def flatten_mapping(self, node):
        super().flatten_mapping(node)
        if len(node.value) > _MOST_VALUES:
            raise ConstructorError(None, None, "too many merged entries", node.start_mark)


_Loader.add_implicit_resolver(
    _INT, re.compile(r"^(?:[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def read_entries(path: str | PathLike[str]) -> Any:
    """
    Reads a YAML or JSON file.

    Args:
        path: the file. One whose name ends with `.json` is read as JSON.

    Returns:
        What the file holds, usually a dict.

    Raises:
        ValueError: the file is neither YAML nor JSON, or names an entry twice.
        OSError: the file cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_object) if Path(path).suffix == ".json" else _yaml(text)
        _refuse_deep(value)
        return value
    except RecursionError as error:
        raise ValueError(f"{path} is neither YAML nor JSON: it is nested too deeply.") from error
    # PyYAML's constructors pass on what Python raises, for example for a number of 10,000 digits.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error


def from_entries(kind: type[Entries], values: Any, where: str) -> Entries:
    """
    Makes a dataclass from entries that are named like its fields. Each value must have the type of its field; a string
    that holds a number or a truth value is read as such where the field wants one.

    Args:
        kind: the dataclass.
        values: the entries.
        where: where they were read, for error messages.

    Raises:
        ValueError: `values` is not a mapping, an entry is unknown, missing or wrong. Its name is part of the message,
            such as `sources.caption.weight`.
    """
    try:
        return _dataclass(kind, values, "")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def convert(value: Any, kind: Any, name: str) -> Any:
    """
    Checks a value by a type, and reads numbers and truth values from strings.

    Args:
        value: the value.
        kind: the type, such as `float | None` or `dict[str, float]`.
        name: name of the value, for error messages.

    Raises:
        ValueError: the value has another type.

    Example:

    ```python
    >>> from mm1_hf.training.entries import convert

    >>> convert("1e-4", float | None, "learning_rate")
    0.0001
    >>> convert({"connector": "1e-3"}, dict[str, float], "learning_rates")
    {'connector': 0.001}

    ```
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, arguments, name)
    if origin is Literal:
        if not any(type(value) is type(each) and value == each for each in arguments):
            raise _wrong(
                name, value, f"one of {', '.join(map(str, arguments))} is expected{_nearest(value, arguments)}"
            )
        return value
    if origin in (tuple, list) or kind in (tuple, list):
        return _list(value, origin or kind, arguments[0] if arguments else Any, name)
    if isinstance(origin or kind, type) and issubclass(origin or kind, Mapping):
        return _dict(value, arguments[1] if arguments else Any, name)
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else _dataclass(kind, value, name)
    if kind in _SIMPLE:
        return _SIMPLE[kind](value, name)
    if isinstance(value, kind):
        return value
    raise _wrong(name, value, f"a value of {getattr(kind, '__name__', kind)} is expected, which a file cannot hold")


@cache
def type_hints(kind: Any) -> dict[str, Any]:
    """
    The types of a dataclass's fields.

    Args:
        kind: the dataclass.
    """
    return get_type_hints(kind)


def refuse_unknown(names: Iterable[Any], known: Iterable[str], where: str) -> None:
    """
    Checks the names of entries.

    Args:
        names: the names that were given.
        known: the names that are known.
        where: where they were given, as the beginning of the message.

    Raises:
        ValueError: a name is unknown. The message holds the nearest known name, if one is near, and all of them.
    """
    known = list(known)
    if unknown := [name for name in names if name not in known]:
        listed = ", ".join(f"{name}{_nearest(name, known)}" for name in unknown)
        raise ValueError(f"{where}unknown entries: {listed:.500}. The known ones are {', '.join(known):.600}.")


def _yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded_size(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded_size(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """Number of values of a node, those that it refers to counted every time; names that are there twice are refused."""
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise ValueError(f"the value that begins in line {_line(node)} contains itself")
        return size
    sizes[id(node)] = None
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        _refuse_repeated(names, f" that begins in line {_line(node)}")
        inner = [each for pair in node.value for each in pair]
    size = 1 + sum(_expanded_size(each, sizes) for each in inner)
    if size > _MOST_VALUES:
        raise ValueError(f"it holds more than {_MOST_VALUES} values")
    sizes[id(node)] = size
    return size


def _line(node: yaml.Node) -> int:
    mark: Any = node.start_mark
    return mark.line + 1


def _refuse_deep(value: Any) -> None:
    pending = [(value, 0)]
    while pending:
        each, depth = pending.pop()
        if depth > _DEEPEST:
            raise RecursionError
        inner = each.values() if isinstance(each, dict) else each if isinstance(each, list | tuple) else ()
        pending += [(one, depth + 1) for one in inner]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_repeated([name for name, _ in pairs], "")
    return dict(pairs)


def _refuse_repeated(names: list[str], place: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the entry {twice!r:.100} is there twice in the mapping{place}. Remove one of them")


def _dataclass(kind: Any, values: Any, name: str) -> Any:
    prefix = f"{name} " if name else ""
    known = [each.name for each in dataclasses.fields(kind) if each.init]
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{prefix}holds {_shown(values)}, but must hold entries with names and values. Their names may be "
            f"{', '.join(known)}."
        )
    refuse_unknown(values, known, f"{prefix}has ")
    hints = type_hints(kind)
    given = {each: convert(value, hints[each], _joined(name, each)) for each, value in values.items()}
    required = {
        each.name
        for each in dataclasses.fields(kind)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }
    if missing := [each for each in known if each in required - given.keys()]:
        raise ValueError(f"{prefix}lacks the entries {', '.join(missing)}. Add them.")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from error


def _one_of(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    # A string stays one where a string is allowed.
    exact = [kind for kind in kinds if isinstance(kind, type) and type(value) is kind and kind in _SIMPLE]
    errors = []
    for kind in exact or kinds:
        try:
            return convert(value, kind, name)
        except ValueError as error:
            errors.append(error)
    raise errors[-1]


def _list(value: Any, kind: type, inner: Any, name: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _wrong(name, value, "a list is expected, such as [a, b]")
    return kind(convert(each, inner, f"{name}[{index}]") for index, each in enumerate(value))


def _dict(value: Any, inner: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "a mapping of names to values is expected")
    return {_text(key, f"a name in {name}"): convert(each, inner, _joined(name, key)) for key, each in value.items()}


def _truth(value: Any, name: str) -> bool:
    if isinstance(value, str):
        value = _TRUTHS.get(value.strip().lower(), value)
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false is expected")
    return value


def _number(value: Any, name: str) -> float:
    number = value
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        number = float(value) if any(each in value for each in ".eE") else _whole(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _wrong(name, value, "a number is expected")
    try:
        finite = math.isfinite(number)
    except OverflowError:
        finite = False
    if not finite:
        raise _wrong(name, value, "a finite number is expected")
    return number


def _whole(value: str) -> int | str:
    try:
        return int(value)
    except ValueError:  # too many digits
        return value


def _integer(value: Any, name: str) -> int:
    number = _number(value, name)
    if number != int(number):
        raise _wrong(name, value, "a whole number is expected")
    return int(number)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "text is expected; put it in quotes if it is meant as text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _wrong(name, value, "text is expected, but this is not valid Unicode") from None
    return value


_SIMPLE = {bool: _truth, int: _integer, float: _number, str: _text}


def _joined(name: str, entry: Any) -> str:
    return f"{name}.{entry}" if name else str(entry)


def _wrong(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{name} is {_shown(value)}, but {expected}.")


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.100}"
    except (ValueError, RecursionError):  # a number of too many digits
        return f"a very large {type(value).__name__}"


def _nearest(name: Any, known: Iterable[Any]) -> str:
    near = get_close_matches(str(name)[:100], [str(each) for each in known], n=1)
    return f" (did you mean {near[0]}?)" if near else ""
