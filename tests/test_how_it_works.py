"""Every file and name that docs/how-it-works.md mentions exists."""

import ast
import re
from pathlib import Path

import pytest

import mm1_hf
from mm1_hf.registration import MODEL_FILES


ROOT = Path(__file__).parents[1]
PACKAGE = Path(mm1_hf.__file__).parent
PAGE = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
# Between the diagram and the tables, what stands in backticks.
QUOTED = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)))
FILES = {quoted for quoted in QUOTED if re.fullmatch(r"[\w/.]+(?:\.py|\.md|/)", quoted)}
# A row that says which names a file has.
STEPS = re.findall(r"^\| [^|]+ \| (`[^|]+`) \| (`[^|]+`) \| [^|]+ \|$", PAGE, flags=re.MULTILINE)


def names_in(file: Path) -> set[str]:
    """The functions, classes, methods and constants of a module; `Class.method` for methods, those of bases included."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            if isinstance(node, ast.ClassDef):
                found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_exist(name):
    assert any((folder / name).exists() for folder in (PACKAGE, ROOT)), name


def test_steps_name_what_their_files_hold():
    assert len(STEPS) > 25
    for files, names in STEPS:
        held = set().union(*(names_in(PACKAGE / file) for file in re.findall(r"`([^`]+)`", files)))
        missing = set(re.findall(r"`([^`]+)`", names)) - held
        assert not missing, f"{files} has no {missing}"


def test_other_names_stand_in_the_code():
    code = "\n".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py"))
    for quoted in QUOTED - FILES:
        for name in re.findall(r"[A-Za-z_]\w{2,}", quoted):
            assert re.search(rf"\b{name}\b", code), f"{quoted}: there is no {name}"


def test_every_room_is_described():
    rooms = {f"{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(re.findall(r"^\| `(\w+/)` \|", PAGE, flags=re.MULTILINE))


def test_every_model_file_on_the_way_travels():
    on_the_way = {name.removeprefix("model/") for name in FILES if name.startswith("model/") and name != "model/"}
    assert on_the_way <= set(MODEL_FILES)
