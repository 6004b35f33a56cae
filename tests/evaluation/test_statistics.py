import math
import statistics
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm1_hf.evaluation.statistics import paired_test, standard_error


SCORES = st.lists(st.floats(0, 1), min_size=2, max_size=30)


@given(SCORES)
def test_standard_error(values):
    assert standard_error(values) == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)


def test_one_score_has_no_spread():
    assert math.isnan(standard_error([0.5]))
    with pytest.raises(ValueError, match="no scores"):
        standard_error([])


@pytest.mark.parametrize(("gained", "lost"), [(6, 0), (5, 1), (3, 3), (1, 7), (0, 0)])
def test_mcnemar_is_the_exact_sign_test(gained, lost):
    """Against all equally likely ways in which the runs could share the questions that only one of them answers."""
    first = [0] * gained + [1] * lost + [1, 0]
    second = [1] * gained + [0] * lost + [1, 0]
    outcomes = [abs(sum(signs)) for signs in product((1, -1), repeat=gained + lost)]
    expected = sum(outcome >= abs(gained - lost) for outcome in outcomes) / len(outcomes)
    result = paired_test(first, second)
    assert result.method == "mcnemar"
    assert result.p_value == pytest.approx(expected)
    assert result.difference == pytest.approx((gained - lost) / len(first))


def test_the_bootstrap_agrees_with_the_normal_approximation():
    draw = np.random.default_rng(0)
    first = draw.uniform(0, 1, 400)
    second = np.clip(first + draw.normal(0.02, 0.2, 400), 0, 1)
    result = paired_test(first, second)
    error = standard_error(second - first)
    z = abs(result.difference) / error
    assert result.method == "bootstrap"
    assert result.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)
    assert result.low == pytest.approx(result.difference - 1.96 * error, abs=0.1 * error)
    assert result.high == pytest.approx(result.difference + 1.96 * error, abs=0.1 * error)


def test_equal_runs_do_not_differ():
    assert paired_test([0.3, 0.6, 1.0], [0.3, 0.6, 1.0]) == (0, 0, 0, 1, "bootstrap")


@given(SCORES)
def test_the_same_seed_gives_the_same_result(values):
    other = values[::-1]
    assert paired_test(values, other, seed=3) == paired_test(values, other, seed=3)


def test_runs_on_different_questions_are_refused():
    with pytest.raises(ValueError, match="2 and 1 questions"):
        paired_test([1, 0], [1])
    with pytest.raises(ValueError, match="no questions"):
        paired_test([], [])
