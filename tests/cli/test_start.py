"""How the command starts: help waits for no library, and only the command's own lines are printed."""

import logging
import subprocess
import sys
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from mm1_command.quiet import _MESSAGES, quieten


# Help of the command and of every verb, the version and a wrong option, then the modules that were imported.
PARSES = """
import argparse, sys
from mm1_command import build_parser, main
(verbs,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
for arguments in (["--help"], ["--version"], ["ask", "--modle"], *([verb, "--help"] for verb in verbs.choices)):
    try:
        main(arguments)
    except SystemExit:
        continue
    raise AssertionError(arguments)
print("imported", *(name for name in sys.modules if "." not in name))
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def test_help_imports_no_library():
    done = run("-c", PARSES)
    *printed, last = done.stdout.splitlines()
    assert f"mm1 {version('mm1_hf')}" in printed and "usage: mm1 serve [DIR] [--engine NAME] [OPTION ...]" in printed
    imported = set(last.split())
    assert {"imported", "mm1_command"} <= imported
    assert not imported & {"mm1_hf", "torch", "transformers", "numpy", "huggingface_hub", "PIL", "tqdm"}


def test_a_verb_prints_its_own_lines_alone():
    """Planning imports PEFT, and through it and transformers whatever optional library is installed."""
    done = run("-m", "mm1_command", "plan", "mm1-3b", "--gpus", "64")
    assert done.stdout and not done.stderr


@pytest.fixture
def as_before(monkeypatch):
    """Undoes what `quieten` does to the process."""
    filters = {name: list(logging.getLogger(name).filters) for name in _MESSAGES}
    for name in _MESSAGES:
        logging.getLogger(name).filters.clear()
    monkeypatch.setenv("TQDM_DELAY", "")
    monkeypatch.delenv("TQDM_DELAY")
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    with warnings.catch_warnings():
        yield
    for name, kept in filters.items():
        logging.getLogger(name).filters[:] = kept


def passes(name: str, level: int, message: str) -> bool:
    record = logging.LogRecord(name, level, "file.py", 1, message, (), None)
    return bool(logging.getLogger(name).filter(record))


@pytest.mark.parametrize("name", _MESSAGES)
def test_known_messages_are_left_out_and_others_are_not(name, as_before):
    message = f"{_MESSAGES[name]} and so on"
    assert passes(name, logging.WARNING, message)
    quieten()
    quieten()
    assert not passes(name, logging.WARNING, message)
    assert passes(name, logging.WARNING, f"Beware: {message}")
    assert passes(name, logging.ERROR, message)
    assert len(logging.getLogger(name).filters) == 1


@pytest.mark.parametrize("name", _MESSAGES)
def test_the_installed_libraries_have_these_messages(name):
    """A message that is no longer there leaves the list."""
    package, *inner = name.split(".")
    if (found := find_spec(package)) is None:
        pytest.skip(f"{package} is not installed")
    folder = Path(found.submodule_search_locations[0]).joinpath(*inner)
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    assert _MESSAGES[name] in file.read_text(encoding="utf-8")


def shown(recorded) -> list[str]:
    return [str(each.message) for each in recorded]


def test_what_users_set_wins(as_before, monkeypatch):
    known, other = "`is_gradient_checkpointing` is deprecated and will be removed", "something else is deprecated"
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        quieten()
        warnings.warn(known, FutureWarning, stacklevel=1)
        warnings.warn(other, FutureWarning, stacklevel=1)
    assert shown(recorded) == [other]

    monkeypatch.setattr(sys, "warnoptions", ["default"])
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        quieten()
        warnings.warn(known, FutureWarning, stacklevel=1)
    assert shown(recorded) == [known]


def test_transformers_verbosity_and_the_delay_of_bars_win(as_before, monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.setenv("TQDM_DELAY", "0")
    quieten()
    assert passes("transformers.trainer_utils", logging.WARNING, _MESSAGES["transformers.trainer_utils"])
    assert not passes("torchao", logging.WARNING, _MESSAGES["torchao"])
    script = "from mm1_command.quiet import quieten; quieten(); import tqdm; print(tqdm.tqdm(range(1)).delay)"
    assert float(run("-c", script).stdout) == 0
    monkeypatch.delenv("TQDM_DELAY")
    assert float(run("-c", script).stdout) > 0
