"""Which room of the package may import which, as docs/how-it-works.md draws it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mm1_command
import mm1_hf
from mm1_hf.registration import MODEL_FILES


PACKAGE = Path(mm1_hf.__file__).parent
COMMAND = Path(mm1_command.__file__).parent
# The modules beside the rooms, which make a model's files known to transformers and put models together.
ROOT = "mm1_hf"
_DATA_ROOMS = {"model", ROOT, "reporting", "accounting", "data", "convert", "grounding"}
_ABOVE_TRAINING = {*_DATA_ROOMS, "training"}
_APPLICATIONS = {*_ABOVE_TRAINING, "planning", "evaluation", "hub"}
# Every room, and those that it may import. An arrow that is not here is a decision.
ALLOWED: dict[str, set[str]] = {
    "model": set(),
    ROOT: {"model"},
    "reporting": set(),
    "accounting": {"model", ROOT},
    # grounding: how points and boxes of a record are written.
    "data": {"model", ROOT, "reporting", "grounding"},
    "corpus": {"data", "grounding", "model", "reporting"},
    "convert": {"model", ROOT},
    "grounding": {"model", ROOT},
    "training": _DATA_ROOMS,
    "planning": _ABOVE_TRAINING,
    "evaluation": _ABOVE_TRAINING,
    "hub": _ABOVE_TRAINING,
    "inspection": _ABOVE_TRAINING,
    "quickstart": _APPLICATIONS,
    "cli": {*_APPLICATIONS, "corpus", "inspection", "quickstart"},
}


def room_of(module: str) -> str:
    """The folder of a module's name under the package, or the root."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ROOT


def name_of(file: Path) -> str:
    return ".".join([ROOT, *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def imports_of(source: str, module: str, is_package: bool) -> Iterator[str]:
    """What a module imports of the package, by absolute names, wherever in its text the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == ROOT)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                start = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            if start.split(".")[0] == ROOT:
                # `from mm1_hf import convert` may name a room, `from mm1_hf import MM1Config` does not.
                yield from (f"{start}.{alias.name}" for alias in node.names)


def test_every_room_has_its_arrows():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert rooms | {ROOT} == set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_one_way(room):
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        module = name_of(file)
        if room_of(module) != room:
            continue
        for name in imports_of(file.read_text(encoding="utf-8"), module, file.name == "__init__.py"):
            if room_of(name) not in {room, *ALLOWED[room]}:
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_the_arrows_have_no_circle():
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        free = {room for room, below in ALLOWED.items() if room not in done and below <= done}
        assert free, f"in a circle: {sorted(set(ALLOWED) - done)}"
        done |= free


def test_private_names_stay_in_their_room():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        module = name_of(file)
        for name in imports_of(file.read_text(encoding="utf-8"), module, file.name == "__init__.py"):
            if name.split(".")[-1].startswith("_") and room_of(name) != room_of(module):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_the_root_holds_what_is_done_with_whole_models_and_nothing_else():
    names = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert names == {"__init__.py", "registration.py", "pipelines.py", "assemble.py", "upcycling.py", "py.typed"}


def test_what_lies_in_the_models_room_travels():
    files = {path.name for path in (PACKAGE / "model").iterdir() if path.suffix == ".py"}
    assert set(MODEL_FILES) == files - {"__init__.py"}
    # transformers copies the files that a class's own imports, from the same folder: the rest would be left behind.
    assert {"configuration_mm1.py", "modeling_mm1.py", "processing_mm1.py", "image_processing_mm1.py"} <= set(
        MODEL_FILES
    )


def test_the_command_imports_the_standard_library_alone():
    """So that its help waits for no library. It names the modules of its verbs only when they are run."""
    for file in COMMAND.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "mm1_command"}, file


def test_only_the_room_of_its_verbs_imports_the_command():
    importing = {
        file
        for file in PACKAGE.rglob("*.py")
        if "import mm1_command" in (text := file.read_text(encoding="utf-8")) or "from mm1_command" in text
    }
    assert importing == {PACKAGE / "cli" / "__init__.py"}


# The check itself.


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import mm1_hf.training.recipes", ["mm1_hf.training.recipes"]),
        ("from mm1_hf.training import recipes", ["mm1_hf.training.recipes"]),
        ("from ..training.recipes import recipe", ["mm1_hf.training.recipes.recipe"]),
        ("from . import packing", ["mm1_hf.data.packing"]),
        ("def f():\n    from mm1_hf import convert", ["mm1_hf.convert"]),
        ("import torch\nfrom transformers import Trainer", []),
    ],
)
def test_imports_are_found_in_every_form(source, found):
    assert list(imports_of(source, "mm1_hf.data.mixture", is_package=False)) == found
