"""The gate as a table: judgements in, verdict out; and a day of cycles. The history: announcements in, a line out."""

from typing import Any

import numpy as np
import pytest

from trainer.evaluation.protocol import Metrics
from trainer.evaluation.significance import Difference, Interval, Judgement
from trainer.service.gate import Evaluated, GateRules, best_rivals, gate_record, judge
from trainer.service.history import Entry, line_of, settle

RULES = GateRules(k=20, margin=0.005, beats=("pop",), predictions=100)
Values = tuple[float, float]
"""Recall@20 and MRR@20."""
POP = (0.1, 0.02)


def evaluated(
    challenger: Values,
    champion: Values | None = None,
    *before: Values,
    pop: Values = POP,
    predictions: int = 1000,
    error: float = 0.0,
) -> Evaluated:
    """Models of these values, compared with the standard error named, of MRR half of it."""

    def judged(name: str, values: Values) -> Judgement:
        metrics = Metrics(recall={20: values[0]}, mrr={20: values[1]}, ndcg={}, predictions=predictions)
        against = {}
        for measure, of, own, e in zip(("recall@20", "mrr@20"), values, challenger, (error, error / 2), strict=True):
            against[measure] = Difference(of - own, Interval(of - own - 2 * e, of - own + 2 * e), e, 1.0, 1.0)
        return Judgement(name, metrics, {}, against)

    return Evaluated(
        judged("challenger", challenger),
        judged("v0", champion) if champion else None,
        tuple(judged(f"v-{i}", values) for i, values in enumerate(before, start=1)),
        (judged("pop", pop),),
        sessions=predictions // 3,
    )


@pytest.mark.parametrize(
    ("sides", "passed", "first_reason"),
    [
        (evaluated((0.5, 0.2), (0.4, 0.1)), True, "Recall@20 0.5000 against the champion's 0.4000 (v0): +0.1000"),
        (evaluated((0.5, 0.2), (0.5, 0.2)), True, "Recall@20 0.5000"),  # as good is good enough
        (evaluated((0.496, 0.196), (0.5, 0.2)), True, "Recall@20 0.4960"),  # worse within the margin
        (evaluated((0.494, 0.2), (0.5, 0.2)), False, "Recall@20 0.4940 against the champion's 0.5000"),
        (evaluated((0.6, 0.19), (0.5, 0.2)), False, "MRR@20 0.1900 against the champion's 0.2000"),
        (evaluated((0.496, 0.2), (0.496, 0.2), (0.5, 0.2)), True, "Recall@20 0.4960"),
        (evaluated((0.493, 0.2), (0.496, 0.2), (0.5, 0.2)), False, "Recall@20 0.4930 against 0.5000 of v-1"),
        (evaluated((0.5, 0.193), (0.5, 0.196), (0.4, 0.1), (0.5, 0.2)), False, "MRR@20 0.1930 against 0.2000 of v-2"),
        # What nobody can be sure of does not use the whole margin.
        (evaluated((0.496, 0.2), (0.5, 0.2), error=0.0009), True, "Recall@20 0.4960"),
        (evaluated((0.496, 0.2), (0.5, 0.2), error=0.002), False, "Recall@20 0.4960 against the champion's 0.5000"),
        (evaluated((0.498, 0.2), (0.5, 0.2), error=0.02), True, "Recall@20 0.4980"),
        (evaluated((0.5, 0.2)), True, "there is no champion"),
        (evaluated((0.09, 0.2)), False, "Recall@20 0.0900 against 0.1000 of pop"),
        (evaluated((0.1, 0.2)), False, "Recall@20 0.1000 against 0.1000 of pop"),  # as good as counting is too bad
        (evaluated((0.09, 0.2), (0.05, 0.1)), False, "Recall@20 0.0900 against 0.1000 of pop"),
    ],
)
def test_the_gate(sides: Evaluated, passed: bool, first_reason: str) -> None:
    verdict = judge(sides, RULES)
    assert verdict.passed is passed
    assert verdict.reasons[0].startswith(first_reason)
    assert "1000 predictions in 333 sessions" in verdict.reasons[-1]


def test_a_negative_margin_asks_for_an_improvement() -> None:
    rules = GateRules(k=20, margin=-0.01, beats=(), predictions=1)
    assert not judge(evaluated((0.505, 0.3), (0.5, 0.2)), rules).passed
    assert judge(evaluated((0.511, 0.3), (0.5, 0.2)), rules).passed


def test_no_baseline_needs_to_be_beaten_when_none_is_named() -> None:
    assert judge(evaluated((0.01, 0.01)), GateRules(beats=())).passed


def test_few_predictions_replace_no_champion() -> None:
    verdict = judge(evaluated((0.9, 0.9), (0.1, 0.1), predictions=99), RULES)
    assert not verdict.passed
    assert "only 99 predictions" in verdict.reasons[0]


@pytest.mark.parametrize(("recall", "passed"), [(0.2, True), (0.1, True), (0.07, True), (0.05, False)])
def test_a_first_model_of_few_predictions_must_not_be_plainly_worse_than_counting(recall: float, passed: bool) -> None:
    verdict = judge(evaluated((recall, 0.2), predictions=99, error=0.02), RULES)
    assert verdict.passed is passed
    assert "judged by 99 predictions in 33 sessions" in verdict.reasons[-1]


def test_sides_of_different_predictions_are_not_compared() -> None:
    sides, other = evaluated((0.5, 0.2)), evaluated((0.5, 0.2), (0.4, 0.1), predictions=999)
    with pytest.raises(ValueError, match="v0 made 999 predictions, the challenger 1000"):
        judge(Evaluated(sides.challenger, other.champion, baselines=sides.baselines), RULES)


def test_the_record_tells_how_sure_the_verdict_is() -> None:
    sides = evaluated((0.51, 0.2), (0.5, 0.2), (0.4, 0.1), error=0.002)
    record = gate_record(sides, judge(sides, RULES), 20)
    assert (record["passed"], record["predictions"], record["sessions"]) == (True, 1000, 333)
    assert list(record["ahead"]) == ["v0", "v-1", "pop"]
    ahead = record["ahead"]["v0"]["recall@20"]
    assert (ahead["value"], ahead["standard_error"]) == (pytest.approx(0.01), 0.002)
    assert ahead["interval"] == pytest.approx([0.006, 0.014])


def manifest_metrics(sides: Evaluated, passed: bool = True) -> dict[str, Any]:
    assert sides.champion is not None
    champion = {"version": sides.champion.name, "recall@20": sides.champion.metrics.recall[20]}
    before = {one.name: {"recall@20": one.metrics.recall[20]} for one in sides.predecessors}
    return {"gate": {"passed": passed}, "champion": champion, "predecessors": before}


def test_the_best_of_those_that_a_champion_was_judged_against_are_rivals_of_the_next() -> None:
    sides = evaluated((0.6, 0.2), (0.5, 0.2), (0.4, 0.1), (0.7, 0.2))
    assert best_rivals(manifest_metrics(sides), 20) == ["v-2", "v0", "v-1"]
    assert best_rivals({"gate": {"passed": True}, "champion": None}, 20) == []
    assert best_rivals({"champion": None}, 20) == []  # made by `trainer fit`
    assert best_rivals(manifest_metrics(sides, passed=False), 20) == []  # announced by hand, whatever was before


def test_rivals_that_were_judged_at_another_k_come_best_first_too() -> None:
    """The champion's lists were shorter, or trainer.gate_k was another: what counts is cut after the best few."""
    found = {"v-1": 0.4, "v-2": 0.3}
    metrics = {
        "gate": {"passed": True, "k": 11},
        "champion": {"version": "v0", "recall@11": 0.5},
        "predecessors": {version: {"recall@11": recall} for version, recall in found.items()},
    }
    assert best_rivals(metrics, 20) == ["v0", "v-1", "v-2"]


def a_day(predictions: int, worse: float, seed: int) -> tuple[int, float]:
    """24 cycles whose challengers are `worse` than the champion of the hour: how many passed, and what is served then.

    Models agree on nine predictions of ten, as those of the docs' logs do; the champion of the beginning has 0.
    """
    rng = np.random.default_rng(seed)
    error = float(np.sqrt(0.1 / predictions))
    rules, passed = GateRules(beats=()), 0
    champion, before = 0.0, list[float]()
    for _ in range(24):
        true = [champion - worse, champion, *before]
        noise = rng.standard_normal((len(true), 2)) * error / np.sqrt(2)
        seen = [(0.5 + quality + r, 0.2 + quality / 2 + m / 2) for quality, (r, m) in zip(true, noise, strict=True)]
        sides = evaluated(*seen, predictions=predictions, error=error)
        if judge(sides, rules).passed:
            passed += 1
            of = {"v0": champion, **{f"v-{i}": quality for i, quality in enumerate(before, start=1)}}
            before = [of[name] for name in best_rivals(manifest_metrics(sides), 20)[:2]]
            champion = true[0]
    return passed, champion


@pytest.mark.parametrize(
    ("predictions", "equal_pass", "served"),
    [(60_000, 0.9, -0.005), (10_000, 0.5, -0.009), (2_000, 0.2, -0.013)],  # the table of docs/retraining.md
)
def test_quality_does_not_sink_hour_by_hour(predictions: int, equal_pass: float, served: float) -> None:
    equal = [a_day(predictions, 0.0, seed)[0] / 24 for seed in range(40)]
    sinking = [a_day(predictions, 0.004, seed)[1] for seed in range(40)]
    assert np.mean(equal) > equal_pass
    assert np.quantile(sinking, 0.05) > served


def entries(*told: str) -> list[Entry]:
    """`+A` promotes A, `<A` rolls back to A; one a millisecond."""
    return [Entry(at, "promoted" if one[0] == "+" else "rolled-back", one[1:]) for at, one in enumerate(told, start=1)]


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ([], []),
        (["+A"], ["A"]),
        (["+A", "+A"], ["A"]),
        (["+A", "+B", "+C"], ["A", "B", "C"]),
        (["+A", "+B", "+C", "<B"], ["A", "B"]),  # C was bad: nobody returns to it
        (["+A", "+B", "+C", "<B", "<A"], ["A"]),
        (["+A", "+B", "<A", "+C"], ["A", "C"]),
        (["+A", "+B", "+C", "+A"], ["A", "B", "C", "A"]),  # an old one promoted: a rollback returns to C
        (["+A", "+B", "+C", "+A", "<C"], ["A", "B", "C"]),
        (["<X"], ["X"]),  # the promotion before it was forgotten
    ],
)
def test_the_line_of_champions(told: list[str], line: list[str]) -> None:
    assert line_of(entries(*told)) == line


def test_an_entry_is_its_name() -> None:
    for entry in entries("+20251122T093000123Z-1a2b3c4d", "<v-1.0-promoted-x"):
        assert Entry.of_name(entry.name) == entry
    assert Entry.of_name("README.md") is None


def test_names_sort_by_time() -> None:
    early, late = Entry(9, "rolled-back", "z"), Entry(10, "promoted", "a")
    assert sorted([late.name, early.name]) == [early.name, late.name]


def test_what_the_topic_never_announced_drops_out() -> None:
    told = entries("+A", "+B", "+C")
    assert settle(told, (2, "B")) == told[:2]


def test_an_announcement_made_by_hand_counts() -> None:
    told = entries("+A", "+B")
    assert line_of(settle(told, (7, "X"))) == ["A", "B", "X"]


def test_a_new_topic_leaves_the_history_as_it_is() -> None:
    told = entries("+A", "+B")
    assert settle(reversed(told), None) == told
