"""What the sessions table and the rankings must be: every session computed anew, one click at a time.

Deliberately naive and apart from the worker's own code: no chunks, no waves, batches of one. Faults must not show.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rocksdict
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition
from msgspec.structs import replace
from numpy.typing import NDArray

from schemas.bundle.runtime import Model
from schemas.messages.click import Click, ClickLimits, ClickRejectedError, decode_click
from schemas.messages.forget import decode_forget
from schemas.messages.ranking import Ranking, decode_ranking
from stream_app.core.session import SessionRules, SessionState
from stream_app.core.state_codec import decode_state
from stream_app.serve.app import tables_folder
from stream_app.state.store import SessionStore

Position = tuple[int, int]
"""Partition and offset of a click: its identity."""

_A_YEAR_SECONDS = 365 * 86_400
_HIDDEN_TOLERANCE = 2e-3
"""Float32 sums differ in their last bits with the batch that they were computed in. Where that tips the rounding to
half precision the other way, the states differ by 2^-11 of their size, of which the next click keeps a part."""
_SCORE_TOLERANCE = 1e-2
"""What such a difference may do to a score. A click too many or too few changes scores by far more."""


def read_topic(connection: Mapping[str, object], topic: str) -> Iterator[Message]:
    """Every committed record of the topic, each partition in order. `connection` is librdkafka's configuration."""
    consumer = Consumer(
        {
            **connection,
            "group.id": "oracle",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    try:
        partitions = consumer.list_topics(topic, timeout=60).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        unread = set(partitions)
        while unread:
            for message in consumer.consume(10_000, timeout=1.0):
                if message.error() is None:
                    yield message
                else:
                    unread.discard(message.partition())  # its end, or there is nothing to read
    finally:
        consumer.close()


@dataclass
class Published:
    """The rankings that consumers saw.

    Attributes:
        last: the last one published for each click; after a crash the earlier ones are duplicates.
        duplicates: how many there were beyond one a click.
    """

    last: dict[Position, Ranking] = field(default_factory=dict)
    duplicates: int = 0

    @classmethod
    def of(cls, records: Iterable[Message]) -> "Published":
        """Collect the records of the rankings topic."""
        published = cls()
        for record in records:
            value = record.value()
            if value is None:
                continue  # the session was forgotten
            ranking = decode_ranking(value)
            position = ranking.source.partition, ranking.source.offset
            published.duplicates += position in published.last
            published.last[position] = ranking
        return published


@dataclass
class Expected:
    """What must have come of the clicks.

    Attributes:
        clicks: number of accepted clicks.
        rejected: positions of the records that are no click.
        lost: clicks without a ranking.
        rows: the table's rows.
        wrong_rankings: positions whose ranking is not what their session leads to, among those that were checked.
    """

    clicks: int = 0
    rejected: set[Position] = field(default_factory=set)
    lost: list[Position] = field(default_factory=list)
    rows: dict[str, SessionState] = field(default_factory=dict)
    wrong_rankings: list[Position] = field(default_factory=list)


def recompute(
    clicks: Iterable[Message],
    published: Published,
    models: Mapping[str, Model],
    *,
    rules: SessionRules | None = None,
    limits: ClickLimits | None = None,
    check_every: int = 1,
    missing: Callable[[Ranking], str | None] = lambda _: None,
) -> Expected:
    """Compute every session one click at a time, each click with the model that its ranking names.

    Args:
        clicks: all records of the clicks topic, each partition in order.
        published: the rankings; they tell which model served which click.
        models: every model that served, by version.
        rules: the worker's idle gap and memory.
        limits: the worker's limits; a click from the future counts as accepted when it was answered.
        check_every: compare the ranking of each n-th click.
        missing: the item that a ranking must not hold, if any.
    """
    rules, limits = rules or SessionRules(), limits or ClickLimits()
    expected = Expected()
    for record in clicks:
        position = record.partition(), record.offset()
        try:
            click = decode_click(record.key(), record.value(), now_ms=2**62, limits=limits)
        except ClickRejectedError:
            request = decode_forget(record.key(), record.value())
            if request is None:
                expected.rejected.add(position)
            else:
                expected.rows[request.session_id] = SessionState("", position[1], 0, 0, (), None)
            continue
        expected.clicks += 1
        ranking = published.last.get(position)
        if ranking is None:
            expected.lost.append(position)
            continue
        model = models[ranking.model_version]
        state = _after(expected.rows.get(click.session_id), click, position[1], model, rules)
        expected.rows[click.session_id] = state
        if expected.clicks % check_every == 0 and not _is_answer(ranking, state, model, missing(ranking)):
            expected.wrong_rankings.append(position)
    return expected


def stored_rows(data_dir: Path) -> dict[str, SessionState]:
    """The table itself: the rows in the RocksDBs of a worker that has stopped."""
    rows: dict[str, SessionState] = {}
    for path in tables_folder(data_dir).glob("*.db"):
        with _opened(path) as db:
            rows |= _rows(db)
    return rows


@contextmanager
def _opened(path: Path) -> Iterator[rocksdict.Rdict]:
    # Opening may compact: with a shorter time to live, and 0 is the shortest, rows would be dropped on the way.
    access = rocksdict.AccessType.with_ttl(_A_YEAR_SECONDS)
    options = rocksdict.Options(raw_mode=True)
    # Its own options, not those that it finds there: see SessionStore.
    db = rocksdict.Rdict(str(path), options=options, column_families={"default": options}, access_type=access)
    try:
        yield db
    finally:
        db.close()


def _rows(db: rocksdict.Rdict) -> dict[str, SessionState]:
    return {key.decode(): decode_state(row) for key, row in db.items() if key != SessionStore.offset_key}


def restored_rows(data_dir: Path, changelog: Iterable[Message]) -> dict[str, SessionState]:
    """The table as a worker with this data folder would restore it: what its RocksDBs hold, and the changelog behind.

    Args:
        data_dir: of a worker that has stopped.
        changelog: all records of the changelog topic, each partition in order.
    """
    rows: dict[str, SessionState] = {}
    covered: dict[int, int] = {}
    for path in tables_folder(data_dir).glob("*.db"):
        partition = int(path.stem.rsplit("-", 1)[1])
        with _opened(path) as db:
            offset = db.get(SessionStore.offset_key)
            covered[partition] = -1 if offset is None else int(offset)
            rows |= _rows(db)
    for record in changelog:
        key, value = record.key(), record.value()
        assert key is not None
        if record.offset() <= covered.get(record.partition(), -1):
            continue
        if value is None:
            rows.pop(key.decode(), None)  # an operator deleted it
            continue
        state = decode_state(value)
        if key.decode() not in rows or rows[key.decode()].offset <= state.offset:
            rows[key.decode()] = state
    return rows


def mismatches(expected: Mapping[str, SessionState], found: Mapping[str, SessionState]) -> list[str]:
    """How the table differs from what it must be, one line a session."""
    lines = [f"{session_id}: a row that no click led to" for session_id in found.keys() - expected.keys()]
    for session_id, state in expected.items():
        row = found.get(session_id)
        if row is None:
            lines.append(f"{session_id}: no row")
            continue
        for name in ("model_version", "offset", "last_click", "clicks", "recent"):
            if getattr(row, name) != getattr(state, name):
                lines.append(f"{session_id}: {name} is {getattr(row, name)}, must be {getattr(state, name)}")
                break
        else:
            if not _close(row.hidden, state.hidden):
                lines.append(f"{session_id}: hidden state differs")
    return lines


def _after(row: SessionState | None, click: Click, offset: int, model: Model, rules: SessionRules) -> SessionState:
    if rules.advance_on is not None and (click.type or "view") not in rules.advance_on:
        return _unmoved(row or SessionState("", -1, 0, 0, (), None), offset, model)
    if row is None or click.timestamp - row.last_click > rules.idle_gap_ms:
        row = SessionState("", -1, click.timestamp, 0, (), None)
    hidden = None
    if model.encoder == "recurrent":
        hidden = row.hidden
        if row.model_version != model.states_of:
            hidden = None
            for item_id in row.recent:
                hidden = _step(model, item_id, hidden)
        hidden = _step(model, click.item_id, hidden)
    return SessionState(
        model_version="" if hidden is None else model.states_of,
        offset=offset,
        last_click=max(row.last_click, click.timestamp),
        clicks=row.clicks + 1,
        recent=(*row.recent, click.item_id)[-rules.recent_items :],
        hidden=hidden,
    )


def _unmoved(row: SessionState, offset: int, model: Model) -> SessionState:
    """The row after a click that does not move its session on: the same, as this model has it."""
    hidden = None
    if model.encoder == "recurrent" and row.model_version == model.version:
        hidden = row.hidden
    elif model.encoder == "recurrent":
        for item_id in row.recent:
            hidden = _step(model, item_id, hidden)
    return replace(row, offset=offset, model_version="" if hidden is None else model.version, hidden=hidden)


def _step(model: Model, item_id: str, hidden: NDArray[np.float16] | None) -> NDArray[np.float16] | None:
    """The state after a click, rounded to half precision as rows keep it."""
    index = model.vocabulary.index(item_id)
    if index is None:
        return hidden
    before = model.initial_hidden(1) if hidden is None else hidden[:, np.newaxis].astype(np.float32)  # [L, 1, H]
    return model.advance(np.array([index], dtype=np.int64), before)[0][:, 0].astype(np.float16)  # [L, H]


def _query(state: SessionState, model: Model) -> tuple[bool, NDArray[np.float32] | None]:
    """Whether the model knows anything of the session, and its query float32[1, D]."""
    if model.encoder == "recurrent":
        assert not model.own_query, "a query that is in no row cannot be checked from rows"
        return state.hidden is not None, None if state.hidden is None else state.hidden[-1:].astype(np.float32)
    last = state.recent[-(model.window or model.recent_size) :]
    items = [index for item_id in last if (index := model.vocabulary.index(item_id)) is not None]
    if model.encoder == "none" or not items:
        return bool(items), None
    return True, model.encode(np.array([items], dtype=np.int64), np.array([len(items)], dtype=np.int64))


def _is_answer(ranking: Ranking, state: SessionState, model: Model, missing: str | None) -> bool:
    is_known, query = _query(state, model)
    if not is_known:
        index, score = model.popular
    else:
        last = [model.vocabulary.index(item_id) for item_id in state.recent[-model.recent_size :]]
        known = [item for item in dict.fromkeys(reversed(last)) if item is not None]
        recent = np.full((1, model.recent_size), -1, dtype=np.int64)
        counts = np.zeros((1, model.recent_size), dtype=np.float32)
        recent[0, : len(known)] = known
        counts[0, : len(known)] = [last.count(item) for item in known]
        indices, scores = model.rank(query, recent, counts, np.array([state.clicks], dtype=np.float32))
        index, score = indices[0], scores[0]
    if missing is not None and (gone := model.vocabulary.index(missing)) is not None:
        index, score = index[index != gone], score[index != gone]
    # Neighbours whose scores are all but equal may change places between batches: the scores must agree place by place.
    published = np.array([item.score for item in ranking.items], dtype=np.float32)
    if not np.allclose(published, score[: len(published)], rtol=1e-3, atol=_SCORE_TOLERANCE):
        return False
    by_item = {model.vocabulary.item(int(i)): float(s) for i, s in zip(index, score, strict=True)}
    edge = float(score[-1]) + _SCORE_TOLERANCE
    return all(abs(by_item.get(item.item_id, edge) - item.score) < 2 * _SCORE_TOLERANCE for item in ranking.items)


def _close(a: NDArray[np.float16] | None, b: NDArray[np.float16] | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and np.allclose(a, b, atol=_HIDDEN_TOLERANCE)
