"""Transformers' common suites on MM1. They need its test modules, which `make test` unpacks and puts on PYTHONPATH."""

import importlib.util
import sys
import warnings

import pytest


# pytest's importlib mode has registered this repository's own folder as an empty package `tests`; transformers' has that
# name too, and its modules import each other by it.
if getattr(sys.modules.get("tests"), "__file__", None) is None:
    sys.modules.pop("tests", None)
    importlib.invalidate_caches()

try:
    _found = importlib.util.find_spec("tests.test_modeling_common") is not None
except ModuleNotFoundError:
    _found = False
if not _found:
    collect_ignore_glob = ["test_*.py"]
    warnings.warn(
        "tests/common is left out: transformers' own test modules are not on PYTHONPATH. `make test` fetches and runs them.",
        stacklevel=1,
    )

_MARKERS = (
    "accelerate_tests",
    "bitsandbytes",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_test",
    "generate",
    "is_agent_test",
    "is_expert_parallel_test",
    "is_fsdp_test",
    "is_pipeline_test",
    "is_staging_test",
    "is_tensor_parallel_test",
    "is_training_test",
    "order",
    "run_in_parallel",
    "torch_compile_test",
)


def pytest_configure(config):
    for marker in _MARKERS:
        config.addinivalue_line("markers", f"{marker}: used by transformers' suites")


def pytest_collection_modifyitems(items):
    """What a class leaves out of its `core` is for `make test-all`."""
    for item in items:
        core = getattr(getattr(item, "cls", None), "core", ("",))
        if not item.name.startswith(core):
            item.add_marker(pytest.mark.slow)
