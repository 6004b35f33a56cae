import pytest

from mm1_hf.evaluation.metrics.averages import (
    GROUPS,
    category_average,
    meta_average,
    mm_base,
    mme_entry,
    ocrbench_entry,
)


def test_entries_are_at_most_100():
    assert mme_entry(2000, 800) == 100
    assert mme_entry(1482.5, 279.3) == pytest.approx((1482.5 + 279.3) / 28)
    assert ocrbench_entry(657) == pytest.approx(65.7)


def test_mm_base_weighs_groups_equally():
    scores = {
        name: {"general": 60.0, "text_rich": 70.0, "knowledge": 50.0}.get(group, 0.0)
        for group in GROUPS
        for name in GROUPS[group]
    }
    scores["mmmu"] = 54.0
    assert category_average(scores, "knowledge") == 51
    assert mm_base(scores) == pytest.approx((60 + 70 + 51) / 3)


def test_a_missing_benchmark_is_named():
    with pytest.raises(ValueError, match="missing are scienceqa, mathvista, mmmu"):
        category_average({"ai2d": 1.0}, "knowledge")
    with pytest.raises(ValueError, match="no group 'maths'"):
        category_average({}, "maths")


def test_meta_average():
    assert meta_average({"a": 30.0, "b": 80.0}, {"a": 20.0, "b": 80.0}) == 1.25
    with pytest.raises(ValueError, match="same benchmarks"):
        meta_average({"a": 30.0}, {"b": 20.0})
    with pytest.raises(ValueError, match="must be positive"):
        meta_average({"a": 30.0}, {"a": 0.0})
