"""One cycle of retraining: the click log in, a published and perhaps announced model out.

    window -> holdout -> fit -> parity -> evaluate beside champion and baselines -> gate -> refit -> publish -> announce

State is in the click log, the registry and the models topic, nowhere else. A cycle that is killed may leave a
half-published version, which has no manifest: the next one removes it, and starts from what is there. Every challenger
that reaches the gate is published, with its verdict in its manifest; only one that passed is announced.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import structlog

from schemas.bundle.files import Model
from schemas.bundle.manifest import Manifest
from schemas.errors import BundleError
from schemas.messages.announcement import CHAMPION, ModelAnnouncement
from trainer.data.sessions import SessionSet, encode, vocabulary_of
from trainer.data.targets import missing_types, target_weights
from trainer.errors import NonFiniteScoresError, TooFewSessionsError
from trainer.evaluation.baselines import BaselineSpec
from trainer.evaluation.model_scorer import ModelScorer
from trainer.evaluation.protocol import DEFAULT_KS, Floats, Metrics, Scorer, evaluate, ranks_of
from trainer.evaluation.significance import judge as judge_ranks
from trainer.export.bundle import read_network
from trainer.export.parity import check_parity
from trainer.memory.terms import SessionMemory
from trainer.memory.trained import TrainedModel
from trainer.models.base import Network
from trainer.models.settings import LearnedSettings
from trainer.service.champion import Championship, Standing
from trainer.service.click_log import ClickLogFolder, LogState
from trainer.service.gate import Evaluated, GateRules, best_rivals, gate_record, judge
from trainer.service.publish import CANDIDATE, Provenance, publish, stage, staging_of
from trainer.service.registry import PublishedModel, Registry
from trainer.service.settings import TrainerRoot
from trainer.service.window import Seen, Window, hold_out, window_of
from trainer.training.device import Hardware
from trainer.training.fit import DEFAULT_HARDWARE, FitResult
from trainer.training.refresh import as_trained, refreshed
from trainer.training.shrink import shrink_and_perturb
from trainer.training.train import (
    TOO_FEW_TO_REMEMBER,
    check_size,
    learn_memory,
    train,
    transitions_to_fit,
    transitions_to_learn,
)
from trainer.training.warm_start import fits, is_whole, warm_start

log = structlog.get_logger(__name__)

Progress = Callable[[str, int, int], None]
"""Hears the phase, the transitions done since it last heard, and the phase's total. May raise StopRequested."""


Start = tuple[Network, tuple[str, ...]]
"""Network to start from, and the items of their rows."""


@dataclass(frozen=True)
class CycleResult:
    """How a cycle ended."""

    outcome: Literal["skipped", "refused", "announced"]
    reasons: tuple[str, ...]
    version: str | None = None


@dataclass(frozen=True)
class _Split:
    """The window for judging. What was clicked in the holdout stays in it, known to the models or not."""

    train: SessionSet  # in the challenger's catalogue
    test: SessionSet  # the holdout, in the vocabulary of the whole window
    counted: SessionSet  # what the baselines count: `train` in that vocabulary


class Cycle:
    """The steps of a cycle over one click log, registry and alias."""

    name: Final = "cycle"

    def __init__(
        self,
        root: TrainerRoot,
        folder: ClickLogFolder,
        registry: Registry,
        championship: Championship,
        progress: Progress = lambda _phase, _done, _total: None,
        *,
        may_write: Callable[[], None] = lambda: None,
        hardware: Hardware = DEFAULT_HARDWARE,
    ) -> None:
        """`may_write` is asked before each change of the registry and each announcement; it raises to forbid them."""
        self._root = root
        self._settings = settings = root.trainer
        self._folder = folder
        self._registry = registry
        self._hardware = hardware
        self._championship = championship
        self._progress = progress
        self._may_write = may_write
        self._told = False
        self._staging = staging_of(settings.work_dir, registry)

    def run(self, collected: LogState | None = None) -> CycleResult:
        """One cycle, on what the click log holds now, or held when `collected` was read of it.

        Raises the errors of its steps; nothing is half done then, and the next cycle may succeed.
        """
        announced = self._finish_what_was_left()
        if announced is not None:
            return CycleResult("announced", (announced.why,), announced.version)
        return self._make_a_challenger(collected or self._folder.scan())

    def _make_a_challenger(self, collected: LogState) -> CycleResult:
        settings = self._settings
        last = self._last_of_a_cycle()
        standing = self._championship.standing()
        # The first model of another alias is for a canary: visitors get it only if it is no worse than what serves.
        to_beat = standing.champion or self._championship.announced().get(CHAMPION)
        champion = self._open(to_beat)
        window = window_of(self._root, self._folder, collected, last=_seen(last), champion=_seen(champion))
        if window is None:
            return CycleResult("skipped", ("the click log holds no clicks yet",))
        new, needed = int(window.new.sum()), max(1, settings.min_new_sessions)
        if new < needed:
            return CycleResult("skipped", (f"{new} new sessions, a cycle needs {needed} (trainer.min_new_sessions)",))
        try:
            split = self._split(window, needed=0 if champion is None else settings.gate_predictions)
        except TooFewSessionsError as error:
            return CycleResult("skipped", (str(error),))
        start = self._start(to_beat, champion)
        log.info(
            "training", sessions=len(split.train), clicks=split.train.clicks, items=len(split.train.item_ids),
            held_out=len(split.test), new_sessions=new, started_from=champion.version if champion and start else None,
        )  # fmt: skip
        result, trained = self._fit("training", split.train, start), split.train
        candidate = self._stage(result, trained)
        check_parity(result.weights, candidate, trained, memory=result.memory)
        gate_k = self._gate_k(champion)
        evaluated = self._evaluate(
            candidate,
            self._counted_alike(to_beat, champion, split),
            self._predecessors(champion, gate_k),
            split,
            gate_k,
        )
        verdict = judge(evaluated, self._rules(gate_k))
        if champion is not None and gate_k < settings.gate_k:
            why = f"judged at {gate_k} in place of trainer.gate_k: the champion ranks {champion.k} items only"
            verdict = replace(verdict, reasons=(*verdict.reasons, why))
        again = self._refit(window, split, result, evaluated, gate_k) if verdict.passed and settings.refit else None
        if again is not None:
            result, trained = again
        self._may_write()
        model = publish(
            self._registry,
            self._staging,
            result,
            trained,
            evaluated=evaluated,
            gate=gate_record(evaluated, verdict, gate_k),
            provenance=self._provenance(
                window, standing, split, champion if start else None, refitted=again is not None
            ),
        )
        if not verdict.passed:
            return CycleResult("refused", verdict.reasons, model.version)
        self._may_write()
        why = "passed the gate: " + "; ".join(verdict.reasons)
        self._championship.promote(model, why, instead_of=standing.champion)  # it was judged against no other
        return CycleResult("announced", verdict.reasons, model.version)

    def _stage(self, model: TrainedModel, sessions: SessionSet, *, version: str = CANDIDATE) -> Model:
        return stage(self._staging, model, sessions, version=version, threads=self._settings.threads)

    def _provenance(
        self, window: Window, standing: Standing, split: _Split, start: Model | None, *, refitted: bool
    ) -> Provenance:
        return Provenance(
            alias=self._championship.alias,
            positions=window.positions,
            topic_id=window.topic_id,
            started_from=start.version if start else None,
            champion=standing.champion.version if standing.champion else None,
            holdout=split.test,
            refitted=refitted,
        )

    def _refit(
        self, window: Window, split: _Split, result: FitResult, evaluated: Evaluated, gate_k: int
    ) -> tuple[FitResult, SessionSet] | None:
        """The challenger trained on all sessions, staged; None, and itself staged, where that makes it unsound."""
        whole = self._known(window.sessions)
        # From the challenger itself, which has seen all but the holdout: sooner there than from the champion.
        from_it = self._settings.warm_start and isinstance(result.settings, LearnedSettings)
        challenger = (result.network, result.item_ids) if from_it else None
        # Its memory's weights stay: they must not be learned from the sessions that it was judged by.
        again = self._fit("refitting", whole, challenger, result.memory)
        candidate = self._stage(again, whole)
        check_parity(again.weights, candidate, whole, memory=again.memory)
        if self._is_sound(candidate, split, evaluated.challenger.metrics, gate_k):
            return again, whole
        self._stage(result, split.train)
        return None

    def tidy(self) -> None:
        """Remove versions and log files that are kept no longer, and join small log files."""
        self._may_write()
        protected = self._championship.protected()
        for announced in self._championship.announced().values():  # a trainer of another alias has rivals, too
            published = self._registry.find_readable(announced.version)
            protected.update(self._rivals(published.manifest if published else None))
        for version in self._registry.prune(keep=self._settings.keep_versions, protected=protected):
            log.info("removed an old version", version=version)
        if not self._settings.collect_group:  # else each collector does it for what it writes
            self._folder.tidy(self._settings.log_keep)

    def _finish_what_was_left(self) -> ModelAnnouncement | None:
        """Finish or remove what a killed process or a failed cycle left; returns what was announced by that."""
        self._may_write()
        shutil.rmtree(self._staging, ignore_errors=True)
        for name in self._registry.remove_leftovers():
            log.info("removed what was left half-published", name=name)
        standing = self._championship.standing()
        last = self._last_of_a_cycle()
        if last is not None and _was_left_unannounced(last, standing, self._trained):
            why = "passed the gate; announced later"
            announcement = self._championship.promote(last, why, instead_of=standing.champion)
            log.info("announced a model that had passed the gate before", version=announcement.version)
            return announcement
        if standing.champion is None and standing.entries and not self._told:
            self._told = True
            log.warning(
                "the models topic names no champion, but the registry has a history: was the topic made anew? Announce "
                "a version with `trainer promote`",
                last=standing.line[-1],
            )
        return None

    def _last_of_a_cycle(self) -> PublishedModel | None:
        """The newest version that our cycles made from the click log.

        `trainer fit` may have put others beside it, and so may a trainer of another alias, which has a click log, a
        champion and a gate of its own. A version of before aliases were noted counts as ours.
        """
        ours = self._championship.alias
        for model in reversed(self._registry.versions()):
            training = model.manifest.training
            if not model.refreshed and "positions" in training and training.get("alias", ours) == ours:
                return model
        return None

    def _trained(self, version: str) -> str:
        """The version that was trained: itself, unless it is a refreshed one."""
        model = self._registry.find_readable(version)
        return version if model is None else model.manifest.states_of or version

    def _split(self, window: Window, *, needed: int) -> _Split:
        """With as many predictions to judge by as are needed. Raises TooFewSessionsError."""
        everything = vocabulary_of(window.sessions)
        older, newest = hold_out(window, share=self._settings.holdout, most=self._settings.holdout_sessions)
        known = self._known(older)
        weights = self._settings.training.weight_of_type
        target_weights(known, weights)  # there is something to predict
        if missing := missing_types(known, weights):
            log.warning("target_weights names types that no click of the window has", types=missing)
        split = _Split(known, encode(newest, everything), encode(older, everything))
        if (found := split.test.transitions) < needed:
            raise TooFewSessionsError(
                f"{found} predictions to judge by, {needed} are needed (trainer.gate_predictions)"
            )
        return split

    def _known(self, sessions: SessionSet) -> SessionSet:
        """The sessions in the catalogue that they make."""
        known = encode(sessions, vocabulary_of(sessions, min_support=self._settings.min_support))
        if not len(known):
            raise TooFewSessionsError("no session has two clicks on items of the catalogue: lower trainer.min_support")
        return known

    def _open(self, to_beat: ModelAnnouncement | None) -> Model | None:
        if to_beat is None:
            return None
        try:
            return self._registry.open_announced(to_beat, threads=self._settings.threads)
        except BundleError as error:
            self._registry.check_mounted(to_beat)
            # A worker that starts now could not serve it either: it must not keep its place for that.
            log.error("the champion cannot be opened, so nothing is compared with it", error=str(error))
            return None

    def _counted_alike(
        self, announced: ModelAnnouncement | None, champion: Model | None, split: _Split
    ) -> Model | None:
        """A champion that was refreshed, as it would be had it counted what the challenger has learned from.

        It may have counted the very sessions that are held out, and would look better than it is.
        """
        if champion is None or announced is None or champion.manifest.states_of is None:
            return champion
        try:
            trained = as_trained(self._registry.read_announced(announced))
        except BundleError as error:
            log.warning("the champion cannot be counted anew, so it is compared as it is", error=str(error))
            return champion
        model, sessions = refreshed(trained, split.train)
        return self._stage(model, sessions, version=champion.version)

    def _predecessors(self, champion: Model | None, gate_k: int) -> list[Model]:
        """The best of the champions before, as far as they are still published and can be judged at this k."""
        found: list[Model] = []
        for version in self._rivals(None if champion is None else champion.manifest):
            model = self._registry.find_readable(version)
            if model is None:
                log.info("a predecessor is not published any more, so nothing is compared with it", version=version)
                continue
            try:
                opened = self._registry.open(model, threads=self._settings.threads)
            except BundleError as error:
                log.warning("a predecessor cannot be opened, so nothing is compared with it", error=str(error))
                continue
            places = _certain_places(opened)
            if places is None or places >= gate_k:
                found.append(opened)
            else:
                log.info("a predecessor's lists are too short, so nothing is compared with it", version=version)
        return found

    def _rivals(self, champion: Manifest | None) -> list[str]:
        """Versions that a challenger is compared with beside the champion."""
        settings = self._settings
        return best_rivals(champion.metrics, settings.gate_k)[: settings.gate_predecessors] if champion else []

    def _start(self, announced: ModelAnnouncement | None, champion: Model | None) -> Start | None:
        if champion is None or announced is None or not self._settings.warm_start:
            return None
        if champion.encoder == "none" or not isinstance(self._settings.training, LearnedSettings):
            return None  # what counts is no start, and starts from nothing
        try:
            weights = read_network(self._registry.read_announced(announced))
        except BundleError as error:
            # It serves, and is judged; that nothing can start from it must end no cycle.
            log.warning("no warm start: the champion holds no network that is known here", error=str(error))
            return None
        if not fits(weights, self._settings.training):
            log.info("no warm start: the champion's sizes are not those of trainer.training", version=champion.version)
            return None
        return weights, champion.vocabulary.items

    def _fit(
        self, phase: str, sessions: SessionSet, start: Start | None, memory: SessionMemory | None = None
    ) -> FitResult:
        """Train; with `memory` under the weights of its terms, which are learned otherwise."""
        cold = self._settings.training
        check_size(sessions, cold)

        if memory is None:
            to_learn = transitions_to_learn(sessions, cold)
            memory = learn_memory(
                sessions,
                cold,
                progress=lambda done: self._progress("learning the session memory", done, to_learn),
                hardware=self._hardware,
            )
            if cold.memory and not memory:
                log.warning(TOO_FEW_TO_REMEMBER)
        training, weights = self._begun(sessions, start) if start is not None else (cold, None)
        total = transitions_to_fit(sessions, training)
        return train(
            sessions,
            training,
            memory=memory,
            warm_start=weights,
            progress=lambda done: self._progress(phase, done, total),
            hardware=self._hardware,
        )

    def _begun(self, sessions: SessionSet, start: Start) -> tuple[LearnedSettings, Network]:
        """How to train from a start, and the weights that it gives."""
        settings, training = self._settings, self._settings.training
        assert isinstance(training, LearnedSettings)
        weights = warm_start(*start, sessions.item_ids, training)
        if not is_whole(start[0], training):
            # The items' rows of another family: all else is as random as ever, and has to be learned in full.
            return training, weights
        warm = training.changed(
            lambda part: {"epochs": settings.warm_epochs, "learning_rate": part.learning_rate * settings.warm_rate}
        )
        return warm, shrink_and_perturb(weights, warm, keep=settings.warm_keep)

    def _evaluate(
        self, candidate: Model, champion: Model | None, predecessors: Sequence[Model], split: _Split, gate_k: int
    ) -> Evaluated:
        specs = [BaselineSpec(name) for name in self._settings.baselines]
        models = [candidate, *([champion] if champion else []), *predecessors]
        total = split.test.transitions * (len(models) + len(specs))
        certain = [place for model in models if (place := _certain_places(model)) is not None]
        ks = sorted({gate_k, *(k for k in DEFAULT_KS if all(k <= place for place in certain))})

        def ranks(scorer: Scorer) -> Floats:
            return ranks_of(scorer, split.test, progress=lambda done: self._progress("evaluating", done, total))

        names = [*(model.version for model in models), *map(str, specs)]
        # One at a time: a baseline may hold tables of the size of the log.
        scorer = ModelScorer(candidate, split.test)
        found = [ranks(scorer)]
        if scorer.not_finite:
            raise NonFiniteScoresError(
                f"{scorer.not_finite} answers of the new model are no finite numbers: lower the learning_rate "
                "of trainer.training"
            )
        found += [ranks(ModelScorer(model, split.test)) for model in models[1:]]
        found += [ranks(spec.build(split.counted)) for spec in specs]
        judged = judge_ranks({str(i): of for i, of in enumerate(found)}, split.test, ks=ks, k=gate_k)
        named = [replace(one, name=name) for one, name in zip(judged, names, strict=True)]
        first = 1 + (champion is not None)
        return Evaluated(
            challenger=named[0],
            champion=named[1] if champion else None,
            predecessors=tuple(named[first : len(models)]),
            baselines=tuple(named[len(models) :]),
            sessions=len(split.test),
        )

    def _is_sound(self, refitted: Model, split: _Split, before: Metrics, k: int) -> bool:
        """Whether a model that has seen the holdout is at least as good on it as the one that had not."""
        slack = max(0.0, self._settings.gate_margin)
        progress = lambda done: self._progress("checking", done, split.test.transitions)  # noqa: E731
        scorer = ModelScorer(refitted, split.test)
        seen = evaluate(scorer, split.test, ks=[k], progress=progress)
        if (
            not scorer.not_finite
            and seen.recall[k] >= before.recall[k] - slack
            and seen.mrr[k] >= before.mrr[k] - slack
        ):
            return True
        log.warning(
            "the refit is worse on sessions it has seen than the model that had not seen them: publishing the latter",
            recall=seen.recall[k], recall_before=before.recall[k], mrr=seen.mrr[k], mrr_before=before.mrr[k],
        )  # fmt: skip
        return False

    def _gate_k(self, champion: Model | None) -> int:
        """At which length to judge: at `gate_k`, or at what the champion's lists allow.

        One that was trained for shorter lists must be replaced like any other. What it does not list is no miss of
        its: judged at `gate_k` it would lose to models that are worse.
        """
        places = None if champion is None else _certain_places(champion)
        return self._settings.gate_k if places is None else max(1, min(self._settings.gate_k, places))

    def _rules(self, gate_k: int) -> GateRules:
        s = self._settings
        return GateRules(k=gate_k, margin=s.gate_margin, beats=s.gate_beats, predictions=s.gate_predictions)


def _certain_places(model: Model) -> int | None:
    """Up to which place its lists decide: beyond their end an item may tie with the last. None where all are listed."""
    return None if model.k == len(model.vocabulary) else model.k - 1


def _seen(model: PublishedModel | Model | None) -> Seen:
    """Which clicks it was trained on."""
    return Seen() if model is None else Seen.by(model.manifest)


def _was_left_unannounced(newest: PublishedModel, standing: Standing, trained: Callable[[str], str]) -> bool:
    """Whether it passed the gate against the very champion that still stands, perhaps refreshed, and was never
    announced."""
    manifest = newest.manifest
    if not manifest.metrics.get("gate", {}).get("passed"):
        return False
    before = manifest.training.get("champion")
    if standing.champion is None:
        # Its entry in the history, if any, is then an intention: the topic holds no announcement at all.
        return before is None
    stands = before is not None and trained(before) == trained(standing.champion.version)
    return stands and not standing.was_announced(newest.version)
