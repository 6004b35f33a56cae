"""Counts how all cases ended and shows it as a table below the tests' results, also where processes share the tests."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest
from fuzzing import Tally


_OUTCOMES: dict[str, Counter[str]] = defaultdict(Counter)


@pytest.fixture
def tally(request, record_property) -> Iterator[Tally]:
    """Counts the outcomes of a test whose module names its `KIND`."""
    counted = Tally(request.module.KIND)
    yield counted
    record_property("fuzz", [counted.kind, dict(counted.outcomes)])


def pytest_runtest_logreport(report):
    for name, value in report.user_properties if report.when == "teardown" else ():
        if name == "fuzz":
            _OUTCOMES[value[0]].update(value[1])


def pytest_terminal_summary(terminalreporter):
    if not _OUTCOMES:
        return
    terminalreporter.section("fuzzing")
    terminalreporter.write_line(f"{'kind':<14}{'cases':>8}  outcomes")
    for kind, counts in sorted(_OUTCOMES.items()):
        said = ", ".join(f"{outcome} {count:,}" for outcome, count in counts.most_common())
        terminalreporter.write_line(f"{kind:<14}{counts.total():>8,}  {said}")
    terminalreporter.write_line(f"{'all':<14}{sum(counts.total() for counts in _OUTCOMES.values()):>8,}")
