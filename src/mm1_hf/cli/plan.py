"""`mm1 plan`: what a stage of training needs."""

from typing import Any

from mm1_hf.planning.planner import plan
from mm1_hf.planning.recipe_plan import plan_recipe
from mm1_hf.training.recipes import Stage


def run(preset: str | None, recipe: str | None, stage: Stage | None, **options: Any) -> None:
    """
    Prints the plan of a preset's stage by the papers' recipe, or that of an open recipe. The other options are those of
    [`mm1_hf.planning.planner.plan`].

    Raises:
        ValueError: neither a preset nor a recipe is named, or both are, or a number is out of range.
    """
    if (preset is None) == (recipe is None):
        raise ValueError("Give either the name of a preset, such as mm1-3b, or --recipe with that of an open recipe.")
    if preset is not None:
        print(plan(preset, stage=stage or "pretrain", **options))
        return
    if stage is not None:
        raise ValueError(f"The recipe {recipe} names its stage already: leave out --stage.")
    assert recipe is not None
    print(plan_recipe(recipe, **options))
