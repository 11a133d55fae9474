"""What online scores call for: keep the champion, roll it back, promote or end a challenger, raise an alarm. Pure.

A champion is compared with what it replaced, whose last windows before are the reference: before and after, so that a
change of the traffic looks like one of the model. Three things hold against that: a tolerated loss, a variance that
grows with how much the reference's own windows differ, and an end of watching. A challenger that serves a variant is
compared with the champion in the same windows, which is free of it.

What a model ranked as a shadow is kept apart from what it served: visitors clicked what another showed them, so a
shadow's figures are too low. They count for a challenger alone, and only as long as it has served nobody.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Final, Literal

import msgspec

from schemas.messages.ranking import RankingReason
from schemas.messages.score import Score, Totals
from schemas.messages.split import is_shadow
from trainer.service.sequential import MEASURES, Evidence, Measure, evidence, log_mixture, sample

Action = Literal["keep", "roll-back", "end", "promote"]
"""`end`: of a challenger's share of the sessions."""

_UNKNOWN: Final = (RankingReason.UNKNOWN_ITEM.value, RankingReason.POPULARITY.value)
_FIRST: Final[tuple[Action, ...]] = ("roll-back", "end", "promote", "keep")
_FEWEST_WINDOWS: Final = 6
_FEWEST_PREDICTIONS: Final = 30
"""Fewer windows, or windows of fewer predictions, do not tell how much windows differ."""
_DRIFT_MS: Final = 3_600_000
_GRACE_MS: Final = 3 * 3_600_000
"""After its watch a champion can still be rolled back for so long: the registry, or Kafka, may have been away."""
_WINDOW_MS: Final = 3_600_000
"""More than a window of scores, of which the first one of a reference may have begun before it."""


@dataclass(frozen=True)
class GuardRules:
    """When the guard acts; see `GuardSettings`. Times in ms, the others parts of 1.

    Attributes:
        alpha: chance at most that a champion as good as its predecessor is ever rolled back.
        tolerance: relative loss that is no reason to roll back.
        effect: relative loss at which the test is most powerful.
        sessions: fewer say nothing, of either model.
        reference_ms: how far before its announcement a champion's predecessor is looked at.
        watch_ms: for how long after its announcement a champion is compared.
        max_unknown: share of clicks on unknown items that raises an alarm.
        min_online: part of the offline Recall below which the online one raises an alarm.
    """

    alpha: float = 0.01
    tolerance: float = 0.02
    effect: float = 0.05
    sessions: int = 500
    reference_ms: int = 7_200_000
    watch_ms: int = 86_400_000
    max_unknown: float = 0.3
    min_online: float = 0.5

    @property
    def keep_ms(self) -> int:
        """How far before the newest window scores are kept: a champion is compared with its whole reference or not."""
        return self.reference_ms + self.watch_ms + _GRACE_MS + _WINDOW_MS


@dataclass(frozen=True)
class Watched:
    """The announced model as the guard needs it.

    Attributes:
        predecessor: what it replaced; None for a first one, and for one that a rollback returned to.
        offline: its Recall in the trainer's evaluation, at the k of the scores; None where that is not known.
    """

    version: str
    announced_at: int
    predecessor: str | None = None
    offline: float | None = None


@dataclass(frozen=True)
class Challenger:
    """A model that is announced under another alias.

    Attributes:
        version: under which the scores count it.
        serving: what is promoted: that version as it was last refreshed; None for itself.
        share: the alias under which it serves a share of the sessions; None where it serves none.
    """

    version: str
    announced_at: int
    serving: str | None = None
    share: str | None = None


@dataclass(frozen=True)
class Decision:
    """What is to be done, and why.

    Attributes:
        version: the champion, what is promoted, or whose share ends.
        share: the alias whose share of the sessions ends.
        reasons, alarms: for people.
        evidence: for programs; None where nothing was compared.
        gain: of a promotion, what the champion misses to it, as a part; the mean of both measures.
    """

    action: Action
    version: str
    reasons: tuple[str, ...]
    evidence: dict[str, Any] | None = None
    alarms: dict[str, str] | None = None
    share: str | None = None
    gain: float = 0.0


def decide(
    scores: Sequence[Score], champion: Watched, challengers: Iterable[Challenger], rules: GuardRules
) -> Decision:
    """The decision that the scores call for now. What does harm ends before anything is promoted; of several that are
    better, the best is.
    """
    served = [score for score in scores if not is_shadow(score.variant)]
    shadows = [score for score in scores if is_shadow(score.variant)]
    own = [score for score in served if score.model_version == champion.version]
    own = [score for score in own if _end(score) > champion.announced_at]
    looked = [_against_predecessor(served, own, champion, rules)]
    for challenger in challengers:
        ranked = [score for score in served if score.model_version == challenger.version]
        beside = [score for score in shadows if score.model_version == challenger.version]
        if beside and not _since(ranked, champion, challenger):
            looked.append(_challenge(served, beside, champion, challenger, rules, how=" as a shadow"))
        else:
            looked.append(_challenge(served, ranked, champion, challenger, rules))
    chosen = min(looked, key=lambda one: (_FIRST.index(one.action), -one.gain))
    reasons = chosen.reasons if chosen.action != "keep" else tuple(text for one in looked for text in one.reasons)
    return replace(chosen, reasons=reasons, alarms=_alarms(own, champion, rules))


def as_trained(scores: Iterable[Score], trained: Callable[[str], str]) -> list[Score]:
    """Scores under the versions that were trained, where refreshed ones ranked."""
    return [msgspec.structs.replace(score, model_version=trained(score.model_version)) for score in scores]


def _against_predecessor(
    scores: Sequence[Score], own: Sequence[Score], champion: Watched, rules: GuardRules
) -> Decision:
    keep: Action = "keep"
    if champion.predecessor is None:
        return Decision(keep, champion.version, ("the champion replaced nothing that it could be compared with",))
    if max((score.window_start for score in scores), default=0) > champion.announced_at + rules.watch_ms + _GRACE_MS:
        # From here on its reference is forgotten window by window: what is left is another hour of the day.
        return Decision(keep, champion.version, ("the champion was compared for guard.watch, and stays",))
    since = champion.announced_at - rules.reference_ms
    before = [
        score
        for score in scores
        if score.model_version == champion.predecessor
        and _end(score) > since
        and score.window_start <= champion.announced_at
    ]
    watched = [score for score in own if score.window_start <= champion.announced_at + rules.watch_ms]
    new, old = _total(watched), _total(before)
    if few := _too_few(rules, {champion.version: new, champion.predecessor: old}):
        return Decision(keep, champion.version, (few,))
    k = own[0].k
    compared = _compared(new, old, rules, tolerance=rules.tolerance, before=before)
    worse = [one for one in compared if one.log_e >= _enough(rules)]
    return Decision(
        "roll-back" if worse else keep,
        champion.version,
        tuple(_told(one, champion.predecessor, k, rules) for one in worse or compared),
        _record((champion.version, new), (champion.predecessor, old), compared, rules),
    )


def _challenge(
    served: Sequence[Score],
    theirs: Sequence[Score],
    champion: Watched,
    challenger: Challenger,
    rules: GuardRules,
    *,
    how: str = "",
) -> Decision:
    """By the challenger's scores, all made the same way, and by what the champion served in the same windows."""
    theirs = _since(theirs, champion, challenger)
    ours = _since((score for score in served if score.model_version == champion.version), champion, challenger)
    # The share, or the shadow, may have begun long after the announcement.
    both = {score.window_start for score in theirs} & {score.window_start for score in ours}
    new, old = (_total(score for score in scores if score.window_start in both) for scores in (theirs, ours))
    if few := _too_few(rules, {f"{challenger.version}{how}": new, champion.version: old}):
        return Decision("keep", champion.version, (few,))
    compared = _compared(old, new, rules, tolerance=0.0)
    if challenger.share is not None and not how and (worse := _worse(new, old, rules)):
        told = tuple(f"{challenger.version}: {_told(one, champion.version, theirs[0].k, rules)}" for one in worse)
        record = _record((champion.version, old), (challenger.version, new), worse, rules)
        return Decision("end", challenger.version, told, record, share=challenger.share)
    better = any(one.log_e >= _enough(rules) for one in compared) and all(one.loss >= 0 for one in compared)
    return Decision(
        "promote" if better else "keep",
        (challenger.serving or challenger.version) if better else champion.version,
        tuple(_told(one, f"{challenger.version}{how}", theirs[0].k, rules) for one in compared),
        _record((champion.version, old), (challenger.version, new), compared, rules),
        gain=fmean(one.loss for one in compared) if better else 0.0,
    )


def _worse(new: Totals, old: Totals, rules: GuardRules) -> list[Evidence]:
    """By which measures a challenger that serves is worse than the champion, as a champion is than its predecessor."""
    compared = _compared(new, old, rules, tolerance=rules.tolerance)
    return [one for one in compared if one.log_e >= _enough(rules)]


def _compared(
    model: Totals, other: Totals, rules: GuardRules, *, tolerance: float, before: Sequence[Score] = ()
) -> list[Evidence]:
    """Whether `model` is worse than `other`, by each measure. `before`: windows that tell how much traffic changes."""
    return [
        evidence(
            sample(model, measure),
            sample(other, measure),
            measure,
            tolerance=tolerance,
            effect=rules.effect,
            alpha=rules.alpha / len(MEASURES),
            inflation=spread(before, measure),
        )
        for measure in MEASURES
    ]


def _since(scores: Iterable[Score], champion: Watched, challenger: Challenger) -> list[Score]:
    """Those of the windows that began when both had been announced."""
    since = max(champion.announced_at, challenger.announced_at)
    return [score for score in scores if score.window_start >= since]


def _alarms(own: Sequence[Score], champion: Watched, rules: GuardRules) -> dict[str, str]:
    """What is wrong with the last hour of the champion, whatever it is compared with."""
    newest = max((score.window_start for score in own), default=0)
    recent = [score for score in own if score.window_start > newest - _DRIFT_MS]
    total, alarms = _total(recent), {}
    unknown = sum(score.rankings.get(reason, 0) for score in recent for reason in _UNKNOWN)
    if total.sessions >= rules.sessions and unknown > rules.max_unknown * total.rankings:
        alarms["unknown-items"] = (
            f"{unknown / total.rankings:.1%} of {total.rankings:,} clicks are on items that the champion does not "
            f"know, {rules.max_unknown:.0%} are allowed (guard.max_unknown): train a new model"
        )
    if champion.offline and total.sessions >= rules.sessions:
        online, least = sample(total, "recall"), rules.min_online * champion.offline
        variance = online.variance(max(online.value, least))
        precision = 1 / (rules.effect * champion.offline) ** 2
        if variance and log_mixture((least - online.value) / variance, 1 / variance, precision) >= -math.log(
            rules.alpha
        ):
            alarms["online-recall"] = (
                f"Recall@{own[0].k} is {online.value:.4f} online and was {champion.offline:.4f} offline; less than "
                f"{rules.min_online:.0%} of it (guard.min_online): does the shop show and send what it trained on?"
            )
    return alarms


def spread(scores: Iterable[Score], measure: Measure) -> float:
    """How much more a model's windows differ than their sessions explain, as a factor of the variance; 1 at least."""
    windows: dict[int, list[Score]] = defaultdict(list)
    for score in scores:
        windows[score.window_start].append(score)
    samples = [sample(_total(window), measure) for window in windows.values()]
    value = sum(one.x for one in samples) / max(1, sum(one.n for one in samples))
    usable = [one for one in samples if one.n >= _FEWEST_PREDICTIONS and one.variance(value) > 0]
    if len(usable) < _FEWEST_WINDOWS:
        return 1.0
    chi_square = sum((one.value - value) ** 2 / one.variance(value) for one in usable)
    return max(1.0, chi_square / (len(usable) - 1))


def _total(scores: Iterable[Score]) -> Totals:
    total = Totals()
    for score in scores:
        total.count(score)
    return total


def _end(score: Score) -> int:
    return score.window_start + score.window_ms


def _enough(rules: GuardRules) -> float:
    """log E that decides: two measures are looked at, so each gets half of alpha."""
    return math.log(len(MEASURES) / rules.alpha)


def _too_few(rules: GuardRules, totals: dict[str, Totals]) -> str | None:
    """Why nothing is said yet. A model of whom the scores hold no hit has no variance, and says nothing either."""
    for version, total in totals.items():
        if total.sessions < rules.sessions:
            return (
                f"{total.sessions:,} scored sessions of {version}, {rules.sessions:,} are needed (guard.min_sessions)"
            )
    return None


def _told(one: Evidence, against: str, k: int, rules: GuardRules) -> str:
    name = "Recall" if one.measure == "recall" else "MRR"
    low, high = one.interval
    return (
        f"{name}@{k} {one.value:.4f} against {one.against:.4f} of {against}: {-one.loss:+.1%} "
        f"({-high:+.1%} to {-low:+.1%}), evidence 10^{one.log_e / math.log(10):.1f}, "
        f"10^{_enough(rules) / math.log(10):.1f} decides"
    )


def _record(
    champion: tuple[str, Totals], other: tuple[str, Totals], compared: Sequence[Evidence], rules: GuardRules
) -> dict[str, Any]:
    """For the announcement: what was compared, on how much, by which rules."""

    def counted(version: str, total: Totals) -> dict[str, Any]:
        return {
            "version": version, "sessions": total.sessions, "predictions": total.predictions,
            "recall": total.recall, "mrr": total.mrr, "from": total.first_ms, "to": total.last_ms,
        }  # fmt: skip

    return {
        "champion": counted(*champion),
        "compared_with": counted(*other),
        "measures": [
            {"measure": one.measure, "loss": one.loss, "interval": list(one.interval), "log_e": one.log_e}
            for one in compared
        ],
        "rules": asdict(rules),
    }
