"""Transformers' common suites on MM1. They need its test modules, which `make test` unpacks and puts on PYTHONPATH."""

import importlib.util


# Where they are missing, collecting would fail with an import error that says less than this.
if importlib.util.find_spec("tests.test_modeling_common") is None:
    raise RuntimeError("transformers' own test modules are not on PYTHONPATH; run these tests with `make test`.")

_MARKERS = (
    "is_agent_test",
    "is_expert_parallel_test",
    "is_fsdp_test",
    "is_pipeline_test",
    "is_staging_test",
    "is_tensor_parallel_test",
    "is_training_test",
    "order",
    "slow",
    "torch_compile_test",
)


def pytest_configure(config):
    for marker in _MARKERS:
        config.addinivalue_line("markers", f"{marker}: used by transformers' suites")
