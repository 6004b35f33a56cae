from pathlib import Path

import pytest

from mm1_hf import preset_names
from mm1_hf.accounting.presets_page import presets_page


@pytest.fixture(scope="module")
def page():
    return presets_page()


def test_the_documentation_is_up_to_date(page):
    written = Path(__file__).parents[2] / "docs" / "presets.md"
    assert written.read_text(encoding="utf-8") == page, "run `make docs`"


def test_the_documentation_marks_what_is_inferred(page):
    rows = [line for line in page.splitlines() if line.startswith("| `mm1")]
    counts = {row.split("`")[1]: row for row in reversed(rows)}
    assert set(counts) == set(preset_names())
    # Every count of every published size rests on an inferred shape.
    assert all(counts[name].count("ⁱ") == 6 for name in counts if "tiny" not in name)
    assert "| `mm1-3b` | backbone | 2.9Bᵘ | 2.94Bⁱ | +1.5% |" in rows
    assert " 47B" not in page
