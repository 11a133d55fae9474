"""Faults under load. After each: every click has its ranking, and every row is what its clicks lead to."""

import itertools
import json
import random
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient
from msgspec.structs import replace

from deploy.demo.oracle import read_topic
from schemas.messages.click import Click, RejectReason
from schemas.messages.rejected import decode_rejected
from stream_app.core.session import SessionRules
from tests.bundle_keys import new_keys
from tests.contract.tiny_model import TinyNone, TinyWindow
from tests.faults.deployment import (
    GAVE_UP,
    NEVER_TAKEN_FOR_DEAD,
    PARTITIONS,
    Deployment,
)
from tests.patience import PATIENCE
from tests.stream_process import StreamProcess

MISSED_BY_NOBODY = {"NEXTCLICK_WORKER__SESSION_TIMEOUT": "300", "NEXTCLICK_WORKER__STALL_TIMEOUT": "301"}
"""No test waits so long for a dead worker's partitions."""


@pytest.mark.parametrize(
    ("keep_data", "items"),
    [
        pytest.param(True, False, id="with its data", marks=pytest.mark.long),
        pytest.param(False, False, id="without its data"),
        pytest.param(True, True, id="with its data, items and rules"),
    ],
)
def test_killed_at_random_moments(deployment: Deployment, stream: list[Click], keep_data: bool, items: bool) -> None:
    if items:
        deployment.use_items_and_rules({click.item_id for click in stream})
    rng = random.Random(f"kills {keep_data}")
    load = deployment.load(stream, per_second=250)
    for _ in range(3):
        worker = deployment.start_ready()
        time.sleep(rng.uniform(0.1, 2.0))
        worker.kill()
        if not keep_data:
            shutil.rmtree(worker.data_dir)
    worker = deployment.start_ready()
    deployment.judge(load, worker)


def test_killed_and_swapped_where_some_clicks_move_no_session_on(deployment: Deployment, stream: list[Click]) -> None:
    deployment.extra |= {"NEXTCLICK_CLICKS__ADVANCE_ON": '["view", "cart"]'}
    deployment.rules = SessionRules(advance_on=frozenset({"view", "cart"}))
    kinds = itertools.cycle((None, "purchase", "cart", "view", None, "wishlist", "purchase"))
    load = deployment.load(
        [replace(click, type=kind) for click, kind in zip(stream, kinds, strict=False)], per_second=250
    )
    worker = deployment.start_ready()
    deployment.wait_until_more_clicks(worker, 300)
    worker.kill()
    worker = deployment.start_ready()
    deployment.announce(deployment.bundle("v2"))
    deployment.wait_until_swapped(worker, 2)
    deployment.wait_until_more_clicks(worker, 300)
    unmoved = worker.metric("nextclick_unmoved_clicks_total")
    verdict = deployment.judge(load, worker)
    assert 0 < unmoved < verdict.clicks
    assert verdict.versions == ["v1", "v2"]


def test_a_killed_worker_takes_its_partitions_back_at_once(deployment: Deployment, stream: list[Click]) -> None:
    """And one that is stopped gives them away at once; whoever waited for a session timeout would wait in vain."""
    deployment.extra |= MISSED_BY_NOBODY
    first = deployment.start_ready("a")
    load = deployment.load(stream, per_second=250)
    deployment.wait_until_more_clicks(first, 500)
    first.kill()
    first = deployment.start_ready("a")
    second = deployment.start_ready("b")
    deployment.wait_until_more_clicks(second, 500)
    second.kill()
    second = deployment.start_ready("b")
    deployment.wait_until_more_clicks(second, 500)
    assert first.stop() == 0
    deployment.judge(load, second)


def test_of_two_workers_with_one_identity_the_older_one_ends(deployment: Deployment, stream: list[Click]) -> None:
    """As clones of one disk are; a mere copy of a folder gets an identity of its own."""
    deployment.extra |= MISSED_BY_NOBODY
    older = deployment.start_ready("a")
    load = deployment.load(stream, per_second=250)
    deployment.wait_until_more_clicks(older, 500)
    clone = deployment.root / "data-b"
    clone.mkdir()
    member = json.loads((older.data_dir / "member.json").read_text())
    (clone / "member.json").write_text(json.dumps(member | {"folder": clone.stat().st_ino}))

    newer = deployment.start_ready("b")
    assert older.process.wait(PATIENCE) == GAVE_UP[0]
    [told] = [line for line in older.output().splitlines() if "cannot go on" in line]
    assert "another worker has taken this one's place" in told
    assert all(line.startswith("{") for line in older.output().splitlines())

    deployment.wait_until_more_clicks(newer, 1000)
    deployment.judge(load, newer)


def test_killed_while_restoring(deployment: Deployment, clicks: list[Click]) -> None:
    first = deployment.start_ready()
    deployment.send(clicks)
    deployment.wait_until_acknowledged()
    first.kill()
    rng = random.Random("restoring")

    def kill_while_restoring() -> None:
        shutil.rmtree(first.data_dir)
        worker = deployment.start()
        deployment.wait(lambda: "restoring tables" in worker.output(), "it restores its tables")
        time.sleep(rng.uniform(0.0, 0.2))
        worker.kill()

    for _ in range(3):
        kill_while_restoring()
    deployment.send(clicks[:1000])
    worker = deployment.start_ready()
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    deployment.verdict(worker).assert_nothing_lost_nothing_wrong()


def test_one_to_two_to_one_workers(deployment: Deployment, stream: list[Click]) -> None:
    deployment.extra |= NEVER_TAKEN_FOR_DEAD
    first = deployment.start_ready("a")
    load = deployment.load(stream, per_second=250)
    second = deployment.start_ready("b")
    deployment.wait_until_more_clicks(second, 500)
    assert first.stop() == 0
    deployment.wait_until_more_clicks(second, 1000)
    verdict = deployment.judge(load, second)
    assert verdict.duplicates == 0  # nobody crashed


def test_partition_comes_back_to_a_worker_with_old_rows(deployment: Deployment, clicks: list[Click]) -> None:
    deployment.extra |= NEVER_TAKEN_FOR_DEAD
    third = len(clicks) // 3
    first = deployment.start_ready("a")
    deployment.send(clicks[:third])
    deployment.wait_until_acknowledged()
    assert first.stop() == 0
    second = deployment.start_ready("b")
    deployment.send(clicks[third : 2 * third])
    deployment.wait_until_acknowledged()
    assert second.stop() == 0
    first = deployment.start_ready("a")
    deployment.send(clicks[2 * third :])
    deployment.wait_until_acknowledged()
    assert first.stop() == 0
    verdict = deployment.verdict(first)
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.duplicates == 0


def test_frozen_worker_wakes_after_its_partitions_moved(deployment: Deployment, stream: list[Click]) -> None:
    frozen = deployment.start_ready("a")
    load = deployment.load(stream, per_second=250)
    deployment.wait_until_more_clicks(frozen, 500)
    frozen.process.send_signal(signal.SIGSTOP)
    second = deployment.start_ready("b")
    deployment.wait_until_more_clicks(second, 1000)
    frozen.process.send_signal(signal.SIGCONT)
    deployment.wait_until_more_clicks(frozen, 200)  # it has partitions again
    sent = load.stop()
    deployment.wait_until_acknowledged()
    assert frozen.stop() == 0
    assert second.stop() == 0
    verdict = deployment.verdict()
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.clicks == sent


def test_redelivered_clicks_are_skipped(deployment: Deployment, clicks: list[Click]) -> None:
    deployment.extra |= NEVER_TAKEN_FOR_DEAD
    worker = deployment.start_ready()
    deployment.send(clicks)
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    _commit(deployment, 0)

    worker = deployment.start_ready()
    deployment.wait_until_acknowledged()
    deployment.wait(
        lambda: worker.metric("nextclick_redelivered_total") == len(clicks), "every click seen a second time"
    )
    assert worker.stop() == 0
    verdict = deployment.verdict(worker)
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.duplicates == 0


def test_clicks_of_aborted_transactions_have_never_been(deployment: Deployment, stream: list[Click]) -> None:
    """Killed between transactions, drained and started again behind their marks, with which every partition ends."""
    worker = deployment.start_ready()
    enough = threading.Event()
    with ThreadPoolExecutor(1) as producer:
        sending = producer.submit(deployment.send_in_transactions, stream, enough)
        try:
            for _ in range(2):
                deployment.wait_until_more_clicks(worker, 300)
                worker.kill()
                worker = deployment.start_ready()
        finally:
            enough.set()
        sent = sending.result()
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0

    worker = deployment.start_ready()
    last = deployment.send_in_transactions(stream[4000:], enough)
    deployment.wait_until_acknowledged()
    assert worker.metric("nextclick_clicks_total") == last  # nothing of what was acknowledged came again
    assert worker.metric("nextclick_lag_clicks") == 0
    assert worker.stop() == 0
    verdict = deployment.verdict(worker)
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.clicks == sent + last
    assert deployment.records(deployment.topics.rankings) == sent + last + verdict.duplicates


def test_poison_records(deployment: Deployment, clicks: list[Click]) -> None:
    future = int(time.time() * 1000) + 86_400_000
    poison: dict[tuple[bytes | None, bytes | None], RejectReason] = {
        (b"s", b"not json"): RejectReason.NOT_JSON,
        (b"s", b"\xff\xfe"): RejectReason.NOT_JSON,
        (b"s", b""): RejectReason.NOT_JSON,
        (b"s", b"[" * 10_000): RejectReason.NOT_JSON,
        (b"s", None): RejectReason.NO_VALUE,
        (b"s", b"[]"): RejectReason.WRONG_TYPE,
        (b"s", b"null"): RejectReason.WRONG_TYPE,
        (b"s", b'{"session_id":"s","item_id":1,"timestamp":1}'): RejectReason.WRONG_TYPE,
        (b"s", b'{"session_id":"s","item_id":"i"}'): RejectReason.WRONG_TYPE,
        (b"s", b'{"session_id":"s","item_id":"","timestamp":1}'): RejectReason.BAD_ID,
        (b"s", b'{"session_id":"s","item_id":"' + b"x" * 257 + b'","timestamp":1}'): RejectReason.BAD_ID,
        (b"s", b'{"session_id":"other","item_id":"i","timestamp":1}'): RejectReason.KEY_MISMATCH,
        (None, b'{"session_id":"s","item_id":"i","timestamp":1}'): RejectReason.KEY_MISMATCH,
        (b"s", b'{"session_id":"s","item_id":"i","timestamp":-1}'): RejectReason.BAD_TIMESTAMP,
        (b"s", b'{"session_id":"s","item_id":"i","timestamp":%d}' % future): RejectReason.FUTURE_TIMESTAMP,
        (b"s", b'{"session_id":"s","item_id":"i","timestamp":1' + b" " * 20_000 + b"}"): RejectReason.TOO_LARGE,
    }
    of_a_schema_registry = {RejectReason.UNKNOWN_SCHEMA, RejectReason.INCOMPATIBLE_SCHEMA, RejectReason.MALFORMED}
    assert set(poison.values()) == set(RejectReason) - of_a_schema_registry
    worker = deployment.start_ready()
    some = clicks[:3000]
    for n, record in enumerate(itertools.islice(itertools.cycle(poison), 50)):
        deployment.send(some[60 * n : 60 * (n + 1)])
        deployment.send_raw(*record)
    deployment.flush()
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0

    config, topics = deployment.connection.librdkafka(), deployment.topics
    expected = {
        (record.partition(), record.offset()): poison[record.key(), record.value()]
        for record in read_topic(config, topics.clicks)
        if (record.key(), record.value()) in poison
    }
    parked = [decode_rejected(record.value() or b"") for record in read_topic(config, topics.rejected)]
    assert {(one.source.partition, one.source.offset): one.reason for one in parked} == expected
    assert len(parked) == len(expected) == 50
    verdict = deployment.verdict(worker)
    # The oracle reads no clock: to it a click from the future is a click, and must not have been answered.
    from_the_future = list(expected.values()).count(RejectReason.FUTURE_TIMESTAMP)
    assert verdict.clicks == len(some) + from_the_future
    assert verdict.lost == from_the_future
    assert verdict.wrong_rankings == 0
    assert verdict.changelog == verdict.stored == []


def told(worker: StreamProcess, problem: str) -> bool:
    return problem in worker.output()


def test_corrupt_bundle_leaves_the_old_model_serving(deployment: Deployment, clicks: list[Click]) -> None:
    """Nor is one served that is whole, and not signed by the key that this worker trusts."""
    ours, theirs = (new_keys(deployment.root, name) for name in ("ours", "theirs"))
    ours.sign(deployment.root / "registry" / "v1")
    worker = deployment.start_ready(NEXTCLICK_BUNDLES__TRUSTED_KEYS=json.dumps([str(ours.public)]))
    damaged, of_theirs, unsigned, signed = map(deployment.bundle, ("v2", "v3", "v4", "v5"))
    for bundle, pair in ((damaged, ours), (of_theirs, theirs), (signed, ours)):
        pair.sign(bundle)
    graph = damaged / "rank.onnx"
    graph.write_bytes(graph.read_bytes()[:-100])
    problems = {damaged: "rank.onnx", of_theirs: "manifest.sig: is no signature", unsigned: "manifest.sig: missing"}
    for number, (bundle, problem) in enumerate(problems.items()):
        deployment.send(clicks[1000 * number : 1000 * (number + 1)])
        deployment.announce(bundle)
        deployment.wait(partial(told, worker, problem), "it is refused")
    assert worker.metric("nextclick_refused_bundles_total") == len(problems)
    deployment.send(clicks[3000:4000])
    deployment.wait_until_acknowledged()
    deployment.announce(signed)
    deployment.wait_until_swapped(worker, 2)
    deployment.send(clicks[4000:5000])
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    verdict = deployment.verdict(worker)
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.versions == ["v1", "v5"]


def test_swaps_under_load(deployment: Deployment, stream: list[Click]) -> None:
    half = len(deployment.items) // 2
    models = [
        deployment.bundle("v2", items=deployment.items[half:], hidden=24),
        deployment.bundle("v3", items=deployment.items[:-half], hidden=8),
        deployment.root / "registry" / "v1",  # a roll-back is announcing an older version
    ]
    worker = deployment.start_ready()
    load = deployment.load(stream, per_second=400)
    for swaps, model in enumerate(models, start=2):
        deployment.wait_until_more_clicks(worker, 1200)
        deployment.announce(model)
        deployment.wait_until_swapped(worker, swaps)
    deployment.wait_until_more_clicks(worker, 1200)
    assert worker.metric("nextclick_rebuilt_rows_total") > 0
    verdict = deployment.judge(load, worker)
    assert verdict.versions == ["v1", "v2", "v3"]


def test_swaps_between_encoders_under_load(deployment: Deployment, stream: list[Click]) -> None:
    """A hidden state, a window of items, neither, and back: whatever a row holds, the next model goes on from it."""
    few = tuple(deployment.items[:500])
    models = [
        deployment.add(TinyWindow(items=tuple(deployment.items), hidden_size=8, k=20, window=12), "v2"),
        deployment.add(TinyNone(items=few, k=20), "v3"),
        deployment.root / "registry" / "v1",
        deployment.add(TinyWindow(items=few, hidden_size=8, k=20, recent_size=1), "v4"),
    ]
    worker = deployment.start_ready()
    load = deployment.load(stream, per_second=400)
    for swaps, model in enumerate(models, start=2):
        deployment.wait_until_more_clicks(worker, 600)
        deployment.announce(model)
        deployment.wait_until_swapped(worker, swaps)
    deployment.wait_until_more_clicks(worker, 600)
    worker.kill()  # what is left of a window's rows is enough to go on
    worker = deployment.start_ready()
    deployment.wait_until_more_clicks(worker, 500)
    verdict = deployment.judge(load, worker)
    assert verdict.versions == ["v1", "v2", "v3", "v4"]


def test_killed_during_a_swap(deployment: Deployment, stream: list[Click]) -> None:
    """While the new model is being loaded, and again while it rebuilds the old one's rows."""
    model = deployment.bundle("v2")
    worker = deployment.start_ready()
    load = deployment.load(stream, per_second=400)
    deployment.wait_until_more_clicks(worker, 1200)
    with socket.create_server(("127.0.0.1", 0)) as store:
        store.settimeout(PATIENCE)
        deployment.announce(model, uri=f"http://127.0.0.1:{store.getsockname()[1]}/v2")
        with store.accept()[0]:
            worker.kill()
    assert worker.process.returncode == -signal.SIGKILL
    deployment.announce(model)
    worker = deployment.start_ready()
    deployment.wait(lambda: worker.metric("nextclick_rebuilt_rows_total") > 0, "rows are being rebuilt")
    worker.kill()
    worker = deployment.start_ready()
    verdict = deployment.judge(load, worker)
    assert verdict.versions == ["v1", "v2"]


def test_drained_by_sigterm_under_load(deployment: Deployment, stream: list[Click]) -> None:
    deployment.extra |= NEVER_TAKEN_FOR_DEAD
    load = deployment.load(stream, per_second=400)
    for _ in range(2):
        worker = deployment.start_ready()
        deployment.wait_until_more_clicks(worker, 600)
        assert worker.stop() == 0
    worker = deployment.start_ready()
    verdict = deployment.judge(load, worker)
    assert verdict.duplicates == 0


def test_damaged_local_store_is_restored(deployment: Deployment, clicks: list[Click]) -> None:
    worker = deployment.start_ready()
    deployment.send(clicks[:4000])
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    tables = worker.data_dir / "v1" / "tables"
    [manifest] = tables.glob("sessions-1.db/MANIFEST-*")
    manifest.write_bytes(b"\0" * 100)  # found when it is opened
    flipped = 0
    for file in tables.glob("sessions-0.db/*.sst"):  # found when rows are read: the worker ends, and starts again
        content = bytearray(file.read_bytes())
        for at in range(500, len(content) // 2, 1000):
            content[at] ^= 1
            flipped += 1
        file.write_bytes(content)
    assert flipped
    before = len(deployment.workers)
    worker = deployment.start_ready()
    deployment.send(clicks[4000:6000])
    worker = deployment.supervised(worker, deployment.has_acknowledged_all, "all clicks acknowledged")
    assert worker.stop() == 0
    started = deployment.workers[before:]
    assert len(started) <= 2, "no crash loop"
    told = "".join(one.output() for one in started)
    assert told.count("it is set aside") == 2
    assert "Traceback" not in told
    assert sorted(path.name for path in tables.glob("*.damaged")) == ["sessions-0.db.damaged", "sessions-1.db.damaged"]
    deployment.verdict(worker).assert_nothing_lost_nothing_wrong()


def _commit(deployment: Deployment, offset: int) -> None:
    """Move the group's offsets, as an operator would with kafka-consumer-groups."""
    admin = AdminClient(deployment.connection.librdkafka())
    parts = [TopicPartition(deployment.topics.clicks, p, offset) for p in range(PARTITIONS)]

    def moved() -> bool:
        for future in admin.alter_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(deployment.group, parts)], request_timeout=PATIENCE
        ).values():
            if future.exception(PATIENCE) is not None:  # the group still has a member for a moment
                return False
        return True

    deployment.wait(moved, "offsets moved")
