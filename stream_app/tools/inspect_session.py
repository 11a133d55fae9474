"""A session's row as people read it, from the table's changelog.

Not from RocksDB: the worker that serves the session holds a lock on it, perhaps on another host.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from confluent_kafka import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.kafka.topics import changelog_topic
from stream_app.core.session import SessionRules, SessionState, is_over
from stream_app.core.state_codec import decode_state
from stream_app.kafka.plain_consumer import PlainConsumer, partition_of, plain_consumer
from stream_app.settings import StreamSettings
from stream_app.tools.terminal import duration, shown, utc


@dataclass(frozen=True, slots=True)
class FoundRow:
    """The newest row of a session and where the changelog has it."""

    session_id: str
    state: SessionState
    partition: int
    changelog_offset: int
    written_at: int  # milliseconds since the epoch, by the broker's clock


def newest_row(session_id: str, records: Iterable[Message]) -> FoundRow | None:
    """The session's row among the records of a changelog partition, None when there is none.

    The newest is the one with the highest source offset: a worker that was cut off may have appended an older row
    behind its successor's. Raises RowError for a row that cannot be read.
    """
    key = session_id.encode()
    newest: FoundRow | None = None
    for record in records:
        if record.key() != key:
            continue
        value = record.value()
        if value is None:
            newest = None
            continue
        state = decode_state(value)
        if newest is None or state.offset >= newest.state.offset:
            newest = FoundRow(session_id, state, record.partition(), record.offset(), record.timestamp()[1])
    return newest


def find_row(session_id: str, settings: StreamSettings) -> FoundRow | None:
    """Read the changelog for a session. Raises ReadError, RowError."""
    app_id = settings.app_id
    with plain_consumer(settings.kafka, changelog_topic(app_id), name=f"{app_id}-inspect") as changelog:
        for partition in _likeliest_first(session_id, changelog):
            found = newest_row(session_id, changelog.history(partition))
            if found is not None:
                return found
    return None


def _likeliest_first(session_id: str, changelog: PlainConsumer) -> Sequence[int]:
    # A row lies in the partition of its clicks. Producers of clicks that do not hash as Java does put them elsewhere.
    home = partition_of(session_id.encode(), len(changelog.partitions))
    return sorted(changelog.partitions, key=lambda partition: partition != home)


def as_json(row: FoundRow) -> str:
    """The row as one JSON object."""
    state = row.state
    return msgspec.json.encode(
        {
            "session_id": row.session_id,
            "model_version": state.model_version or None,
            "clicks": state.clicks,
            "last_click": state.last_click,
            "recent": state.recent,
            **({"purchased": state.purchased} if state.purchased else {}),
            "hidden": None
            if state.hidden is None
            else {"layers": state.hidden.shape[0], "units": state.hidden.shape[1], "norm": _norms(state)},
            "source": {"partition": row.partition, "offset": state.offset},
            "changelog": {"offset": row.changelog_offset, "written_at": row.written_at},
        }
    ).decode()


def as_table(row: FoundRow, rules: SessionRules, now_ms: int) -> Table:
    """The row as a table for people."""
    state = row.state
    table = Table(title=Text.assemble("Session ", shown(row.session_id)), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    ago = duration(max(0, now_ms - state.last_click) / 1000)
    ended = "; a click now would start it anew" if is_over(state.last_click, now_ms, rules) else ""
    table.add_row("clicks", f"{state.clicks:,}")
    # A row of clicks that did not move the session on (clicks.advance_on) has no time.
    table.add_row("last click", f"{utc(state.last_click)} ({ago} ago{ended})" if state.clicks else "none yet")
    table.add_row(f"last {len(state.recent)} items", Text("  ").join(shown(item_id) for item_id in state.recent))
    if state.purchased:
        table.add_row("purchased", Text("  ").join(shown(item_id) for item_id in state.purchased))
    table.add_row("model", state.model_version or "none: its model knows no item of it, or keeps no hidden state")
    if state.hidden is not None:
        layers, units = state.hidden.shape
        norms = ", ".join(f"{norm:.3f}" for norm in _norms(state))
        table.add_row("hidden state", f"{layers} x {units}, length {norms}")
    table.add_row("applied up to", f"partition {row.partition}, offset {state.offset:,} of the clicks")
    table.add_row("written", f"{utc(row.written_at)}, changelog offset {row.changelog_offset:,}")
    return table


def _norms(state: SessionState) -> list[float]:
    """The Euclidean length of each layer's hidden state."""
    assert state.hidden is not None
    return [float(norm) for norm in np.linalg.norm(state.hidden.astype(np.float32), axis=1)]


def inspect_session(session_id: str, settings: StreamSettings, *, json: bool, out: Console, err: Console) -> int:
    """`stream-app inspect`: print the row; returns the exit code, 1 when there is none."""
    with err.status(f"reading {changelog_topic(settings.app_id)}"):
        row = find_row(session_id, settings)
    if row is None:
        err.print(no_row(session_id, settings), markup=False, highlight=False)
        return 1
    if json:
        print(as_json(row))
    else:
        rules = SessionRules(idle_gap_ms=settings.clicks.idle_gap_ms, recent_items=settings.worker.recent_items)
        out.print(as_table(row, rules, time.time_ns() // 1_000_000))
    return 0


def no_row(session_id: str, settings: StreamSettings) -> str:
    """What to say when there is none."""
    return (
        f"no row for session {session_id!r} in {changelog_topic(settings.app_id)}: it had no click that a worker has "
        f"taken, or its last one is older than worker.session_ttl ({duration(settings.worker.session_ttl)})"
    )
