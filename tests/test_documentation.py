"""Every public name says what it takes, in which shapes and units, what it raises, and the main ones how they are used."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator

import pytest
from transformers.configuration_utils import PreTrainedConfig

import mm1_hf
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.model.versions import CACHE


# Applications over the package, whose surface is the command line.
_APPLICATIONS = ("mm1_hf.cli", "mm1_hf.quickstart")
# Never built by a user: they hold what their models share.
_BASES = {"MM1PreTrainedModel", "MM1TextPreTrainedModel"}
# What users call beside the names of the package itself.
_CALLED = {
    "mm1_hf.model.configuration_mm1": ["MM1Config.from_preset"],
    "mm1_hf.convert.decoders": ["text_config_of"],
    "mm1_hf.data.collation": ["MM1Collator"],
    "mm1_hf.evaluation.answering": ["question_messages"],
    "mm1_hf.grounding.regions": ["iou", "recall"],
    "mm1_hf.grounding.text": ["RegionFormat"],
    "mm1_hf.grounding.tiles": ["tile_views"],
    "mm1_hf.accounting.parameters": ["count_parameters", "parameter_table"],
    "mm1_hf.model.tiling": ["TilingConfig", "placeholder_text", "sample_layouts", "select_grid"],
    "mm1_hf.accounting.flops": ["flops_formula"],
    "mm1_hf.training.lora": ["lora_config"],
    "mm1_hf.training.parts": ["freeze", "parameter_groups"],
    "mm1_hf.training.recipes": ["Recipe.training_arguments", "recipe"],
    "mm1_hf.training.trainer": ["MM1Trainer"],
}

_ENTRY = re.compile(r" {4}(\**\w+(?:, \**\w+)*)(?: \(.+?\))?:(?: |$)")

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(mm1_hf.__path__, "mm1_hf.")
    if not module.name.startswith(_APPLICATIONS)
)


def section(docstring: str, name: str) -> list[str] | None:
    """The lines under a heading, or None where there is no such heading."""
    lines = inspect.cleandoc(docstring).splitlines()
    if f"{name}:" not in lines:
        return None
    body = lines[lines.index(f"{name}:") + 1 :]
    end = next((index for index, line in enumerate(body) if line and not line.startswith(" ")), len(body))
    return body[:end]


def described(docstring: str) -> set[str] | None:
    """The names under `Args:`, or None where there is no such heading."""
    lines = section(docstring, "Args")
    if lines is None:
        return None
    entries = filter(None, map(_ENTRY.match, lines))
    return {name.lstrip("*") for entry in entries for name in entry[1].split(", ")}


def parameters(function: Callable) -> tuple[set[str], set[str]]:
    """The arguments that must be described, and the variable ones that may be."""
    required, variable = set(), set()
    for name, parameter in inspect.signature(function).parameters.items():
        several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        # The name that the signature shows is that of the installed release; the documentation tells of the older one.
        (variable if several else required).add("past_key_values" if name == CACHE else name)
    return required - {"self", "cls"}, variable


def fields(cls: type) -> tuple[set[str], set[str]]:
    """The same for a class: what its own constructor takes, or its own fields."""
    if dataclasses.is_dataclass(cls):
        return {field.name for field in dataclasses.fields(cls)} & set(inspect.get_annotations(cls)), set()
    if issubclass(cls, tuple):
        return set(cls._fields), set()
    return parameters(vars(cls)["__init__"]) if "__init__" in vars(cls) else (set(), set())


def raises(function: Callable) -> bool:
    """Whether the function's own body raises a ValueError."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    return any(
        isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) == "ValueError"
        for node in ast.walk(tree)
    )


def functions_of(cls: type) -> Iterator[tuple[str, Callable]]:
    """What a class writes itself: methods of any kind, and properties by their getters."""
    for name, member in vars(cls).items():
        member = getattr(member, "fget", None) or getattr(member, "__func__", member)
        # Others are made by `dataclass` and its like.
        if inspect.isfunction(member) and inspect.unwrap(member).__code__.co_filename == inspect.getsourcefile(cls):
            yield name, member


def check(name: str, docstring: str | None, takes: tuple[set[str], set[str]], raising: bool) -> Iterator[str]:
    """What is wrong with one docstring."""
    if not docstring:
        yield f"{name} has no docstring"
        return
    required, variable = takes
    names = described(docstring) or set()
    if missing := required - names:
        yield f"{name} does not describe {', '.join(sorted(missing))}"
    if unknown := names - required - variable:
        yield f"{name} describes {', '.join(sorted(unknown))}, which it does not take"
    if raising and "ValueError" not in " ".join(section(docstring, "Raises") or []):
        yield f"{name} raises a ValueError that it does not tell of"


def check_class(cls: type) -> Iterator[str]:
    members = dict(functions_of(cls))
    constructors = [members[name] for name in ("__init__", "__post_init__") if name in members]
    # dataclasses write a docstring of their own where there is none.
    written = None if (cls.__doc__ or "").startswith(f"{cls.__name__}(") else cls.__doc__
    yield from check(cls.__qualname__, written, fields(cls), any(map(raises, constructors)))
    for name, member in members.items():
        if name.startswith("_") and name != "__call__":
            continue
        overrides = any(hasattr(base, name) for base in cls.__mro__[1:])
        # What a library's own method takes, the library says; the override says what is its own.
        takes = (set(), set()) if overrides and described(member.__doc__ or "") is None else parameters(member)
        docstring = member.__doc__ or (overrides and not raises(member) and "as the library's")
        yield from check(f"{cls.__qualname__}.{name}", docstring or None, takes, raises(member))


def problems(module_name: str) -> Iterator[str]:
    module = importlib.import_module(module_name)
    if not (module.__doc__ or module.__file__.endswith("__init__.py")):
        yield f"{module_name} has no docstring"
    public = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    for name in public:
        value = getattr(module, name)
        if getattr(value, "__module__", None) != module_name:
            continue
        if inspect.isclass(value):
            yield from check_class(value)
        elif inspect.isfunction(inspect.unwrap(value)):
            # Layouts all take a record and its name; their module says so once.
            takes = (set(), set()) if value in LAYOUTS.values() else parameters(value)
            yield from check(name, value.__doc__, takes, raises(value))


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented(module):
    assert not list(problems(module))


def test_the_packages_names_and_the_called_ones_have_examples():
    called = {module: list(names) for module, names in _CALLED.items()}
    for name in set(mm1_hf.__all__) - _BASES:
        called.setdefault(getattr(mm1_hf, name).__module__, []).append(name)
    without = []
    for module, names in called.items():
        # Through the module, as pytest finds them: one on a wrapped function would be read by nobody.
        found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))
        examples = {test.name for test in found if test.examples}
        without += [f"{module}.{name}" for name in names if f"{module}.{name}" not in examples]
    assert not without


# The checks themselves.


def documented(size: int, *rest: int, scale: float = 1.0, **options) -> int:
    """
    Args:
        size, scale: `(height, width)` in pixels: both.
        rest (`int`, of shape `(a, b)`): more.

    Raises:
        ValueError: it is negative.
    """
    if size < 0:
        raise ValueError(size)
    return size


def forgetful(size: int, scale: float) -> None:
    """
    Of nothing.

    Args:
        size: the size.
        length: of what is not there.
    """
    if size < 0:
        raise ValueError(size)


def test_a_documented_function_passes():
    assert not list(check("f", documented.__doc__, parameters(documented), raises(documented)))


def test_what_is_forgotten_is_found():
    assert list(check("f", forgetful.__doc__, parameters(forgetful), raises(forgetful))) == [
        "f does not describe scale",
        "f describes length, which it does not take",
        "f raises a ValueError that it does not tell of",
    ]
    assert list(check("f", None, parameters(forgetful), raises(forgetful))) == ["f has no docstring"]


def test_fields_of_a_configuration_are_its_own():
    assert fields(mm1_hf.MM1ConnectorConfig)[0] >= {"depth", "num_tokens"}
    assert not fields(mm1_hf.MM1ConnectorConfig)[0] & set(inspect.get_annotations(PreTrainedConfig))
