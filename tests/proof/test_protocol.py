"""The order of durability steps keeps its promises in every interleaving; without any one of its mends it does not."""

import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from stream_app.core import plan
from stream_app.kafka.transport import ChunkConsumer
from stream_app.serve.pipeline import Pipeline
from stream_app.serve.settling import Settling
from stream_app.state.store import SessionStore
from stream_app.state.table import SessionTable
from tests.proof.protocol import Scope, explore

SCOPES = {
    "no failure": Scope("aa", workers=1, swaps=1),
    "a crash": Scope("aa", crashes=1, swaps=1),
    "a crash of a worker that forgets": Scope("aaA", workers=1, crashes=1),
    "a crash, and its disk": Scope("ab", workers=1, crashes=1, wipes=1),
    "two crashes": Scope("aa", workers=1, crashes=2),
    "a rebalance": Scope("aba", rebalances=1),
    "an expelled worker": Scope("ab", expelled=1),
    "an expelled worker, one session": Scope("aa", expelled=1),
    "an expelled worker that comes back": Scope("a", expelled=2, swaps=1),
    "an expelled worker, and one that forgets": Scope("aA", expelled=1),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Workers that leave chunks to others say so; these do thousands of times."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
def test_every_order_keeps_the_promises(scope: Scope) -> None:
    found = explore(scope)
    assert found.broken is None, (found.broken, found.steps)
    assert found.ends


def change(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str) -> None:
    """Put other text in the place of a function's own."""
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    assert source.count(old) == 1, f"{name} has another text now: {old!r} is to be taken out of it"
    made: dict[str, Any] = {}
    module = owner if inspect.ismodule(owner) else sys.modules[owner.__module__]
    exec(compile(source.replace(old, new), f"<{name} without {old}>", "exec"), vars(module), made)
    monkeypatch.setattr(owner, name, made[name])


CUT_OFF = Scope("aa", expelled=1)
ACK_FIRST = """for part, _ in changelogs:
        for chunk, message in part.chunks:
            chunk.durable = True
            self._consumer.ack(message)
    offsets = ["""
CHANGES: dict[str, tuple[Any, str, str, str, Scope, str]] = {
    "the changelog does not wait for the rankings": (
        Settling, "_make_durable", "await rankings.delivered()", "pass", CUT_OFF, "ahead of the rankings",
    ),
    "RocksDB does not wait for the changelog": (
        Settling, "_make_durable", "[await changelog.delivered() for _, changelog in changelogs]",
        "[len(part.rows) - 1 for part, _ in changelogs]", CUT_OFF, "RocksDB has a row that the changelog has not",
    ),
    "the acknowledgement does not wait for RocksDB": (
        Settling, "_make_durable", "offsets = [", ACK_FIRST, CUT_OFF, "acknowledged, and not in RocksDB",
    ),
    "RocksDB gets no row": (
        Settling, "_make_durable", 'await self._computing.run("write", changed, write, may_wait=False)', "pass",
        CUT_OFF, "RocksDB has not all rows",
    ),
    "heartbeats are not asked for after the confirmation": (
        Settling, "_make_durable", "await self._leave_what_is_lost([part for part, _ in changelogs])", "pass",
        CUT_OFF, "RocksDB got a row after another worker",
    ),
    "heartbeats are not asked for before the changelog": (
        Settling, "_make_durable", "await self._leave_what_is_lost(parts)", "pass", CUT_OFF, "sends rows",
    ),
    "overdue heartbeats do not count": (
        ChunkConsumer, "may_be_expelled", "self.seconds_since_heartbeat() >= session or now() - "
        "self._thread.last_at_rest >= rebalance", "False", CUT_OFF, "though another may have taken",
    ),
    "the coordinator's word does not count": (
        ChunkConsumer, "owns", "self._thread.group_generation() == generation", "True", CUT_OFF, "though another may",
    ),
    "what was given up is acknowledged": (
        Settling, "_make_durable", "if part.partition.given_up:\n            continue", "pass", CUT_OFF,
        "acknowledged, and not in RocksDB",
    ),
    "the store covers what others wrote": (
        SessionTable, "write", "seen is not None and changelog_offset == seen + deleted + len(rows)", "True", CUT_OFF,
        "vouches for a changelog record that it has not",
    ),
    "a restore takes the last row, not the newest": (
        SessionStore, "apply_changelog", "offset < known.get(key, -1)", "False", CUT_OFF, "not in the changelog",
    ),
    "rows in flight are not looked up": (
        Pipeline, "_compute", "part.partition.pending.update(part.states)", "pass", CUT_OFF,
        "the ranking of click 1 is wrong",
    ),
    "redelivered clicks count": (
        plan, "is_redelivered", "offset <= applied", "False", Scope("aa", workers=1, crashes=1), "is wrong",
    ),
    "a forgotten session keeps no offset": (
        plan, "_forget", "_open(forgotten(request.offset))", "_open(forgotten(-1))",
        Scope("aaA", workers=1, crashes=1), "a row is wrong",
    ),
}  # fmt: skip


@pytest.mark.parametrize("taken_out", CHANGES)
def test_an_order_that_is_not_kept_is_found(taken_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, old, new, scope, broken = CHANGES[taken_out]
    change(monkeypatch, owner, name, old, new)
    found = explore(scope)
    assert found.broken is not None
    assert broken in found.broken, found


def test_without_its_mends_a_worker_that_was_cut_off_spoils_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The age of heartbeats asked for only before the changelog is sent, and every confirmed offset covered."""
    for key in ("heartbeats are not asked for after the confirmation", "the store covers what others wrote"):
        owner, name, old, new, _, _ = CHANGES[key]
        change(monkeypatch, owner, name, old, new)
    found = explore(CUT_OFF, writes_of_others=True)
    assert found.broken == "the store vouches for a changelog record that it has not"
