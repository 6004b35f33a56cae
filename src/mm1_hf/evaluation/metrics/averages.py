"""
The papers' averages over benchmarks (MM1, section 4; MM1.5, section 3).

The groups and their averages are stated in MM1.5. That MME enters as (perception + cognition) / 28 and OCRBench as its
score divided by 10 is inferred; so is MM1's meta-average.
"""

from collections.abc import Mapping


GROUPS = {
    "general": ("mme", "seed_image", "pope", "llava_wild", "mm_vet", "realworldqa"),
    "text_rich": ("wtq", "tabfact", "ocrbench", "chartqa", "textvqa", "docvqa", "infovqa"),
    "knowledge": ("ai2d", "scienceqa", "mathvista", "mmmu"),
    "refer_ground": ("refcoco_average", "flickr30k", "lvis_ref", "ferret_bench"),
    "multi_image": ("qbench2", "mantis", "nlvr2", "blink", "mvbench", "muirbench"),
    "in_context": ("vl_icl",),
}
_BASE_GROUPS = ("general", "text_rich", "knowledge")
_MAX_MME = 2800
_MAX_OCRBENCH = 1000


def mme_entry(perception: float, cognition: float) -> float:
    """
    Returns MME's score as it enters an average: the sum of its parts divided by 28, at most 100.

    Args:
        perception: points of perception, at most 2000.
        cognition: points of cognition, at most 800.
    """
    return 100 * (perception + cognition) / _MAX_MME


def ocrbench_entry(score: float) -> float:
    """
    Returns OCRBench's score as it enters an average, at most 100.

    Args:
        score: the number of right answers of 1000.
    """
    return 100 * score / _MAX_OCRBENCH


def category_average(scores: Mapping[str, float], group: str) -> float:
    """
    Returns the Category Average Score of MM1.5: the unweighted mean over the benchmarks of a group.

    Args:
        scores: scores by benchmark, in per cent.
        group: one of `GROUPS`.

    Raises:
        ValueError: there is no such group, or a benchmark of it has no score. A mean over some of them could not be
            compared.

    Example:

    ```python
    >>> from mm1_hf.evaluation.metrics.averages import category_average

    >>> category_average({"ai2d": 60.0, "scienceqa": 80.0, "mathvista": 40.0, "mmmu": 36.0}, "knowledge")
    54.0

    ```
    """
    if group not in GROUPS:
        raise ValueError(f"There is no group {group!r}; expected one of {', '.join(GROUPS)}.")
    if missing := [name for name in GROUPS[group] if name not in scores]:
        raise ValueError(
            f"The average of the group {group} needs a score of each benchmark in it; missing are {', '.join(missing)}."
        )
    return sum(scores[name] for name in GROUPS[group]) / len(GROUPS[group])


def mm_base(scores: Mapping[str, float]) -> float:
    """
    Returns MMBase of MM1.5: the mean of the averages of the groups general, text-rich and knowledge.

    Args:
        scores: scores by benchmark, in per cent.
    """
    return sum(category_average(scores, group) for group in _BASE_GROUPS) / len(_BASE_GROUPS)


def meta_average(scores: Mapping[str, float], baselines: Mapping[str, float]) -> float:
    """
    Returns MM1's meta-average: the mean of the scores after each is divided by the score of a baseline. The paper
    describes it in words alone and does not publish its baselines, so treat this formula as unverified.

    Args:
        scores: scores by benchmark.
        baselines: the baseline's scores of the same benchmarks, in the same units.

    Raises:
        ValueError: the benchmarks differ, there are none, or a baseline is not positive.
    """
    if not scores or set(scores) != set(baselines):
        raise ValueError(
            f"There are scores of {sorted(scores)} and baselines of {sorted(baselines)}; pass the same benchmarks, at "
            "least one."
        )
    if wrong := {name: value for name, value in baselines.items() if value <= 0}:
        raise ValueError(f"The baselines are {wrong}; a baseline must be positive, because scores are divided by it.")
    return sum(score / baselines[name] for name, score in scores.items()) / len(scores)
