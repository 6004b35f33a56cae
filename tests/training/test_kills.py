"""A run killed at any moment, twice in a row, ends with the very weights of a run that nobody disturbed."""

import pytest
from killed_runs import campaign


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_same_weights(kills, tmp_path):
    results = list(campaign(tmp_path, kills))
    assert sum(result["kills"] for result in results) >= kills
    assert all(result["equal"] for result in results), results
