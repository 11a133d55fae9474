"""What `make bench` prints, and what it makes before."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from bench import report
from tests.conftest import REPOSITORY

ROWS = [{"case": f"the case of number {n}", **{f"a figure called {i}": n + i / 10 for i in range(12)}} for n in (1, 2)]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What goes to a file, or to a terminal of as many columns."""
    told = io.StringIO()
    monkeypatch.setattr(report, "console", Console(file=told, width=80))
    return told


def test_a_table_that_is_too_wide_is_a_block_a_row_and_leaves_nothing_out(told: io.StringIO) -> None:
    report.Report("some", ROWS).show("What was measured")
    assert "…" not in told.getvalue()
    blocks = told.getvalue().split("\n\n")
    for row, block in zip(ROWS, blocks, strict=False):
        for name, value in row.items():
            shown = value if isinstance(value, str) else f"{value:.3g}"
            assert any(line.split() == f"{name} {shown}".split() for line in block.splitlines()), (name, block)


def test_a_table_that_fits_is_one(told: io.StringIO) -> None:
    report.Report("some", [{"case": "a", "clicks/s": 1234.0}]).show("What was measured")
    (row,) = [line for line in told.getvalue().splitlines() if "1,234" in line]
    assert row.split() == ["│", "a", "│", "1,234", "│"]


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        ("", {"peers"}),
        ("peers", {"peers"}),
        ("pipeline peers", {"peers"}),
        ("rank", set()),
        ("libraries", {"libraries"}),
        ("family_training", {"libraries"}),
    ],
)
def test_the_environment_of_others_is_made_for_those_who_need_it(names: str, needed: set[str]) -> None:
    made = ["-o", f"{sys.prefix}/.installed", f"VENV={sys.prefix}", "PEERS=not-there", "LIBS=not-there-either"]
    command = ["make", "--dry-run", *made, "bench", f"BENCH={names}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert {name for name in ("peers", "libraries") if f"requirements/{name}.txt" in done.stdout} == needed
