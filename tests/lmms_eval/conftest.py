"""
lmms-eval and lm-evaluation-harness measure what this package measures. They have an environment of their own:
`make test-lmms` makes it and runs these tests.
"""

from importlib.util import find_spec


if find_spec("lmms_eval") is None:
    collect_ignore = ["test_lmms_eval.py", "test_lm_evaluation_harness.py"]
