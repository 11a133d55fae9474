"""What came of a run, from its history alone."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.harness.history import as_bytes
from tests.harness.oracle import Catalogue, Click, Model, Row, click_of, decode_row, variant_of, wrong

Position = tuple[int, int]
"""Partition and offset of a click."""
CHANGELOG: Final = "changelog"
SLOW_SECONDS: Final = 1.0
LONG_SESSION: Final = 1_000
"""Clicks of a session that is told of: no visitor of the shop has so many."""
_SHOWN: Final = 5
_ALONE: Final = (("champion", 100),)


@dataclass
class Verdict:
    """Findings by kind, each a line; a run without any kept the promises.

    Attributes:
        clicks: valid records of the clicks topic.
        expired: clicks that retention removed before they were acknowledged, and that nobody ranked.
        repeats: rankings beyond one a click; `may_repeat` is how many there may be.
        unclean: workers that had no chance to finish.
        actions: what the nemesis did, by name.
        recovery: the longest time, in seconds, from a mend until no click waits longer than `SLOW_SECONDS`.
        latency: seconds from sending a click to receiving its ranking: median and 99th percentile.
    """

    clicks: int = 0
    expired: int = 0
    repeats: int = 0
    may_repeat: int = 0
    unclean: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    recovery: float = 0.0
    latency: tuple[float, float] = (0.0, 0.0)
    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __str__(self) -> str:
        lines = [
            f"{self.clicks:,} clicks, {self.unclean} ends unclean, {self.repeats} of {self.may_repeat} repeats, "
            f"recovery {self.recovery:.1f} s"
        ]
        for kind, told in sorted(self.found.items()):
            lines += [f"{kind}: {len(told)}", *(f"    {line}" for line in told[:_SHOWN])]
        return "\n".join(lines)


@dataclass
class _Models(dict[str, Model]):
    """The models that ranked, by version; others may be damaged."""

    paths: dict[str, Path] = field(default_factory=dict)

    def __missing__(self, version: str) -> Model:
        self[version] = Model(self.paths[version])
        return self[version]


@dataclass
class _Read:
    """A history, sorted."""

    settings: dict[str, Any] = field(default_factory=dict)
    models: _Models = field(default_factory=_Models)
    sent: dict[str, float] = field(default_factory=dict)
    acknowledged: dict[str, Position] = field(default_factory=dict)
    received: dict[Position, list[tuple[float, Mapping[str, Any]]]] = field(default_factory=lambda: defaultdict(list))
    order: list[tuple[str, Position]] = field(default_factory=list)
    nemesis: list[Mapping[str, Any]] = field(default_factory=list)
    clicks: dict[int, list[tuple[int, bytes, bytes | None]]] = field(default_factory=lambda: defaultdict(list))
    rejected: set[Position] = field(default_factory=set)
    rows: dict[str, list[tuple[int, int, str, Row | None]]] = field(default_factory=lambda: defaultdict(list))
    shadows: dict[Position, list[Mapping[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    recovered: list[float] = field(default_factory=list)
    named: dict[Position, list[tuple[str, str, Row]]] = field(default_factory=lambda: defaultdict(list))
    """Rows by the click that they name, but for those whose click Kafka has lost."""
    lost: dict[int, list[tuple[int, Mapping[str, Row]]]] = field(default_factory=lambda: defaultdict(list))
    """By partition, from which offset on, and the newest rows of sessions that name a click from there on."""
    of_lost: set[tuple[int, str, str]] = field(default_factory=set)
    covered: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    committed: list[tuple[int, int, int]] = field(default_factory=list)
    expired: list[tuple[int, int, int]] = field(default_factory=list)
    told: Counter[int] = field(default_factory=Counter)
    in_flight: list[tuple[int, int, int]] = field(default_factory=list)
    """Clicks that a worker may have had when another may have replaced it: partition, first, and one behind them."""
    parts: list[Mapping[str, Any]] = field(default_factory=list)
    catalogue: Catalogue = field(default_factory=Catalogue)
    splits: list[Sequence[tuple[str, int]]] = field(default_factory=lambda: [()])
    """One after the other, and before each one the champion alone: until the model of a variant is loaded."""
    anew: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    applied: set[int] = field(default_factory=set)
    """Partitions of which a ranking says what items and rules it keeps to."""
    not_applied: list[Position] = field(default_factory=list)
    """Rankings that do not say it, behind such a one: workers without items and rules were started before."""
    ended: bool = False

    def take(self, line: Mapping[str, Any]) -> None:
        """One line of the history."""
        getattr(self, f"_{line['what']}")(line)

    def _setting(self, line: Mapping[str, Any]) -> None:
        self.settings[line["name"]] = line["value"]

    def _model(self, line: Mapping[str, Any]) -> None:
        self.models.paths[line["version"]] = Path(line["path"])

    def _sent(self, line: Mapping[str, Any]) -> None:
        self.sent[line["event"]] = line["at"]

    def _acknowledged(self, line: Mapping[str, Any]) -> None:
        self.acknowledged[line["event"]] = line["partition"], line["offset"]

    def _received(self, line: Mapping[str, Any]) -> None:
        ranking = line["ranking"]
        position = ranking["source"]["partition"], ranking["source"]["offset"]
        if position not in self.received:
            self.order.append((ranking["session_id"], position))
        self.received[position].append((line["at"], ranking))
        if ranking.get("applied") is not None:
            self.applied.add(position[0])
        elif position[0] in self.applied:
            self.not_applied.append(position)

    def _shadow(self, line: Mapping[str, Any]) -> None:
        self.shadows[line["partition"], line["offset"]].append(line["ranking"])

    def _recovered(self, line: Mapping[str, Any]) -> None:
        self.recovered.append(line["seconds"])

    def _nemesis(self, line: Mapping[str, Any]) -> None:
        self.nemesis.append(line)

    def _click(self, line: Mapping[str, Any]) -> None:
        value = None if line["value"] is None else as_bytes(line["value"])
        self.clicks[line["partition"]].append((line["offset"], as_bytes(line["key"]), value))

    def _rejected(self, line: Mapping[str, Any]) -> None:
        self.rejected.add((line["partition"], line["offset"]))

    def _row(self, line: Mapping[str, Any]) -> None:
        where, partition, key, text = line["where"], line["partition"], line["key"], line["row"]
        row = None if text is None else decode_row(as_bytes(text))
        self.rows[where].append((partition, line["offset"], key, row))
        if row is not None and (partition, key, text) not in self.of_lost:
            self.named[partition, row.offset].append((where, key, row))

    def _lost(self, line: Mapping[str, Any]) -> None:
        partition, begin = line["partition"], line["offset"]

        def is_left(position: Position) -> bool:
            return position < (partition, begin) or position[0] > partition

        self.acknowledged = {event: at for event, at in self.acknowledged.items() if is_left(at)}
        self.order = [(session_id, at) for session_id, at in self.order if is_left(at)]
        for position in [position for position in self.received if not is_left(position)]:
            del self.received[position]
        # What was lost before that, and from there on, is no part of the topic any more.
        before = [one for one in self.lost[partition] if one[0] < begin]
        self.of_lost |= {(partition, key, text) for key, text in line["rows"]}
        newest = {key: decode_row(as_bytes(text)) for key, text in line["newest"].items()}
        self.lost[partition] = [*before, (begin, newest)]

    def _covered(self, line: Mapping[str, Any]) -> None:
        self.covered[line["where"]][line["partition"]] = line["offset"]

    def _committed(self, line: Mapping[str, Any]) -> None:
        self.committed.append((line["partition"], line["offset"], line["end"]))

    def _expired(self, line: Mapping[str, Any]) -> None:
        self.expired.append((line["partition"], line["first"], line["below"]))

    def _in_flight(self, line: Mapping[str, Any]) -> None:
        self.in_flight.append((line["partition"], line["first"], line["below"]))

    def _told(self, line: Mapping[str, Any]) -> None:
        self.told[line["partition"]] += line["expired"]

    def _catalogue(self, line: Mapping[str, Any]) -> None:
        value = None if line["value"] is None else as_bytes(line["value"])
        self.catalogue.records[line["topic"]].append((line["offset"], line["key"], value))

    def _split(self, line: Mapping[str, Any]) -> None:
        self.splits += [_ALONE, tuple(map(tuple, line["shares"]))]

    def _part(self, line: Mapping[str, Any]) -> None:
        self.parts.append(line)

    def _anew(self, line: Mapping[str, Any]) -> None:
        self.anew[line["partition"]].append(line["offset"])

    def _end(self, line: Mapping[str, Any]) -> None:
        self.ended = True


def judge(history: Iterable[Mapping[str, Any]]) -> Verdict:
    """Reach the verdict on a run."""
    read, verdict = _Read(), Verdict()
    for line in history:
        read.take(line)
    if not read.ended:
        verdict.found["incomplete history"].append("it has no end")
    last = _replay(read, verdict)
    _judge_last_rows(read, verdict, last)
    longest = max((row.clicks for rows in last.values() for row in rows), default=0)
    if longest >= LONG_SESSION:
        verdict.actions["clicks of one session"] = longest
    _judge_what_arrived(read, verdict)
    _judge_catalogue(read, verdict)
    _judge_variants(read, verdict)
    for part in read.parts:
        if part["wrong"] or not part["compared"]:
            verdict.found[f"wrong {part['name']}"] += part["told"] or ["there was nothing to compare"]
    _judge_order(read, verdict)
    _judge_repeats(read, verdict)
    _time(read, verdict)
    return verdict


def _replay(read: _Read, verdict: Verdict) -> dict[str, list[Row]]:
    """Go through all clicks, and compare each ranking and each row, wherever it lies, with what it must be.

    Of a click that was ranked twice, by two models, either may be what the session went on from: then there is more
    than one row that it may have. Returns those after each session's last click.
    """
    found = read.named
    last: dict[str, list[Row]] = {}
    serving = read.models[next(iter(read.models.paths))]
    for partition in sorted(read.clicks):
        of_partition: dict[str, list[Row]] = {}
        lost, of_lost = read.lost[partition][::-1], dict[str, Row]()
        for offset, click, rankings in _valid(read, verdict, partition):
            if click is None:
                of_partition.clear()
                continue
            _go_on_from_lost(offset, click.session_id, lost, of_lost, of_partition)
            models = {ranking["model_version"]: read.models[ranking["model_version"]] for _, ranking in rankings}
            serving = next(reversed(models.values()), serving)
            before: Sequence[Row | None] = of_partition.get(click.session_id) or [None]
            after = {
                version: _different([model.after(row, click, offset) for row in before])
                for version, model in (models or {serving.version: serving}).items()
            }
            for _, ranking in rankings:
                version = ranking["model_version"]
                hidden = read.catalogue.hidden(ranking.get("applied"), models[version].items, ranking["produced_at"])
                why = [wrong(ranking, click, row, models[version], hidden) for row in after[version]]
                if all(why):
                    verdict.found["wrong ranking"].append(f"{partition}@{offset} of {click.session_id}: {why[0]}")
            for ranking in read.shadows[partition, offset]:
                _judge_shadow(ranking, click, offset, before, read=read, verdict=verdict)
            of_partition[click.session_id] = may_be = _different([row for rows in after.values() for row in rows])
            for where, its_key, row in found.pop((partition, offset), []):
                if its_key != click.session_id or not any(row.is_like(one) for one in may_be):
                    verdict.found["wrong row"].append(f"{where}: {its_key} after {partition}@{offset}")
        last |= of_partition
    for (partition, offset), rows_there in found.items():
        told = [f"{where}: {key} names {partition}@{offset}, where no click is" for where, key, _ in rows_there]
        verdict.found["wrong row"] += told
    return last


def _valid(
    read: _Read, verdict: Verdict, partition: int
) -> Iterator[tuple[int, Click | None, Sequence[tuple[float, Mapping[str, Any]]]]]:
    """A partition's clicks with their rankings, in order; no click where all sessions begin anew."""
    anew = sorted(read.anew[partition], reverse=True)
    gone = 0
    for offset, key, value in read.clicks[partition]:
        while anew and offset >= anew[-1]:
            yield anew.pop(), None, ()
        click, rankings = click_of(key, value), read.received.get((partition, offset), [])
        if click is None:
            if (partition, offset) not in read.rejected:
                verdict.found["lost"].append(f"{partition}@{offset} is not valid, and not among the rejected")
            continue
        verdict.clicks += 1
        if not rankings and any(its == partition and first <= offset < below for its, first, below in read.expired):
            gone += 1
            continue
        if not rankings:
            verdict.found["lost"].append(f"{partition}@{offset} of {click.session_id} has no ranking")
        yield offset, click, rankings
    for offset in anew:
        yield offset, None, ()
    verdict.expired += gone
    if gone > read.told[partition]:
        told = f"of partition {partition} {gone} clicks expired, workers told of {read.told[partition]}"
        verdict.found["not told"].append(told)


def _go_on_from_lost(
    offset: int,
    session_id: str,
    lost: list[tuple[int, Mapping[str, Row]]],
    of_lost: dict[str, Row],
    of_partition: dict[str, list[Row]],
) -> None:
    """Where Kafka has lost clicks, sessions whose rows name one have no others; they begin anew at an offset below."""
    while lost and offset >= lost[-1][0]:
        of_lost |= lost.pop()[1]
        for gone in of_lost:
            of_partition.pop(gone, None)
    if (row := of_lost.pop(session_id, None)) is not None and row.offset < offset:
        of_partition[session_id] = [row]


def _judge_shadow(
    ranking: Mapping[str, Any],
    click: Click,
    offset: int,
    before: Sequence[Row | None],
    *,
    read: _Read,
    verdict: Verdict,
) -> None:
    """A shadow ranks from the row that its session had before the click, and names the click that this row names."""
    model, why = read.models[ranking["model_version"]], []
    hidden = read.catalogue.hidden(ranking.get("applied"), model.items, ranking["produced_at"])
    for row in before:
        if ranking["follows"] == (-1 if row is None else row.offset):
            why.append(wrong(ranking, click, model.after(row, click, offset), model, hidden))
    verdict.actions["ranked by a shadow"] += 1
    if all(why):
        told = why[0] if why else f"it follows {ranking['follows']}"
        verdict.found["wrong ranking"].append(f"a shadow's at {offset} of {click.session_id}: {told}")


def _different(rows: Iterable[Row]) -> list[Row]:
    kept: list[Row] = []
    for row in rows:
        if not any(row.is_like(one) for one in kept):
            kept.append(row)
    return kept


def _judge_last_rows(read: _Read, verdict: Verdict, last: Mapping[str, Sequence[Row]]) -> None:
    """The changelog alone, and each RocksDB with the changelog behind what it covers, lead to every session's last row.

    The RocksDB of the worker that was stopped last, with all partitions its own, has them already.
    """
    tables: dict[str, list[tuple[int, int, str, Row | None]]] = {CHANGELOG: read.rows[CHANGELOG]}
    for where, rows in read.rows.items():
        if where != CHANGELOG:
            covered = read.covered[where]
            behind = [one for one in read.rows[CHANGELOG] if one[1] > covered.get(one[0], -1)]
            tables[f"{where}, restored"] = rows + behind
    holder = read.settings.get("holder")
    if holder is not None:
        tables[holder] = read.rows[holder]
    for where, rows in tables.items():
        newest: dict[str, Row] = {}
        for _, _, key, row in rows:
            if row is None:
                newest.pop(key, None)
            elif key not in newest or newest[key].offset <= row.offset:
                newest[key] = row
        for session_id, may_be in last.items():
            if session_id not in newest:
                verdict.found["wrong row"].append(f"{where}: {session_id} has none")
            elif not any(newest[session_id].is_like(row) for row in may_be):
                verdict.found["wrong row"].append(f"{where}: {session_id} is not after its last click")


def _judge_what_arrived(read: _Read, verdict: Verdict) -> None:
    """What Kafka confirmed is there; what was ranked was a click, what was rejected none; all is acknowledged."""
    there = {
        (partition, offset): click_of(key, value)
        for partition, records in read.clicks.items()
        for offset, key, value in records
    }
    for event, position in read.acknowledged.items():
        if position not in there:
            verdict.found["lost"].append(f"click {event} was confirmed by Kafka, and is not in the topic")
    for position in read.received:
        if there.get(position) is None:
            verdict.found["wrong ranking"].append(f"{position} is no click")
    for position in read.rejected:
        if position not in there or there[position] is not None:
            verdict.found["wrong ranking"].append(f"{position} was rejected, and is a click")
    for partition, offset, end in read.committed:
        if offset != end:
            verdict.found["lost"].append(f"partition {partition} is acknowledged up to {offset}, and ends at {end}")


def _judge_catalogue(read: _Read, verdict: Verdict) -> None:
    """Once workers keep to items and rules, each ranking does, and some keep to the last records of both."""
    told = [ranking.get("applied") for rankings in read.received.values() for _, ranking in rankings]
    applied = {(one["items"], one["rules"]) for one in told if one is not None}
    newest = tuple(max((offset for offset, *_ in its), default=-1) for its in read.catalogue.records.values())
    if newest not in {*applied, (-1, -1)}:
        verdict.found["not applied"].append(f"items and rules up to {newest}")
    for position in read.not_applied:
        verdict.found["not applied"].append(f"{position} is ranked without items and rules")


def _judge_variants(read: _Read, verdict: Verdict) -> None:
    """The rankings of a partition keep to one split after the other; a click that was ranked twice, once at least."""
    at: Counter[int] = Counter()
    for (partition, offset), rankings in sorted(read.received.items()):
        session_id, variants = rankings[0][1]["session_id"], {ranking.get("variant") for _, ranking in rankings}
        left = range(at[partition], len(read.splits))
        counts = next((n for n in left if variant_of(session_id, read.splits[n]) in variants), None)
        if counts is None:
            told = f"{partition}@{offset} of {session_id} is ranked by {variants}"
            verdict.found["wrong variant"].append(f"{told}, as of split {at[partition]} and those behind it")
        else:
            at[partition] = counts


def _judge_order(read: _Read, verdict: Verdict) -> None:
    """A session's rankings come in the order of its clicks, but for repeats and what an expelled worker sent.

    What is promised less (docs/guarantees.md, the frozen worker): a worker that is frozen, cut off or without a broker
    may still send rankings of what it had in flight when another one has its partitions. Its successor ranks the same
    clicks, so either's may come first, and behind those of later clicks. Clicks of partitions that it did not have,
    those that were acknowledged before and those that came when it read no more must be in order in every run.
    """
    newest: dict[str, Position] = {}
    for session_id, position in read.order:
        before = newest.setdefault(session_id, position)
        if position < before and not _was_in_flight(position, read):
            verdict.found["out of order"].append(f"{session_id}: {position} came behind {before}")
        newest[session_id] = max(before, position)


def _was_in_flight(position: Position, read: _Read) -> bool:
    partition, offset = position
    return any(its == partition and first <= offset < below for its, first, below in read.in_flight)


def _judge_repeats(read: _Read, verdict: Verdict) -> None:
    """Only clicks that were in flight when a worker had no chance to finish them come twice."""
    verdict.unclean = sum(line.get("unclean", 0) for line in read.nemesis)
    verdict.may_repeat = verdict.unclean * int(read.settings["in_flight"])
    verdict.repeats = sum(len(rankings) - 1 for rankings in read.received.values())
    if verdict.repeats > verdict.may_repeat:
        verdict.found["too many repeats"].append(f"{verdict.repeats}, where {verdict.may_repeat} may be")


def _time(read: _Read, verdict: Verdict) -> None:
    verdict.actions.update(line["action"] for line in read.nemesis)
    verdict.recovery = max(read.recovered, default=0.0)
    waited = []
    for event, position in read.acknowledged.items():
        if position in read.received:
            waited.append((read.sent[event], read.received[position][0][0]))
    took = sorted(received - sent for sent, received in waited)
    if took:
        verdict.latency = took[len(took) // 2], took[len(took) * 99 // 100]
    ended = [line["at"] for line in read.nemesis if not line.get("healed")]
    late = [received for sent, received in waited if received - sent > SLOW_SECONDS]
    for mended in [line["at"] for line in read.nemesis if line.get("healed")]:
        until = min((at for at in ended if at > mended), default=float("inf"))
        last = max((received for received in late if mended < received < until), default=mended)
        verdict.recovery = max(verdict.recovery, last - mended)
