"""The gate: may a challenger take the champion's place? Pure: numbers in, a verdict with its reasons out."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.evaluate import Metrics


@dataclass(frozen=True)
class GateRules:
    """What a challenger must reach. Recall and MRR are between 0 and 1, and so is `margin`."""

    k: int = 20
    margin: float = 0.005
    """How far below the champion's its Recall@k and MRR@k may lie; below 0: how much better they must be."""
    beats: tuple[str, ...] = ("pop",)
    """Baselines whose Recall@k it must exceed."""
    predictions: int = 500
    """The least number of predictions that a judgement rests on."""


@dataclass(frozen=True)
class Verdict:
    """`reasons` are for people: what was compared, and first of all what failed."""

    passed: bool
    reasons: tuple[str, ...]


def judge(challenger: Metrics, champion: Metrics | None, baselines: Mapping[str, Metrics], rules: GateRules) -> Verdict:
    """Compare models that were evaluated on the same predictions. Raises ValueError when they were not."""
    sides = {"the champion": champion, **baselines}
    for name, side in sides.items():
        if side is not None and side.predictions != challenger.predictions:
            raise ValueError(f"{name} made {side.predictions} predictions, the challenger {challenger.predictions}")
    if challenger.predictions < rules.predictions:
        reason = f"only {challenger.predictions} predictions are held out, a judgement needs {rules.predictions}"
        return Verdict(passed=False, reasons=(reason,))
    failed: list[str] = []
    held: list[str] = []
    if champion is None:
        held.append("there is no champion to compare with")
    else:
        for name, own, theirs in (
            (f"Recall@{rules.k}", challenger.recall[rules.k], champion.recall[rules.k]),
            (f"MRR@{rules.k}", challenger.mrr[rules.k], champion.mrr[rules.k]),
        ):
            good = own >= theirs - rules.margin
            text = f"{name} {own:.4f} against the champion's {theirs:.4f}, margin {rules.margin:g}"
            (held if good else failed).append(text)
    for name in rules.beats:
        own, theirs = challenger.recall[rules.k], baselines[name].recall[rules.k]
        text = f"Recall@{rules.k} {own:.4f} against {theirs:.4f} of {name}"
        (held if own > theirs else failed).append(text)
    return Verdict(passed=not failed, reasons=(*failed, *held))
