"""The gate: may a challenger take the champion's place? Pure: judgements in, a verdict with its reasons out.

A challenger is compared with the champion and with the best of those before it, all of them on the same predictions:
compared with the champion alone it could be a little worse each time, and quality would sink without an end.
"""

from dataclasses import dataclass
from typing import Any, Final

from trainer.evaluation.significance import Difference, Interval, Judgement
from trainer.models.registry import SIMPLEST

CAUTION: Final = 0.5
"""The part of the margin that doubt may take. With all of it a challenger as good as the champion fails more often than
not wherever few predictions are held out; with none a lucky draw lets one pass that is worse than the margin."""


@dataclass(frozen=True)
class GateRules:
    """What a challenger must reach. Recall and MRR are between 0 and 1, and so is `margin`."""

    k: int = 20
    margin: float = 0.005
    """How far below the best rival's its Recall@k and MRR@k may lie; below 0: how much better they must be."""
    beats: tuple[str, ...] = (SIMPLEST,)
    """Baselines whose Recall@k it must exceed."""
    predictions: int = 500
    """The least number of predictions that decide against a champion."""


@dataclass(frozen=True)
class Evaluated:
    """Models by the same predictions. Of the others `against_first` tells what they are ahead of the challenger by."""

    challenger: Judgement
    champion: Judgement | None = None
    predecessors: tuple[Judgement, ...] = ()
    """Champions of before, without the present one."""
    baselines: tuple[Judgement, ...] = ()
    sessions: int = 0
    """Held-out sessions that the predictions are of."""

    @property
    def rivals(self) -> tuple[Judgement, ...]:
        """The champion and its predecessors."""
        return (*((self.champion,) if self.champion else ()), *self.predecessors)


@dataclass(frozen=True)
class Verdict:
    """`reasons` are for people: what was compared, and first of all what failed."""

    passed: bool
    reasons: tuple[str, ...]


def judge(evaluated: Evaluated, rules: GateRules) -> Verdict:
    """Compare models that were evaluated on the same predictions. Raises ValueError when they were not."""
    challenger, predictions = evaluated.challenger, evaluated.challenger.metrics.predictions
    for other in (*evaluated.rivals, *evaluated.baselines):
        if other.metrics.predictions != predictions:
            raise ValueError(f"{other.name} made {other.metrics.predictions} predictions, the challenger {predictions}")
    few = predictions < rules.predictions
    if few and evaluated.rivals:
        reason = f"only {predictions} predictions are held out, a judgement needs {rules.predictions}"
        return Verdict(passed=False, reasons=(reason,))
    failed: list[str] = []
    held: list[str] = []
    if not evaluated.rivals:
        held.append("there is no champion to compare with")
    for rival in evaluated.rivals:
        called = (
            f"the champion's {{:.4f}} ({rival.name})" if rival is evaluated.champion else f"{{:.4f}} of {rival.name}"
        )
        for measure in ("recall", "mrr"):
            ahead = ahead_of(rival, measure, rules.k)
            allowed = rules.margin - min(ahead.error, CAUTION * max(0.0, rules.margin))
            text = (
                f"{_told(challenger, measure, rules.k)} against {called.format(_value(rival, measure, rules.k))}: "
                f"{_shown(ahead)}, {-allowed:+.4f} is enough"
            )
            (held if ahead.value >= -allowed else failed).append(text)
    baselines = {one.name: one for one in evaluated.baselines}
    for name in rules.beats:
        baseline = baselines[name]
        ahead, theirs = ahead_of(baseline, "recall", rules.k), _value(baseline, "recall", rules.k)
        text = f"{_told(challenger, 'recall', rules.k)} against {theirs:.4f} of {name}: {_shown(ahead)}"
        # With few predictions there is no champion: a first model must only not be plainly worse than counting.
        (held if ahead.value > 0 or (few and ahead.interval.high >= 0) else failed).append(text)
    held.append(f"judged by {predictions} predictions in {evaluated.sessions} sessions; after ± one standard error")
    return Verdict(passed=not failed, reasons=(*failed, *held))


def ahead_of(other: Judgement, measure: str, k: int) -> Difference:
    """The challenger's value minus another's."""
    found = other.against_first[f"{measure}@{k}"]
    turned = Interval(-found.interval.high, -found.interval.low)
    return Difference(-found.value, turned, found.error, found.p, found.p_adjusted)


def gate_record(evaluated: Evaluated, verdict: Verdict, k: int) -> dict[str, Any]:
    """The verdict and how sure it is, for a manifest: what the challenger is ahead of each other model by."""
    return {
        "passed": verdict.passed,
        "reasons": list(verdict.reasons),
        "k": k,
        "predictions": evaluated.challenger.metrics.predictions,
        "sessions": evaluated.sessions,
        "ahead": {
            other.name: {f"{measure}@{k}": _record(ahead_of(other, measure, k)) for measure in ("recall", "mrr")}
            for other in (*evaluated.rivals, *evaluated.baselines)
        },
    }


def best_rivals(metrics: dict[str, Any], k: int) -> list[str]:
    """Of a champion's manifest: the versions that it was judged against when it passed, best Recall@k first.

    They are the predecessors that its own challenger is compared with. Empty for a model that did not pass: whoever
    announced it all the same wants it to be judged by itself.
    """
    gate = metrics.get("gate", {})
    if not gate.get("passed"):
        return []
    champion = metrics.get("champion")
    found = {**metrics.get("predecessors", {}), **({champion["version"]: champion} if champion else {})}
    # Their k was another where a champion's lists were shorter, or the setting has changed since.
    k_then = gate.get("k", k)

    def recall(version: str) -> float:
        of = found[version]
        return float(of.get(f"recall@{k}", of.get(f"recall@{k_then}", 0.0)))

    return sorted(found, key=lambda version: -recall(version))


def _record(ahead: Difference) -> dict[str, Any]:
    interval = [ahead.interval.low, ahead.interval.high]
    return {"value": ahead.value, "standard_error": ahead.error, "interval": interval, "p": ahead.p}


def _value(of: Judgement, measure: str, k: int) -> float:
    return (of.metrics.recall if measure == "recall" else of.metrics.mrr)[k]


def _told(of: Judgement, measure: str, k: int) -> str:
    return f"{'Recall' if measure == 'recall' else 'MRR'}@{k} {_value(of, measure, k):.4f}"


def _shown(ahead: Difference) -> str:
    return f"{ahead.value:+.4f} ± {ahead.error:.4f}"
