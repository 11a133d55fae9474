"""Every order in which a few clicks can go through a few workers, and what must hold in each state on the way.

A small Kafka (a changelog, a committed offset, a group with one partition) and workers that are the product's code
(`worker.py`). `explore` goes breadth first through all states that the steps of `_Explorer.steps` lead to, each once,
so what it finds is found by the shortest way.

What Kafka does comes between any two steps of a worker: a changelog record is appended some time after it was handed
over, and its confirmation arrives some time after that. Meanwhile anybody may crash, be expelled, take over. Three
simplifications lose nothing. Rankings are out when their confirmation arrives: who crashes between loses them, which is
the worse case. Between two awaits a worker runs undivided, since what it does there reaches only itself. An expelled
worker fetches nothing more: it may as well have fetched before.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from deploy.demo.oracle import Expected, Published, mismatches, recompute
from schemas.messages.forget import decode_forget
from schemas.messages.ranking import Ranking, RankingReason
from schemas.messages.source import Source
from stream_app.core.state_codec import decode_state, row_offset
from stream_app.kafka.click_reader import Record
from tests.proof.worker import MODELS, Broken, Input, Lived, Records, Start, Store, click_log, live, restored
from tests.unit.records import record

_NAMES = "AB"
_BY_VERSION = {model.version: model for model in MODELS}


@dataclass(frozen=True)
class Scope:
    """How much may happen.

    Attributes:
        clicks: see `click_log`.
        workers: one or two, of which one has the partition.
        crashes: kills, each followed by a start.
        wipes: crashes with which the data folder is lost or goes back to the worker's last rest.
        expelled: workers that are frozen or cut off until another has their partition.
        rebalances: partitions that move in good order.
        swaps: of the model, of all workers together.
        at_once: records that a restore applies together.
    """

    clicks: str
    workers: int = 2
    crashes: int = 0
    wipes: int = 0
    expelled: int = 0
    rebalances: int = 0
    swaps: int = 0
    at_once: int = 1_000


class Worker(NamedTuple):
    """One worker, as the group and the disk have it.

    Attributes:
        stage: `down`, `idle` (without a partition), `restoring`, `live`, `leaving` (in a rebalance) or `lost` (it has
            heard that it is expelled).
        store: what is on disk where it does not live.
        end: of the changelog, when the partition was assigned.
        start: where its present life began, and `inputs` what has happened to it since.
        offsets: of its records that the changelog has, those of this life.
        told: how many of these are confirmed.
    """

    stage: str = "down"
    store: Store = Store()
    end: int = 0
    start: Start | None = None
    inputs: tuple[Input, ...] = ()
    offsets: tuple[int, ...] = ()
    told: int = 0

    @property
    def lives(self) -> bool:
        """Whether it takes and settles clicks."""
        return self.stage in ("live", "leaving", "lost")

    @property
    def out(self) -> int:
        """How many of its rankings are confirmed, those of this life."""
        return max((told[0] for name, *told in self.inputs if name == "rankings"), default=0)


class Left(NamedTuple):
    """What may still happen, as `Scope` has it."""

    crashes: int
    wipes: int
    expelled: int
    rebalances: int
    swaps: int


class State(NamedTuple):
    """Kafka, the workers, and what may still happen.

    Attributes:
        out: offsets of clicks whose rankings are out.
        owner: the worker to which the coordinator gave the partition.
        late: records of crashed workers that are still on their way to the changelog.
    """

    left: Left
    workers: tuple[Worker, ...]
    changelog: Records = ()
    out: frozenset[int] = frozenset()
    committed: int = 0
    owner: int | None = None
    late: tuple[Records, ...] = ()


@dataclass(frozen=True)
class Found:
    """What the exploration came to.

    Attributes:
        states: how many there are.
        ends: of those from which nothing goes on by itself.
        broken: the promise that is not kept, with the steps to it; None if all are.
    """

    states: int
    ends: int
    broken: str | None
    steps: tuple[str, ...] = ()


def explore(scope: Scope, *, writes_of_others: bool = False) -> Found:
    """Go through all states; stops at the first that breaks a promise.

    Args:
        scope: how much may happen.
        writes_of_others: whether a worker may write to its RocksDB after another has taken over: only for what
            follows from it.
    """
    explorer = _Explorer(scope, writes_of_others)
    before: dict[State, tuple[State, str] | None] = {explorer.first: None}
    waiting, ends = deque([explorer.first]), 0
    while waiting:
        state = waiting.popleft()
        try:
            goes_on = False
            for step, after, by_itself in explorer.steps(state):
                goes_on |= by_itself
                if after not in before:
                    explorer.trying = step
                    explorer.check(after)
                    before[after] = state, step
                    waiting.append(after)
            if not goes_on:
                explorer.trying = "nothing more comes by itself"
                explorer.check_end(state)
                ends += 1
        except Broken as broken:
            return Found(len(before), ends, str(broken), (*_way(before, state), explorer.trying))
    return Found(len(before), ends, None)


def _way(before: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    steps: list[str] = []
    while (link := before[state]) is not None:
        state, step = link
        steps.append(step)
    return tuple(reversed(steps))


class _Explorer:
    """The steps of a scope and its promises."""

    def __init__(self, scope: Scope, writes_of_others: bool) -> None:
        self.scope = scope
        self.writes_of_others = writes_of_others
        self.clicks = click_log(scope.clicks)
        self.oracle = _Oracle(self.clicks)
        self.trying = ""
        left = Left(scope.crashes, scope.wipes, scope.expelled, scope.rebalances, scope.swaps)
        first = Worker("live", start=Start(Store(), -1, 0, 0))
        self.first = State(left, (first, *[Worker("idle")] * (scope.workers - 1)), owner=0)
        # Of this exploration alone: another may have other code under it.
        self.live = cache(self._live)
        self.restored = cache(restored)

    def _live(self, start: Start, inputs: tuple[Input, ...]) -> Lived:
        lived = live(start, self.clicks, inputs)
        for key, ranking in lived.rankings:
            if ranking is not None:
                self.oracle.check_ranking(key, ranking)
        for key, row in lived.changelog:
            if row is not None:
                self.oracle.check_row(key, row)
        self.oracle.check_holds("acknowledged, and not in RocksDB", lived.store, lived.acked)
        return lived

    # -- steps --------------------------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[tuple[str, State, bool]]:
        """What may happen next, the state after it, and whether it comes by itself."""
        for place, worker in enumerate(state.workers):
            for step, after, by_itself in self._steps_of(state, place, worker):
                yield f"{_NAMES[place]} {step}", after, by_itself
        if state.left.swaps:
            yield "a model is announced", state._replace(left=state.left._replace(swaps=state.left.swaps - 1)), False
        for at, (first, *rest) in enumerate(state.late):
            others = state.late[:at] + state.late[at + 1 :]
            late = (*others, tuple(rest)) if rest else others
            yield (
                "a crashed worker's record arrives",
                state._replace(changelog=(*state.changelog, first), late=late),
                False,
            )

    def _steps_of(self, state: State, place: int, worker: Worker) -> Iterator[tuple[str, State, bool]]:
        mine, left = state.owner == place, state.left
        if worker.stage == "down":
            stage = "restoring" if mine else "idle"
            yield "starts", _with(state, place, worker._replace(stage=stage, end=len(state.changelog))), True
            if mine:
                yield "is missed", self._handed_on(state, place), False
            return
        if worker.stage == "idle" and state.owner is None:
            yield "gets the partition", _assigned(state, place), True
        if worker.stage == "restoring":
            yield "restores", self._restored(state, place, worker), True
        if left.crashes and (worker.lives or worker.stage == "restoring"):
            for step, after in self._crashed(state, place, worker):
                yield step, after, False
        if worker.lives:
            yield from self._steps_of_settling(state, place, worker)
            yield from self._steps_of_membership(state, place, worker)

    def _steps_of_settling(self, state: State, place: int, worker: Worker) -> Iterator[tuple[str, State, bool]]:
        lived = self._lived(worker)
        assert worker.start is not None
        if worker.stage == "live" and state.owner == place:
            position = worker.start.position + sum(told[0] for name, *told in worker.inputs if name == "fetch")
            for count in range(1, len(self.clicks) - position + 1):
                yield f"fetches {count}", self._went_on(state, place, worker, "fetch", count), True
        if worker.start.model + worker.inputs.count(("swap",)) < self._announced(state):
            yield "takes the new model", self._went_on(state, place, worker, "swap"), False
        if len(lived.rankings) > worker.out:
            yield "has rankings confirmed", self._rankings_out(state, place, worker, lived), True
        if len(lived.changelog) > len(worker.offsets):
            yield "has a row appended", self._appended(state, place, worker, lived), True
        if len(worker.offsets) > worker.told:
            offsets = worker.offsets[worker.told :]
            after = self._went_on(state, place, worker._replace(told=len(worker.offsets)), "changelog", *offsets)
            yield "has rows confirmed", after, True

    def _steps_of_membership(self, state: State, place: int, worker: Worker) -> Iterator[tuple[str, State, bool]]:
        mine, left = state.owner == place, state.left
        lived = self._lived(worker)
        if mine and lived.acked > state.committed:
            yield "commits", state._replace(committed=lived.acked), True
        if mine and worker.stage != "lost" and left.expelled:
            cut = self._went_on(state, place, worker, "cut")
            handed_on = self._handed_on(cut._replace(left=left._replace(expelled=left.expelled - 1)), place)
            yield "is expelled and does not know", handed_on, False
        if not mine and worker.stage != "lost":
            heard = self._went_on(state, place, worker._replace(stage="lost"), "lost")
            if len(lived.rankings) > worker.out:  # what confirms them may as well come now as later
                heard = self._rankings_out(heard, place, heard.workers[place], lived)
            yield "hears that it is expelled", heard, True
        if worker.stage == "lost" and not lived.in_flight:
            yield "joins anew", _with(state, place, Worker("idle", lived.store)), True
        if mine and worker.stage == "live" and left.rebalances:
            after = _with(state, place, worker._replace(stage="leaving"))
            yield "is asked to join anew", after._replace(left=left._replace(rebalances=left.rebalances - 1)), False
        if mine and worker.stage == "leaving" and not lived.in_flight:
            rested = _with(state, place, Worker("idle", lived.store))._replace(
                committed=max(state.committed, lived.acked)
            )
            for other, another in enumerate(rested.workers):
                if another.stage == "idle":
                    yield f"hands over to {_NAMES[other]}", _assigned(rested, other), True

    def _announced(self, state: State) -> int:
        return self.scope.swaps - state.left.swaps

    def _lived(self, worker: Worker) -> Lived:
        assert worker.start is not None
        return self.live(worker.start, worker.inputs)

    def _went_on(self, state: State, place: int, worker: Worker, *told: object) -> State:
        """Something happened to a worker; one that is at rest begins a new life there."""
        before = self._lived(worker)
        self.trying = f"{_NAMES[place]}: {' '.join(map(str, told))}"
        worker = worker._replace(inputs=(*worker.inputs, told))
        lived = self._lived(worker)
        if state.owner != place and len(lived.changelog) > len(before.changelog):
            raise Broken("a worker sends rows to the changelog though another may have taken the partition over")
        if lived.store != before.store:
            if state.owner != place and not self.writes_of_others:
                raise Broken("RocksDB got a row after another worker had taken the partition over")
            self._check_store(state, lived.store)
        if lived.rest is not None and len(worker.offsets) == len(lived.changelog):
            worker = worker._replace(start=lived.rest, inputs=(), offsets=(), told=0)
        return _with(state, place, worker)

    def _restored(self, state: State, place: int, worker: Worker) -> State:
        start = self.restored(worker.store, state.changelog, worker.end, at_once=self.scope.at_once)
        start = start._replace(position=state.committed, model=self._announced(state))
        self._check_store(state, start.store)
        return _with(state, place, Worker("live", start.store, start=start))

    def _crashed(self, state: State, place: int, worker: Worker) -> Iterator[tuple[str, State]]:
        store, late, left = worker.store, state.late, state.left
        if worker.lives:
            lived = self._lived(worker)
            store = lived.store
            if unsent := lived.changelog[len(worker.offsets) :]:
                late = (*late, unsent)
        after = state._replace(late=late, left=left._replace(crashes=left.crashes - 1))
        yield "is killed", _with(after, place, Worker("down", store))
        if left.wipes:
            after = after._replace(left=after.left._replace(wipes=left.wipes - 1))
            yield "is killed and loses its folder", _with(after, place, Worker("down"))
            if worker.start is not None and worker.start.store != store:
                yield "is killed and its folder goes back", _with(after, place, Worker("down", worker.start.store))

    def _rankings_out(self, state: State, place: int, worker: Worker, lived: Lived) -> State:
        new = [ranking.source.offset for _, ranking in lived.rankings[worker.out :] if ranking is not None]
        if not self.scope.crashes and not self.scope.expelled and state.out & set(new):
            raise Broken("a ranking was published twice, and nobody crashed")
        if not self.scope.expelled:
            for offset in new:
                later = [
                    other for other in state.out if other > offset and self.clicks[other].key == self.clicks[offset].key
                ]
                if offset not in state.out and later:
                    raise Broken("a session's rankings come out of order")
        after = state._replace(out=state.out | set(new))
        return self._went_on(after, place, worker, "rankings", len(lived.rankings))

    def _appended(self, state: State, place: int, worker: Worker, lived: Lived) -> State:
        key, row = lived.changelog[len(worker.offsets)]
        if row is not None and (missing := self.oracle.clicks_below(row_offset(row) + 1, key) - state.out):
            raise Broken(f"a durable row is ahead of the rankings of {sorted(missing)}")
        after = state._replace(changelog=(*state.changelog, (key, row)))
        return _with(after, place, worker._replace(offsets=(*worker.offsets, len(state.changelog))))

    def _handed_on(self, state: State, place: int) -> State:
        for other, worker in enumerate(state.workers):
            if other != place and worker.stage == "idle":
                return _assigned(state, other)
        return state._replace(owner=None)

    # -- promises -----------------------------------------------------------------------------------------------------

    def check(self, state: State) -> None:
        """What must hold in every state, whatever comes next."""
        if missing := self.oracle.clicks_below(state.committed) - state.out:
            raise Broken(f"clicks {sorted(missing)} are acknowledged and have no ranking")
        rows = self.restored(Store(), state.changelog, len(state.changelog), at_once=self.scope.at_once).store
        self.oracle.check_holds("acknowledged, and not in the changelog", rows, state.committed)

    def _check_store(self, state: State, store: Store) -> None:
        rows = dict(store.rows)
        if set(store.rows) - set(state.changelog):
            raise Broken("RocksDB has a row that the changelog has not")
        for key, row in state.changelog[: 0 if store.covered is None else store.covered + 1]:
            if row is not None and (key not in rows or row_offset(rows[key]) < row_offset(row)):
                raise Broken("the store vouches for a changelog record that it has not")

    def check_end(self, state: State) -> None:
        """When nothing goes on by itself, all is done, and every copy of the table is what the clicks lead to."""
        if state.committed != len(self.clicks) or state.owner is None:
            raise Broken("nothing goes on, and not all is acknowledged")
        for worker in state.workers:
            store = worker.store if worker.start is None else worker.start.store
            rows = self.restored(store, state.changelog, len(state.changelog), at_once=self.scope.at_once).store
            self.oracle.check_holds("lost when a store is brought up to date", rows, state.committed)


class _Oracle:
    """What the clicks lead to, one at a time, by `deploy.demo.oracle`."""

    def __init__(self, clicks: tuple[Record, ...]) -> None:
        self._clicks = clicks
        self._is_click = [decode_forget(click.key, click.value) is None for click in clicks]
        self._records = [record(click.offset, click.key, click.value) for click in clicks]
        self._right: set[tuple[bytes, bytes]] = set()  # rows
        self._answered: set[Ranking] = set()

    def clicks_below(self, offset: int, key: bytes | None = None) -> set[int]:
        """Offsets of the clicks below this one, of one session or of all."""
        return {n for n in range(offset) if self._is_click[n] and key in (None, self._clicks[n].key)}

    def check_ranking(self, key: bytes, ranking: Ranking) -> None:
        """It is that of its session's clicks up to its own, by the model that it names."""
        if ranking not in self._answered:
            at = ranking.source.offset
            if key != self._clicks[at].key or (0, at) in self._expected(at, ranking).wrong_rankings:
                raise Broken(f"the ranking of click {at} is wrong")
            self._answered.add(ranking)

    def check_row(self, key: bytes, row: bytes) -> None:
        """It is that of its session's clicks up to its offset."""
        if (key, row) not in self._right:
            state = decode_state(row)
            ranking = Ranking(
                "s", None, "i", state.model_version or "v0", (), Source("clicks", 0, 0), 0, 0, RankingReason.MODEL
            )
            expected = self._expected(state.offset, ranking).rows
            name = key.decode()
            if wrong := mismatches({name: expected[name]} if name in expected else {}, {name: state}):
                raise Broken(f"a row is wrong: {wrong[0]}")
            self._right.add((key, row))

    def _expected(self, last: int, ranking: Ranking) -> Expected:
        """What the clicks up to `last` lead to by the model of this ranking, which stands for all of theirs."""
        return recompute(self._records[: last + 1], Published({(0, n): ranking for n in range(last + 1)}), _BY_VERSION)

    def check_holds(self, what: str, store: Store, below: int) -> None:
        """The store's rows are those of all clicks below this offset, or later ones."""
        rows = dict(store.rows)
        for key, last in {click.key or b"": click.offset for click in self._clicks[:below]}.items():
            if key not in rows or row_offset(rows[key]) < last:
                raise Broken(f"{what}: click {last}")


def _with(state: State, place: int, worker: Worker) -> State:
    return state._replace(workers=(*state.workers[:place], worker, *state.workers[place + 1 :]))


def _assigned(state: State, place: int) -> State:
    worker = state.workers[place]._replace(stage="restoring", end=len(state.changelog))
    return _with(state, place, worker)._replace(owner=place)
