"""`mm1 plan`: what a stage of training needs."""

from typing import Any

from mm1_hf.planning.planner import plan


def run(**options: Any) -> None:
    """Prints a plan; the options are those of [`mm1_hf.planning.planner.plan`]."""
    print(plan(**options))
