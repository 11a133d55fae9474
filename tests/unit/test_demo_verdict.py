"""What makes the exit code of the demo."""

import pytest

from deploy.demo.verdict import Verdict

GOOD = {"lost": 0, "state_mismatches": 0, "swaps": 1}


def test_a_swap_and_nothing_lost_or_wrong_is_good() -> None:
    assert Verdict(GOOD, wrong_rankings=0, wrong_rows=[]).is_good


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(GOOD | {"lost": 1}, wrong_rankings=0, wrong_rows=[]),
        Verdict(GOOD | {"swaps": 0}, wrong_rankings=0, wrong_rows=[]),
        Verdict(GOOD, wrong_rankings=1, wrong_rows=[]),
        Verdict(GOOD | {"state_mismatches": 1}, wrong_rankings=0, wrong_rows=["s: no row"]),
    ],
    ids=["a click is lost", "no swap", "a wrong ranking", "a wrong row"],
)
def test_one_fault_is_enough(verdict: Verdict) -> None:
    assert not verdict.is_good
