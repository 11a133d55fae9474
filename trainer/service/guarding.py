"""`trainer guard`: read scores, decide, announce; until it is told to stop.

Two of one alias would each roll back what the other has just returned to, so a guard holds a lease. `trainer run` holds
another: it may announce between a guard's look at the champion and its own announcement, and then nothing is announced.
"""

import time
from collections.abc import Callable, Container, Iterable
from contextlib import ExitStack, suppress
from typing import Final

import structlog
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from schemas.errors import BundleError
from schemas.messages.announcement import ModelAnnouncement
from schemas.messages.score import comparable
from schemas.messages.split import shares_of
from trainer.errors import AnnounceError, LeaseError, RegistryError, StopRequested
from trainer.service.assembly import championship_of, registry_of, split_topic_of
from trainer.service.champion import Championship, Standing
from trainer.service.guard import Challenger, Decision, GuardRules, Watched, as_trained, decide
from trainer.service.history import Entry
from trainer.service.lease import Lease
from trainer.service.outage import sleep, waiting_out
from trainer.service.registry import Registry, refreshes_before
from trainer.service.scores import ScoresTopic
from trainer.service.settings import GuardSettings, TrainerRoot
from trainer.service.split import SplitTopic, moved

log = structlog.get_logger(__name__)

_RETRY_SECONDS: Final = 60.0


class GuardMetrics:
    """What the guard tells Prometheus."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.decisions = Counter(
            "nextclick_guard_decisions",
            "Rollbacks, promotions and ends of a share decided.",
            ["action"],
            registry=registry,
        )
        self.alarms = Gauge("nextclick_guard_alarm", "1 while this alarm is raised.", ["alarm"], registry=registry)
        for alarm in ("unknown-items", "online-recall"):
            self.alarms.labels(alarm).set(0)


def guard(
    root: TrainerRoot,
    *,
    once: bool,
    dry_run: bool,
    stopping: Callable[[], bool],
    told: Callable[[Decision], None] = lambda _: None,
) -> None:
    """Decide every `guard.every`, and do what was decided unless `dry_run`; `told` hears what is new.

    A registry that cannot be used is asked again after `guard.every`. Raises LeaseError when another guard watches this
    alias, and the errors of Kafka and scores; with `once`, and at the start, those of the registry, too.
    """
    settings, metrics = root.guard, GuardMetrics()
    registry = registry_of(root)
    if settings.metrics_port is not None:
        start_http_server(settings.metrics_port, settings.metrics_host, registry=metrics.registry)
    rules = rules_of(settings)
    with ExitStack() as held:
        held.enter_context(suppress(StopRequested))
        lease = None
        if not dry_run:
            lease = Lease(registry.store, root.trainer.model_alias, registry.writer, guards=True, stopping=stopping)
            held.enter_context(lease)
        topic = held.enter_context(ScoresTopic(root.kafka, root.topics.scores, group=root.group, keep_ms=rules.keep_ms))
        guard = _Guard(
            topic, championship_of(root, registry), registry, rules, metrics=metrics, split=split_topic_of(root)
        )
        while not stopping():
            try:
                standing, decision = waiting_out(guard.look, stopping)
                if decision is not None and (guard.is_new(decision) or once):
                    told(decision)
                if lease is not None:
                    lease.check()
                    guard.act(standing)
                    guard.end_split(standing)
            except LeaseError:
                raise
            except RegistryError as error:
                if once:
                    raise
                log.error("nothing is decided while the registry cannot be used", error=str(error))
            if once:
                return
            sleep(settings.every, stopping)


class _Guard:
    """What was decided last, and what became of it."""

    def __init__(
        self,
        topic: ScoresTopic,
        championship: Championship,
        registry: Registry,
        rules: GuardRules,
        *,
        metrics: GuardMetrics,
        split: SplitTopic,
    ) -> None:
        self._topic, self._championship, self._registry = topic, championship, registry
        self._trained = Trained(registry)
        self._rules, self._metrics, self._split = rules, metrics, split
        self._decision: Decision | None = None
        self._known: tuple[str, str, set[str]] = ("keep", "", set())
        self._alarms: dict[str, str] = {}
        self._wait_until = 0.0

    def look(self) -> tuple[Standing, Decision | None]:
        """Who is champion, and what the scores say of it; None without a champion."""
        standing = self._championship.standing()
        self._decision = self._decide(standing)
        if self._decision is None:
            log.info("no champion is announced yet")
        else:
            self._show(self._decision.alarms or {})
        return standing, self._decision

    def _decide(self, standing: Standing) -> Decision | None:
        registry, trained = self._registry, self._trained
        served, others = comparable(self._topic.scores()), self._championship.others()
        trained.learn([*standing.line, *(version for other in others for version in other.line)])
        trained.learn(score.model_version for score in served)
        scores = as_trained(served, trained)
        k = scores[0].k if scores else 20
        published = None if standing.champion is None else registry.find_readable(standing.champion.version)
        offline = None if published is None else (published.manifest.metrics.get("model") or {}).get(f"recall@{k}")
        champion = watched(standing, trained, offline)
        if champion is None:
            return None
        split = self._split.current_if_used() if others else None
        shares = {} if split is None else shares_of(split.variants)
        found = (self._challenger(other, shares) for other in others)
        challengers = [one for one in found if one is not None and one.version != champion.version]
        return decide(scores, champion, challengers, self._rules)

    def _challenger(self, standing: Standing, shares: Container[str]) -> Challenger | None:
        """What another alias means; None where the registry does not have it."""
        model = watched(standing, self._trained, None)
        if model is None or standing.champion is None:
            return None
        serving = standing.champion.version
        there = self._registry.find_readable(serving) is not None
        share = standing.champion.alias if standing.champion.alias in shares else None
        return Challenger(model.version, model.announced_at, serving, share) if there else None

    def is_new(self, decision: Decision) -> bool:
        """Whether it differs from the one before in what is done or raised."""
        known, self._known = self._known, (decision.action, decision.version, set(decision.alarms or {}))
        # An alarm that begins or ends meanwhile makes no second one of it.
        if known[:2] != self._known[:2] and decision.action != "keep":
            self._metrics.decisions.labels(decision.action).inc()
        return known != self._known

    def act(self, standing: Standing) -> None:
        """Do what was decided; what cannot be is tried again a minute later."""
        decision = self._decision
        if decision is None or decision.action == "keep" or time.monotonic() < self._wait_until:
            return
        why, champion = "; ".join(decision.reasons), standing.champion
        try:
            if decision.action == "end":
                self._end_share(decision, why)
                return
            if decision.action == "roll-back":
                made = self._championship.roll_back(
                    f"the guard: {why}", instead_of=champion, evidence=decision.evidence
                )
            else:
                made = self._championship.promote(
                    self._registry.get(decision.version),
                    f"promoted by the guard: {why}",
                    instead_of=champion,
                    evidence=decision.evidence,
                )
        except (RegistryError, BundleError, AnnounceError) as error:
            # Another was announced, there is nothing to return to, or Kafka is away.
            log.error("the guard's decision is not carried out", decision=decision.action, error=str(error))
            self._wait_until = time.monotonic() + _RETRY_SECONDS
            return
        log.warning("announced by the guard", version=made.version, why=made.why)

    def _end_share(self, decision: Decision, why: str) -> None:
        """Give the sessions of a challenger that is worse to the champion; all others keep their model."""
        split, champion, alias = self._split.current_if_used(), self._championship.alias, decision.share
        shares = {} if split is None else shares_of(split.variants)
        if split is None or alias is None or alias not in shares:
            return  # somebody was faster
        shares[champion] = shares.get(champion, 0) + shares.pop(alias)
        variants = moved(split.variants, shares) if len(shares) > 1 else ()
        self._split.put(replace(split, variants=variants))
        # A split has no field for the evidence, as an announcement has.
        ended = {"alias": alias, "version": decision.version, "why": why, "evidence": decision.evidence}
        log.warning("share of the sessions ended by the guard", **ended)

    def end_split(self, standing: Standing) -> None:
        """End the split and the shadows that a promotion by the guard has decided: their aliases mean the champion.

        Not together with the announcement, but at the next look, so that a kill between the two does no harm.
        """
        champion, trained = standing.champion, self._trained
        try:
            if champion is None or not self._has_decided(champion, standing):
                return
            split = self._split.current_if_used()
            if split is None:
                return
            announced = self._championship.announced()
            version = trained(champion.version)
            decided = {alias for alias, meant in announced.items() if trained(meant.version) == version}
            variants = () if decided.issuperset(shares_of(split.variants)) else split.variants
            shadow = tuple(alias for alias in split.shadow if alias not in decided)
            if (variants, shadow) != (split.variants, split.shadow):
                self._split.put(replace(split, variants=variants, shadow=shadow))
                log.warning("split ended by the guard", decided=champion.version)
        except AnnounceError as error:
            log.error("the decided split is not ended; trying again", error=str(error))

    def _has_decided(self, champion: ModelAnnouncement, standing: Standing) -> bool:
        """Whether the champion, which may have been refreshed since, is one that a guard promoted."""
        begun = begun_by(standing)
        if begun is None or begun.action != "promoted":
            return False
        made: ModelAnnouncement | None = champion
        if begun.announced_at != champion.announced_at:
            made = self._registry.announced_as(champion.alias, begun)
        return made is not None and made.evidence is not None

    def _show(self, raised: dict[str, str]) -> None:
        for alarm in raised.keys() | self._alarms.keys():
            self._metrics.alarms.labels(alarm).set(alarm in raised)
            if alarm not in self._alarms:
                log.warning("alarm", alarm=alarm, says=raised[alarm])
            elif alarm not in raised:
                log.info("the alarm is over", alarm=alarm)
        self._alarms = raised


def rules_of(settings: GuardSettings) -> GuardRules:
    """The settings as the decision takes them."""
    return GuardRules(
        alpha=settings.alpha,
        tolerance=settings.tolerance,
        effect=settings.effect,
        sessions=settings.min_sessions,
        reference_ms=round(settings.reference * 1000),
        watch_ms=round(settings.watch * 1000),
        max_unknown=settings.max_unknown,
        min_online=settings.min_online,
    )


def watched(standing: Standing, trained: Callable[[str], str], offline: float | None) -> Watched | None:
    """The champion under the version that was trained: a refreshed one is the same model. None without a champion."""
    if standing.champion is None:
        return None
    begun, line = begun_by(standing), standing.line
    return Watched(
        trained(standing.champion.version),
        standing.champion.announced_at if begun is None else begun.announced_at,
        # One that a rollback returned to was judged before. What came before it served another day.
        predecessor=trained(line[-2]) if begun and begun.action == "promoted" and len(line) > 1 else None,
        offline=offline,
    )


def begun_by(standing: Standing) -> Entry | None:
    """What made the champion that, or the model that it is a refreshed one of."""
    return next((entry for entry in reversed(standing.entries) if entry.action != "refreshed"), None)


class Trained:
    """Which version was trained, of each: itself, unless it was refreshed.

    Of refreshed versions a registry keeps the newest alone, and each of them names those before it.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[str, str] = {}

    def __call__(self, version: str) -> str:
        return self._known.get(version, version)

    def learn(self, versions: Iterable[str]) -> None:
        """Read the manifests of those that are not known yet."""
        for version in set(versions) - self._known.keys():
            published = self._registry.find_readable(version)
            trained = None if published is None else published.manifest.states_of
            if published is None or trained is None:
                self._known.setdefault(version, version)
            else:
                self._known |= dict.fromkeys([*refreshes_before(published.manifest), version], trained)
