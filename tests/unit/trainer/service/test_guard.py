"""The guard's decisions: scores in, what to do out; and a championship that another has changed meanwhile."""

import math
import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from schemas.messages.announcement import ModelAnnouncement, decode_announcement, encode_announcement
from schemas.messages.score import Moments, Score, Tally
from schemas.messages.split import Split, Variant, shares_of
from tests.contract.tiny_model import TinyModel
from tests.unit.announcements import TopicInMemory
from trainer.errors import AnnounceError, RegistryError
from trainer.service import guarding
from trainer.service.champion import Championship, Standing
from trainer.service.guard import Challenger, GuardRules, Watched, as_trained, decide, spread
from trainer.service.guarding import GuardMetrics, _Guard, watched
from trainer.service.history import Entry
from trainer.service.registry import Registry
from trainer.service.scores import ScoresTopic
from trainer.service.settings import TrainerRoot
from trainer.service.split import SplitTopic

HOUR = 3_600_000
MINUTES = 300_000
ANNOUNCED = 1_767_225_600_000
RULES = GuardRules()
CHAMPION = Watched("new", ANNOUNCED, predecessor="old")


def scores(
    version: str,
    recall: float | Iterable[float],
    *,
    start: int,
    windows: int = 12,
    sessions: int = 200,
    variant: str | None = None,
    reasons: dict[str, int] | None = None,
    seed: int = 0,
    place: int = 1,
    k: int = 20,
) -> list[Score]:
    """Windows of 5 minutes with sessions of 4 predictions; hits at one place, `recall` by window."""
    rng = np.random.default_rng([seed, *version.encode()])
    levels = [recall] * windows if isinstance(recall, float) else list(recall)
    found = []
    for number, level in enumerate(levels):
        h = rng.binomial(4, level, sessions)
        hits = int(h.sum())
        tally = Tally(4 * sessions, hits, hits / place)
        moments = Moments(16 * sessions, 4 * hits, int(h @ h), 4 * hits / place, float(h @ h) / place**2)
        at = start + number * MINUTES
        made = reasons or {"model": 5 * sessions}
        found.append(
            Score(version, variant, None, at, MINUTES, 0, k, made, {"view": tally}, {"model": tally}, sessions, moments)
        )
    return found


def before(recall: float | Iterable[float] = 0.4, sessions: int = 200) -> list[Score]:
    return scores("old", recall, start=ANNOUNCED - HOUR, sessions=sessions)


def test_a_champion_that_is_much_worse_is_rolled_back_with_its_evidence() -> None:
    decision = decide([*before(), *scores("new", 0.2, start=ANNOUNCED)], CHAMPION, (), RULES)
    assert (decision.action, decision.version) == ("roll-back", "new")
    assert "Recall@20 0.1979 against 0.3917" in decision.reasons[0]
    assert "of old" in decision.reasons[0]
    assert decision.reasons[0].endswith("10^2.3 decides")  # 2 / alpha: two measures share it
    evidence = decision.evidence
    assert evidence is not None
    assert evidence["champion"]["sessions"] == evidence["compared_with"]["sessions"] == 2400
    assert evidence["rules"]["alpha"] == RULES.alpha
    assert max(one["log_e"] for one in evidence["measures"]) > math.log(2 / RULES.alpha)


@pytest.mark.parametrize("recall", [0.4, 0.395, 0.5])
def test_one_that_is_as_good_within_the_tolerance_or_better_stays(recall: float) -> None:
    decision = decide([*before(), *scores("new", recall, start=ANNOUNCED)], CHAMPION, (), RULES)
    assert decision.action == "keep"
    assert decision.evidence is not None


def test_one_measure_that_is_worse_is_enough_for_a_rollback() -> None:
    decision = decide([*before(), *scores("new", 0.4, start=ANNOUNCED, place=2)], CHAMPION, (), RULES)
    assert decision.action == "roll-back"
    assert [reason.split()[0] for reason in decision.reasons] == ["MRR@20"]


def test_few_sessions_say_nothing() -> None:
    few = scores("new", 0.0, start=ANNOUNCED, windows=1, sessions=499)
    assert decide([*before(), *few], CHAMPION, (), RULES).action == "keep"
    decision = decide([*before(sessions=30), *scores("new", 0.0, start=ANNOUNCED)], CHAMPION, (), RULES)
    assert decision.reasons == ("360 scored sessions of old, 500 are needed (guard.min_sessions)",)
    both = decide([*before(sessions=30), *few], CHAMPION, [Challenger("other", ANNOUNCED)], RULES).reasons
    assert [reason.split(",")[0] for reason in both] == ["499 scored sessions of new", "0 scored sessions of other"]


def test_only_the_reference_before_and_the_watch_after_count() -> None:
    long_ago = scores("old", 0.9, start=ANNOUNCED - 30 * HOUR)
    late = scores("new", 0.0, start=ANNOUNCED + 25 * HOUR)
    kept = [*long_ago, *before(), *scores("new", 0.4, start=ANNOUNCED), *late]
    assert decide(kept, CHAMPION, (), RULES).action == "keep"
    earlier_service = scores("new", 0.0, start=ANNOUNCED - 20 * HOUR)  # it was champion before, was it bad then
    assert decide([*earlier_service, *kept], CHAMPION, (), RULES).action == "keep"
    still_there = scores("old", 0.9, start=ANNOUNCED + HOUR)  # under another alias
    evidence = decide([*still_there, *kept], CHAMPION, (), RULES).evidence
    assert evidence is not None
    assert evidence["compared_with"]["sessions"] == 2400


def test_a_champion_is_never_compared_with_a_part_of_its_reference() -> None:
    """Scores are forgotten after a day and some hours: the best half hour of what was before was left."""
    evening = [0.3] * 18 + [0.5] * 6
    found = [
        *scores("old", evening, start=ANNOUNCED - 2 * HOUR),
        *scores("new", 0.35, start=ANNOUNCED, windows=30 * 12, sessions=50),
    ]
    for newest in range(ANNOUNCED, ANNOUNCED + 30 * HOUR, HOUR // 2):
        known = [one for one in found if newest - RULES.keep_ms <= one.window_start <= newest]
        assert decide(known, CHAMPION, (), RULES).action == "keep", (newest - ANNOUNCED) / HOUR


def test_a_champion_that_replaced_nothing_or_was_returned_to_is_not_compared() -> None:
    decision = decide([*before(), *scores("new", 0.1, start=ANNOUNCED)], Watched("new", ANNOUNCED), (), RULES)
    assert decision.action == "keep"
    assert "replaced nothing" in decision.reasons[0]
    now = ModelAnnouncement("champion", "b", "/m/b", "0" * 64, 4, "returned to")
    entries = [Entry(n, "promoted", version) for n, version in enumerate("abc", 1)]
    returned_to = Standing(now, (*entries, Entry(4, "rolled-back", "b")))
    assert returned_to.line == ["a", "b"]
    assert watched(returned_to, str, None) == Watched("b", 4)


def test_a_refreshed_champion_is_judged_as_the_model_that_was_trained() -> None:
    versions = {"new-1": "new", "new-2": "new", "old-7": "old"}
    now = ModelAnnouncement("champion", "new-2", "/m/new-2", "0" * 64, ANNOUNCED + HOUR, "refreshed")
    entries = (
        Entry(ANNOUNCED - HOUR, "promoted", "old"),
        Entry(ANNOUNCED - HOUR // 2, "refreshed", "old-7"),
        Entry(ANNOUNCED, "promoted", "new"),
        Entry(ANNOUNCED + HOUR, "refreshed", "new-2"),
    )
    champion = watched(Standing(now, entries), lambda version: versions.get(version, version), None)
    assert champion == CHAMPION
    served = [
        *scores("old", 0.4, start=ANNOUNCED - HOUR, windows=6),
        *scores("old-7", 0.4, start=ANNOUNCED - HOUR // 2, windows=6),
        *scores("new", 0.2, start=ANNOUNCED, windows=2),
        *scores("new-1", 0.2, start=ANNOUNCED + 2 * MINUTES, windows=2),
        *scores("new-2", 0.2, start=ANNOUNCED + HOUR, windows=2),
    ]
    decision = decide(as_trained(served, lambda version: versions.get(version, version)), CHAMPION, (), RULES)
    assert decision.action == "roll-back"
    assert decide(served, Watched("new-2", ANNOUNCED + HOUR), (), RULES).action == "keep"  # what it was before


def test_windows_that_differ_by_themselves_ask_for_more_evidence() -> None:
    swinging = [0.4 + 0.12 * math.sin(number) for number in range(12)]
    assert spread(before(0.4), "recall") < 2
    assert spread(before(swinging), "recall") > 10
    # Few windows, or few predictions, say nothing; and windows that are more alike than chance make nothing surer.
    assert spread(before(swinging[:5]), "recall") == spread(before(swinging, sessions=7), "recall") == 1
    [one] = scores("old", 0.4, start=0, windows=1)
    assert spread([replace(one, window_start=number) for number in range(12)], "recall") == 1
    after = scores("new", 0.36, start=ANNOUNCED)
    assert decide([*before(0.4), *after], CHAMPION, (), RULES).action == "roll-back"
    assert decide([*before(swinging), *after], CHAMPION, (), RULES).action == "keep"


def test_a_challenger_that_is_better_in_the_same_windows_is_promoted() -> None:
    both = [
        *scores("new", 0.4, start=ANNOUNCED),
        *scores("other", 0.5, start=ANNOUNCED, variant="b"),
        *scores("other", 0.1, start=ANNOUNCED - HOUR, variant="b"),  # before it was announced: nobody's to judge
    ]
    challenger = Challenger("other", ANNOUNCED)
    decision = decide(both, Watched("new", ANNOUNCED - HOUR), [challenger], RULES)
    assert (decision.action, decision.version) == ("promote", "other")
    assert decide(both[:24], Watched("other", ANNOUNCED), [Challenger("new", 0)], RULES).action == "keep"


@pytest.mark.parametrize("best", ["b", "c"])
def test_of_two_that_are_better_the_best_is_promoted(best: str) -> None:
    both = [
        *scores("new", 0.4, start=ANNOUNCED),
        *(
            score
            for variant in "bc"
            for score in scores(variant, 0.6 if variant == best else 0.5, start=ANNOUNCED, variant=variant)
        ),
    ]
    challengers = [Challenger(variant, ANNOUNCED, share=variant) for variant in "bc"]
    decision = decide(both, Watched("new", ANNOUNCED - HOUR), challengers, RULES)
    assert (decision.action, decision.version) == ("promote", best)


@pytest.mark.parametrize(
    ("recall", "place", "sessions", "action"),
    [
        (0.5, 2, 200, "keep"),  # better by Recall, and worse by MRR
        (0.41, 1, 200, "promote"),  # by MRR alone
        (0.407, 3, 20_000, "promote"),  # by less than a champion may lose
    ],
)
def test_one_measure_that_is_better_is_enough_for_a_promotion_if_the_other_is_no_worse(
    recall: float, place: int, sessions: int, action: str
) -> None:
    champion = scores("new", 0.4, start=ANNOUNCED, place=1 if action == "keep" else 3, sessions=sessions)
    theirs = scores("other", recall, start=ANNOUNCED, variant="b", place=place, sessions=sessions)
    # Hours before the champion was announced are no part of it.
    earlier = [
        *scores("new", 0.9, start=ANNOUNCED - HOUR, variant="b", sessions=sessions),
        *scores("other", 0.1, start=ANNOUNCED - HOUR, variant="b", sessions=sessions),
    ]
    challenger = Challenger("other", ANNOUNCED - 2 * HOUR)
    assert decide([*champion, *theirs, *earlier], Watched("new", ANNOUNCED), [challenger], RULES).action == action


def test_what_a_model_ranked_as_a_shadow_is_no_part_of_what_it_served() -> None:
    """Visitors saw what another showed them, so a shadow's figures are lower, whoever it is."""
    serving, challenger = Watched("new", ANNOUNCED - HOUR), [Challenger("other", ANNOUNCED)]
    champion = scores("new", 0.4, start=ANNOUNCED)
    served = scores("other", 0.5, start=ANNOUNCED, variant="b")
    beside = scores("other", 0.2, start=ANNOUNCED, variant="shadow:c", sessions=400)
    assert decide([*champion, *served, *beside], serving, challenger, RULES).action == "promote"
    assert decide([*champion, *beside], serving, challenger, RULES).action == "keep"
    # The champion, and what it replaced, are what visitors saw of them.
    ahead = scores("old", 0.1, start=ANNOUNCED - HOUR, variant="shadow:b", sessions=800)
    behind = scores("new", 0.1, start=ANNOUNCED, variant="shadow:b", sessions=800)
    decision = decide([*before(), *ahead, *champion, *behind], CHAMPION, (), RULES)
    assert decision.action == "keep"
    assert decision.evidence is not None
    assert decision.evidence["champion"]["sessions"] == decision.evidence["compared_with"]["sessions"] == 2400
    assert decide([*champion, *behind], Watched("new", ANNOUNCED, offline=0.5), (), RULES).alarms == {}


@pytest.mark.parametrize("sessions", [1, 200])
def test_what_a_model_served_counts_and_not_what_it_ranked_as_a_shadow(sessions: int) -> None:
    serving, challenger = Watched("new", ANNOUNCED - HOUR), [Challenger("other", ANNOUNCED)]
    champion = scores("new", 0.4, start=ANNOUNCED)
    better = scores("other", 0.5, start=ANNOUNCED, variant="shadow:c")
    served = scores("other", 0.3, start=ANNOUNCED, variant="b", sessions=sessions)
    assert decide([*champion, *better], serving, challenger, RULES).action == "promote"
    decision = decide([*champion, *served, *better], serving, challenger, RULES)
    assert decision.action == "keep"
    assert not any("shadow" in reason for reason in decision.reasons)
    before_it_was_announced = scores("other", 0.3, start=ANNOUNCED - HOUR, variant="b")
    assert decide([*champion, *before_it_was_announced, *better], serving, challenger, RULES).action == "promote"


def test_hours_in_which_the_champion_served_alone_say_nothing_of_a_challenger() -> None:
    """It is announced, and gets its share on another day: what the traffic was before that is no loss of its own."""
    champion, challenger = Watched("new", ANNOUNCED - HOUR), [Challenger("other", ANNOUNCED, share="b")]
    later = ANNOUNCED + 8 * HOUR
    both = [*scores("new", 0.4, start=later, seed=1), *scores("other", 0.4, start=later, variant="b")]
    for alone in (0.6, 0.2):
        decision = decide([*scores("new", alone, start=ANNOUNCED), *both], champion, challenger, RULES)
        assert decision.action == "keep"


@pytest.mark.parametrize(("recall", "action"), [(0.3, "end"), (0.395, "keep"), (0.5, "promote")])
def test_the_share_of_a_challenger_that_is_worse_ends(recall: float, action: str) -> None:
    both = [*scores("new", 0.4, start=ANNOUNCED), *scores("other", recall, start=ANNOUNCED, variant="b")]
    champion = Watched("new", ANNOUNCED - HOUR)
    decision = decide(both, champion, [Challenger("other", ANNOUNCED, share="b")], RULES)
    assert decision.action == action
    assert (decision.share, decision.version) == (("b", "other") if action == "end" else (None, decision.version))
    if action == "end":
        assert decision.reasons[0].startswith("other: Recall@20 0.2")
        assert "of new: -2" in decision.reasons[0]
        assert decision.evidence is not None
        assert decision.evidence["compared_with"]["version"] == "other"
        # Who serves nobody harms nobody, and a share ends before another is promoted.
        assert decide(both, champion, [Challenger("other", ANNOUNCED)], RULES).action == "keep"
        better = Challenger("better", ANNOUNCED, share="c")
        both += scores("better", 0.5, start=ANNOUNCED, variant="c")
        decision = decide(both, champion, [better, Challenger("other", ANNOUNCED, share="b")], RULES)
        assert (decision.action, decision.share) == ("end", "b")


def test_a_refreshed_challenger_is_judged_as_trained_and_promoted_as_it_serves() -> None:
    both = [*scores("new", 0.4, start=ANNOUNCED), *scores("other", 0.5, start=ANNOUNCED, variant="b")]
    challenger = Challenger("other", ANNOUNCED, serving="other-3")
    decision = decide(both, Watched("new", ANNOUNCED - HOUR), [challenger], RULES)
    assert (decision.action, decision.version) == ("promote", "other-3")


def test_a_rollback_comes_before_a_promotion() -> None:
    bad = [*before(), *scores("new", 0.1, start=ANNOUNCED), *scores("other", 0.5, start=ANNOUNCED, variant="b")]
    assert decide(bad, CHAMPION, [Challenger("other", ANNOUNCED)], RULES).action == "roll-back"


def test_alarms() -> None:
    lost = {"model": 600, "unknown-item": 300, "popularity": 100}
    own = scores("new", 0.1, start=ANNOUNCED, reasons=lost)
    alarms = decide(own, Watched("new", ANNOUNCED, offline=0.4), (), RULES).alarms or {}
    assert alarms["unknown-items"].startswith("40.0% of 12,000 clicks")
    assert alarms["online-recall"].startswith("Recall@20 is 0.0981 online and was 0.4000 offline")
    few = scores("new", 0.0, start=ANNOUNCED, reasons=lost, windows=1, sessions=499)
    allowed = scores("new", 0.3, start=ANNOUNCED, reasons={"model": 700, "unknown-item": 300})
    hour_ago = scores("new", 0.0, start=ANNOUNCED - HOUR, reasons={"unknown-item": 1000})
    for fine in (few, allowed, [*hour_ago, *allowed]):
        assert decide(fine, Watched("new", ANNOUNCED - HOUR, offline=0.4), (), RULES).alarms == {}


# -- announcing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(str(tmp_path / "registry"), cache_dir=tmp_path / "cache")
    for version in ("v1", "v2", "v3"):
        registry.publish(TinyModel().write(tmp_path / "staging", version))
    return registry


def test_evidence_is_announced_and_kept(registry: Registry) -> None:
    topic = TopicInMemory()
    championship = Championship(registry, topic)
    championship.promote(registry.get("v1"), "first")
    championship.promote(registry.get("v2"), "second")
    evidence = {"measures": [{"log_e": 9.5}]}
    made = championship.roll_back("the guard: worse", instead_of=topic.log[-1], evidence=evidence)
    assert (made.version, made.why) == ("v1", "rolled back from v2: the guard: worse")
    assert decode_announcement(encode_announcement(made)) == made
    entry = championship.standing().entries[-1]
    kept = registry.announced_as("champion", entry)
    assert kept is not None
    assert kept.evidence == evidence
    assert b'"evidence"' not in encode_announcement(topic.log[0])


def test_nothing_is_announced_when_another_was_faster(registry: Registry) -> None:
    topic = TopicInMemory()
    championship = Championship(registry, topic)
    for version in ("v1", "v2"):
        championship.promote(registry.get(version), "")
    judged = topic.log[-1]
    championship.promote(registry.get("v3"), "by the trainer, meanwhile")
    with pytest.raises(RegistryError, match="v2 is no longer the champion, v3 is"):
        championship.roll_back("worse", instead_of=judged)
    with pytest.raises(RegistryError, match="v3 is; nothing is announced"):
        championship.promote(registry.get("v1"), "better", instead_of=judged)
    assert [one.version for one in topic.log] == ["v1", "v2", "v3"]


def test_one_that_becomes_champion_while_a_predecessor_is_verified_stays(registry: Registry) -> None:
    topic = TopicInMemory()
    championship = Championship(registry, topic)
    for version in ("v1", "v2"):
        championship.promote(registry.get(version), "")
    judged, verify = topic.log[-1], registry.open

    def slowly(*args: object, **kwargs: object) -> object:
        registry.open = verify  # type: ignore[method-assign]
        championship.promote(registry.get("v3"), "by the trainer, meanwhile")
        return verify(*args, **kwargs)  # type: ignore[arg-type]

    registry.open = slowly  # type: ignore[method-assign, assignment]
    with capture_logs(), pytest.raises(RegistryError, match="no longer the champion"):
        championship.roll_back("worse", instead_of=judged)
    assert topic.log[-1].version == "v3"


def test_a_registry_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looks: list[int] = []

    def look(_: object) -> tuple[Standing | None, None]:
        looks.append(len(looks))
        if len(looks) == 1:
            raise RegistryError("the object store is away")
        return None, None

    monkeypatch.setattr(_Guard, "look", look)
    monkeypatch.setattr(guarding, "ScoresTopic", lambda *_, **__: nullcontext())
    root = TrainerRoot.model_validate(
        {"trainer": {"registry": str(tmp_path / "registry")}, "guard": {"every": 0.01, "metrics_port": None}}
    )
    guarding.guard(root, once=False, dry_run=True, stopping=lambda: len(looks) == 2)
    assert looks == [0, 1]
    looks.clear()
    with pytest.raises(RegistryError, match="away"):
        guarding.guard(root, once=True, dry_run=True, stopping=lambda: False)


class SplitInMemory:
    """The splits topic, which may be down."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.puts = 0
        self.down = False

    def current_if_used(self) -> Split:
        return self.split

    def put(self, split: Split) -> None:
        if self.down:
            raise AnnounceError("Kafka is down")
        self.split = split
        self.puts += 1


@pytest.mark.parametrize("refreshed", [False, True])
def test_a_split_that_a_promotion_decided_is_ended_even_if_the_champion_was_refreshed_before(
    registry: Registry, tmp_path: Path, refreshed: bool
) -> None:
    topic, challengers = TopicInMemory(), TopicInMemory("challenger")
    challengers.log = topic.log
    championship = Championship(registry, topic)
    championship.promote(registry.get("v1"), "first")
    Championship(registry, challengers).promote(registry.get("v2"), "for an experiment")
    decided = (Variant("champion", 90.0), Variant("challenger", 10.0))
    split = SplitInMemory(Split(app_id="shop", variants=decided))
    scored, told = cast(ScoresTopic, None), cast(SplitTopic, split)
    guard = _Guard(scored, championship, registry, RULES, metrics=GuardMetrics(), split=told)
    championship.promote(registry.get("v1"), "by hand")
    guard.end_split(championship.standing())
    assert shares_of(split.current_if_used().variants) == {"champion": 9000, "challenger": 1000}  # nothing is decided
    championship.promote(registry.get("v2"), "promoted by the guard: better", evidence={"measures": []})
    if refreshed:
        registry.publish(TinyModel().write(tmp_path / "staging", "v2-1", states_of="v2"))
        championship.refresh(registry.get("v2-1"), "new clicks")
        guard._trained.learn(["v2-1"])
    split.split = Split(
        app_id="shop", variants=(*split.split.variants[:1], Variant("b", 10.0)), shadow=("challenger", "c")
    )
    guard.end_split(championship.standing())
    assert split.split.shadow == ("c",)
    assert shares_of(split.split.variants) == {"champion": 9000, "b": 1000}  # b is not decided
    split.split = Split(app_id="shop", variants=decided)
    guard.end_split(championship.standing())
    assert shares_of(split.split.variants) == {}
    championship.roll_back("by hand")
    split.split = Split(app_id="shop", variants=decided)
    guard.end_split(championship.standing())
    assert split.split.variants == decided


def guard_of(
    registry: Registry, topic: TopicInMemory, scored: Iterable[Score], split: Split | None = None
) -> tuple[_Guard, SplitInMemory]:
    """The guard of a champion, with the scores and the split that are given."""
    splits = SplitInMemory(split or Split(app_id="shop", variants=()))
    guard = _Guard(
        cast(ScoresTopic, SimpleNamespace(scores=lambda: list(scored))),
        Championship(registry, topic),
        registry,
        RULES,
        metrics=GuardMetrics(),
        split=cast(SplitTopic, splits),
    )
    return guard, splits


def announce(registry: Registry, topic: TopicInMemory, **versions: str) -> int:
    """Announce versions under their aliases; returns when the last one was."""
    for alias, version in versions.items():
        other = TopicInMemory(alias)
        other.log = topic.log
        Championship(registry, other).promote(registry.get(version), "")
    return max(one.announced_at for one in topic.log)


def test_a_rollback_is_announced_unless_another_was_faster_and_then_tried_again_later(registry: Registry) -> None:
    topic = TopicInMemory()
    announce(registry, topic, champion="v1")
    start = announce(registry, topic, champion="v2")
    guard, _ = guard_of(
        registry, topic, [*scores("v1", 0.4, start=start - HOUR), *scores("v2", 0.2, start=start + 1, variant="x")]
    )
    standing, decision = guard.look()
    assert decision is not None
    assert decision.action == "roll-back"
    announce(registry, topic, champion="v3")
    with capture_logs() as told:
        guard.act(standing)
        guard.act(guard._championship.standing())
    assert [line["event"] for line in told] == ["the guard's decision is not carried out"]
    assert topic.log[-1].version == "v3"
    announce(registry, topic, champion="v2")
    guard._wait_until = 0.0  # a minute later
    with capture_logs():
        guard.act(guard._championship.standing())
    assert topic.log[-1].version == "v3"
    assert topic.log[-1].why.startswith("rolled back from v2: the guard: Recall@20 0.2")
    assert topic.log[-1].evidence == decision.evidence


def test_a_promotion_is_announced_unless_another_was_faster(registry: Registry) -> None:
    topic = TopicInMemory()
    start = announce(registry, topic, champion="v1", b="v2") + 1
    scored = [*scores("v1", 0.4, start=start), *scores("v2", 0.5, start=start, variant="b")]
    guard, _ = guard_of(registry, topic, scored)
    standing, _ = guard.look()
    announce(registry, topic, champion="v3")
    with capture_logs():
        guard.act(standing)
    assert topic.announced()["champion"].version == "v3"
    guard, _ = guard_of(registry, topic, scored)
    announce(registry, topic, champion="v1")
    start = announce(registry, topic, b="v2") + 1
    scored[:] = [*scores("v1", 0.4, start=start), *scores("v2", 0.5, start=start, variant="b")]
    standing, _ = guard.look()
    with capture_logs():
        guard.act(standing)
    made = topic.announced()["champion"]
    assert (made.version, made.why.partition(": ")[0]) == ("v2", "promoted by the guard")
    assert made.evidence is not None
    _, decision = guard.look()
    assert decision is not None
    assert len(decision.reasons) == 1  # it is no challenger of itself


def test_a_challenger_that_the_registry_has_lost_is_none(registry: Registry) -> None:
    topic = TopicInMemory()
    start = announce(registry, topic, champion="v1", b="v2") + 1
    shutil.rmtree(registry.get("v2").uri)
    scored = [*scores("v1", 0.4, start=start), *scores("v2", 0.5, start=start, variant="b")]
    _, decision = guard_of(registry, topic, scored)[0].look()
    assert decision is not None
    assert decision.action == "keep"


def test_scores_by_another_k_are_not_compared(registry: Registry) -> None:
    """Whoever lowers `scores.k` has lower figures from then on, of whatever model."""
    topic = TopicInMemory()
    announce(registry, topic, champion="v1")
    start = announce(registry, topic, champion="v2")
    scored = [
        *scores("v1", 0.5, start=start - HOUR, k=20),
        *scores("v1", 0.4, start=start - HOUR // 2, k=10, windows=6),
        *scores("v2", 0.4, start=start + 1, k=10),
    ]
    _, decision = guard_of(registry, topic, scored)[0].look()
    assert decision is not None
    assert decision.action == "keep"
    assert decision.evidence is not None
    assert decision.evidence["compared_with"]["sessions"] == 1200
    assert "@10" in decision.reasons[0]


def test_a_challenger_that_is_worse_loses_its_share_to_the_champion_and_no_other_session_moves(
    registry: Registry,
) -> None:
    topic = TopicInMemory()
    start = announce(registry, topic, champion="v1", b="v2", c="v3")
    first, *_ = topic.log
    served = {"v1": 0.4, "v2": 0.2, "v3": 0.4}
    scored = [one for version, recall in served.items() for one in scores(version, recall, start=start, variant="x")]
    parts = (Variant("champion", 50.0), Variant("c", 20.0), Variant("b", 30.0))
    guard, split = guard_of(registry, topic, scored, Split(app_id="shop", variants=parts, shadow=("d",)))

    def look() -> str:
        standing, decision = guard.look()
        assert decision is not None
        with capture_logs() as told:
            guard.act(standing)
        expected = [("b", decision.evidence)] if decision.action == "end" else []
        assert [(line["alias"], line["evidence"]) for line in told] == expected
        assert decision.evidence is not None or decision.action == "keep"
        return decision.action

    assert look() == "end"
    assert split.split.variants == (Variant("champion", 50.0), Variant("c", 20.0), Variant("champion", 30.0))
    assert split.split.shadow == ("d",)
    assert look() == "keep"  # it has none any more
    assert topic.log[0] is first
    assert len(topic.log) == 3  # nothing is announced
    split.split = Split(app_id="shop", variants=(Variant("champion", 70.0), Variant("b", 30.0)))
    assert look() == "end"
    assert split.split.variants == ()
    split.split = Split(app_id="shop", variants=(Variant("c", 70.0), Variant("b", 30.0)))
    assert look() == "end"
    assert split.split.variants == (Variant("c", 70.0), Variant("champion", 30.0))  # which had none


def test_the_share_of_a_challenger_that_another_ended_is_left_as_it_is(registry: Registry) -> None:
    topic = TopicInMemory()
    start = announce(registry, topic, champion="v1", b="v2")
    scored = [*scores("v1", 0.4, start=start), *scores("v2", 0.2, start=start, variant="b")]
    parts = (Variant("champion", 70.0), Variant("b", 30.0))
    guard, split = guard_of(registry, topic, scored, Split(app_id="shop", variants=parts))
    standing, _ = guard.look()
    split.split = by_hand = Split(app_id="shop", variants=(Variant("champion", 90.0), Variant("c", 10.0)))
    with capture_logs() as told:
        guard.act(standing)
    assert (split.split, told) == (by_hand, [])


def test_the_guard_goes_on_when_kafka_is_away_or_a_bundle_is_damaged(registry: Registry) -> None:
    topic = TopicInMemory()
    start = announce(registry, topic, champion="v1", b="v2") + 1
    scored = [*scores("v1", 0.4, start=start), *scores("v2", 0.5, start=start, variant="b")]
    guard, _ = guard_of(registry, topic, scored)
    standing, _ = guard.look()
    with capture_logs() as told:
        topic.down = True
        guard.act(standing)
        topic.down, guard._wait_until = False, 0.0  # a minute later
        (Path(registry.get("v2").uri) / "rank.onnx").write_bytes(b"")
        guard.act(standing)
    assert [line["log_level"] for line in told if "not carried out" in line["event"]] == ["error", "error"]
    assert topic.announced()["champion"].version == "v1"


def test_a_decided_split_is_ended_once_and_when_kafka_is_back(registry: Registry) -> None:
    topic = TopicInMemory()
    announce(registry, topic, champion="v1", b="v2")
    split = Split(app_id="shop", variants=(Variant("champion", 50.0), Variant("b", 50.0)))
    guard, splits = guard_of(registry, topic, (), split)
    guard._championship.promote(registry.get("v2"), "promoted by the guard: better", evidence={"measures": []})
    standing = guard._championship.standing()
    splits.down = True
    with capture_logs() as told:
        guard.end_split(standing)
    assert [(line["log_level"], line["error"]) for line in told] == [("error", "Kafka is down")]
    splits.down = False
    for _ in range(2):
        guard.end_split(standing)
    assert (splits.split.variants, splits.puts) == ((), 1)
    splits.current_if_used = lambda: None  # type: ignore[method-assign, assignment, return-value]
    guard.end_split(standing)  # experiments are not in use
    assert splits.puts == 1


def test_a_rollback_by_the_guard_decides_no_split(registry: Registry) -> None:
    topic = TopicInMemory()
    announce(registry, topic, champion="v1", b="v1")
    announce(registry, topic, champion="v2")
    split = Split(app_id="shop", variants=(Variant("champion", 50.0), Variant("b", 50.0)))
    guard, splits = guard_of(registry, topic, (), split)
    guard._championship.roll_back("the guard: worse", evidence={"measures": []})
    guard.end_split(guard._championship.standing())
    assert splits.split is split


def test_a_decision_and_an_alarm_are_told_once(registry: Registry) -> None:
    topic = TopicInMemory()
    start = announce(registry, topic, champion="v1", b="v2") + 1
    lost = {"model": 500, "unknown-item": 500}
    scored = [*scores("v1", 0.1, start=start, reasons=lost), *scores("v2", 0.5, start=start, variant="b")]
    guard, _ = guard_of(registry, topic, scored)

    def look() -> tuple[bool, list[str], list[float | None]]:
        with capture_logs() as told:
            _, decision = guard.look()
        assert decision is not None
        value = guard._metrics.registry.get_sample_value
        alarms = [value("nextclick_guard_alarm", {"alarm": alarm}) for alarm in ("unknown-items", "online-recall")]
        decided = value("nextclick_guard_decisions_total", {"action": "promote"})
        return guard.is_new(decision), [f"{line['event']}: {line['alarm']}" for line in told], [decided, *alarms]

    new, told, values = look()
    # Of the evaluation, which the bundle tells, less than half is left.
    assert (new, sorted(told), values) == (True, ["alarm: online-recall", "alarm: unknown-items"], [None, 1, 1])
    assert look() == (False, [], [1, 1, 1])
    scored[:] = [*scores("v1", 0.4, start=start), *scores("v2", 0.7, start=start, variant="b")]
    new, told, values = look()
    over = ["the alarm is over: online-recall", "the alarm is over: unknown-items"]
    assert (new, sorted(told), values) == (True, over, [1, 0, 0])
    assert look() == (False, [], [1, 0, 0])
    scored[:12] = scores("v1", 0.1, start=start)
    assert look()[1] == ["alarm: online-recall"]
    scored[:] = scores("v1", 0.1, start=start, k=10)  # by which it was not evaluated
    assert look()[1] == ["the alarm is over: online-recall"]


def test_refreshed_versions_count_as_the_models_that_were_trained(registry: Registry, tmp_path: Path) -> None:
    """Also those that no history names any more, and a challenger's before it has ranked anything."""
    earlier = [f"v1-{number}" for number in range(6)]
    for version, trained, before in (("v1-6", "v1", earlier), ("v2-1", "v2", [])):
        training = {"refreshed": {"before": before}}
        registry.publish(TinyModel().write(tmp_path / "staging", version, states_of=trained, training=training))
    topic = TopicInMemory()
    start = announce(registry, topic, champion="v1", b="v2") + 1
    guard, _ = guard_of(
        registry,
        topic,
        [
            *(scores(one, 0.4, start=start + at * MINUTES, windows=1)[0] for at, one in enumerate(earlier)),
            *scores("v1-6", 0.4, start=start + 6 * MINUTES, windows=6),
            *scores("v2", 0.5, start=start, variant="b"),
        ],
    )
    other = TopicInMemory("b")
    other.log = topic.log
    Championship(registry, other).refresh(registry.get("v2-1"), "new clicks")
    _, decision = guard.look()
    assert decision is not None
    assert (decision.action, decision.version) == ("promote", "v2-1")
    assert decision.evidence is not None
    assert decision.evidence["champion"]["sessions"] == 2400
