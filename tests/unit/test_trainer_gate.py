"""The gate as a table: metrics in, verdict out. And the history: announcements in, the line of champions out."""

import pytest

from trainer.evaluate import Metrics
from trainer.gate import GateRules, judge
from trainer.history import Entry, line_of, settle

RULES = GateRules(k=20, margin=0.005, beats=("pop",), predictions=100)


def metrics(recall: float, mrr: float, predictions: int = 1000) -> Metrics:
    return Metrics(recall={20: recall}, mrr={20: mrr}, predictions=predictions)


POP = metrics(0.1, 0.02)


@pytest.mark.parametrize(
    ("challenger", "champion", "passed", "first_reason"),
    [
        (metrics(0.5, 0.2), metrics(0.4, 0.1), True, "Recall@20 0.5000 against the champion's 0.4000"),
        (metrics(0.5, 0.2), metrics(0.5, 0.2), True, "Recall@20 0.5000"),  # as good is good enough
        (metrics(0.496, 0.196), metrics(0.5, 0.2), True, "Recall@20 0.4960"),  # worse within the margin
        (metrics(0.494, 0.2), metrics(0.5, 0.2), False, "Recall@20 0.4940 against the champion's 0.5000"),
        (metrics(0.6, 0.19), metrics(0.5, 0.2), False, "MRR@20 0.1900 against the champion's 0.2000"),
        (metrics(0.5, 0.2), None, True, "there is no champion"),
        (metrics(0.09, 0.2), None, False, "Recall@20 0.0900 against 0.1000 of pop"),
        (metrics(0.1, 0.2), None, False, "Recall@20 0.1000 against 0.1000 of pop"),  # as good as counting is too bad
        (metrics(0.09, 0.2), metrics(0.05, 0.1), False, "Recall@20 0.0900 against 0.1000 of pop"),
    ],
)
def test_the_gate(challenger: Metrics, champion: Metrics | None, passed: bool, first_reason: str) -> None:
    verdict = judge(challenger, champion, {"pop": POP}, RULES)
    assert verdict.passed is passed
    assert verdict.reasons[0].startswith(first_reason)


def test_a_negative_margin_asks_for_an_improvement() -> None:
    rules = GateRules(k=20, margin=-0.01, beats=(), predictions=1)
    assert not judge(metrics(0.505, 0.3), metrics(0.5, 0.2), {}, rules).passed
    assert judge(metrics(0.511, 0.3), metrics(0.5, 0.2), {}, rules).passed


def test_no_baseline_needs_to_be_beaten_when_none_is_named() -> None:
    assert judge(metrics(0.01, 0.01), None, {"pop": POP}, GateRules(beats=())).passed


def test_few_predictions_are_no_judgement() -> None:
    few = metrics(0.9, 0.9, predictions=99)
    verdict = judge(few, None, {"pop": metrics(0.1, 0.1, predictions=99)}, RULES)
    assert not verdict.passed
    assert "only 99 predictions" in verdict.reasons[0]


def test_sides_of_different_predictions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="the champion made 999 predictions, the challenger 1000"):
        judge(metrics(0.5, 0.2), metrics(0.4, 0.1, predictions=999), {"pop": POP}, RULES)


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
