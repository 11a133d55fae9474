"""What makes the exit code of the demo."""

import re
from typing import Any

import pytest

from deploy.demo.verdict import Verdict


def verdict(
    *,
    lost: int = 0,
    predictions: tuple[int, ...] = (9000, 2000),
    rankings: int = 0,
    rows: int = 0,
    sold_out: tuple[int, int] | None = (700, 0),
    trials: tuple[str, ...] | None = None,
) -> Verdict:
    models: list[dict[str, Any]] = [
        {"version": f"v{n}", "online": {"predictions": p}} for n, p in enumerate(predictions)
    ]
    told = sold_out and dict(zip(("rankings_meanwhile", "shown_meanwhile"), sold_out, strict=True))
    result = {"lost": lost, "swaps": len(models) - 1, "models": models, "sold_out": told}
    result |= {name: {"version": "v1"} if name in (trials or ()) else None for name in ("canary", "rolled_back")}
    wrong_rows = ["s: no row"] * rows
    return Verdict(result, wrong_rankings=rankings, wrong_rows=wrong_rows, needed=2000, with_trials=trials is not None)


@pytest.mark.parametrize("predictions", [(9000, 2000), (9000, 2500, 10)])
def test_nothing_lost_or_wrong_and_a_new_model_that_was_seen_at_work_is_good(predictions: tuple[int, ...]) -> None:
    assert verdict(predictions=predictions).faults == []
    assert verdict(predictions=predictions, trials=("canary", "rolled_back")).faults == []


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (verdict(lost=1), "1 clicks have no ranking"),
        (verdict(predictions=(9000,)), "no new model"),
        (verdict(predictions=(9000, 0)), "made 0 predictions, too few.* 2,000 are needed"),
        (verdict(predictions=(9000, 1999)), "made 1,999 predictions, too few"),
        (verdict(rankings=1), "1 rankings are wrong"),
        (verdict(sold_out=(700, 1)), "a sold-out item was shown"),
        (verdict(sold_out=(0, 0)), "no ranking was made while"),
        (verdict(sold_out=None), "no ranking was made while"),
        (verdict(rows=1), "1 rows are wrong"),
        (verdict(trials=("rolled_back",)), "the guard promoted no canary"),
        (verdict(trials=("canary",)), "the guard rolled no bad model back"),
    ],
)
def test_one_fault_is_enough(bad: Verdict, told: str) -> None:
    (fault,) = bad.faults
    assert re.search(told, fault)
