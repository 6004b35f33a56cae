"""vLLM serves what this package saves. It has an environment of its own: `make test-vllm` makes it and runs these tests."""

from importlib.util import find_spec


if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
