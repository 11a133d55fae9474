"""`stream-app forget` on a real Kafka, with a worker that is killed while it forgets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.demo.oracle import read_topic, restored_rows, stored_rows
from schemas.messages.click import Click
from schemas.messages.ranking import decode_ranking
from stream_app.core.session import forgotten
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.doc_pages import commands
from tests.faults.deployment import Deployment

BEGAN = 1_767_225_600_000
ITEMS = tuple(f"item-{n}" for n in range(40))
SESSIONS = [f"s{n}" for n in range(30)]
FORGOTTEN = SESSIONS[::3]
AGAIN = FORGOTTEN[::2]
"""Forgotten ones that click again."""


def clicks(sessions: list[str], first: int, count: int) -> list[Click]:
    return [
        Click(session, ITEMS[(n * 7 + len(session) + int(session[1:])) % len(ITEMS)], BEGAN + 1000 * (first + n))
        for n in range(count)
        for session in sessions
    ]


@pytest.fixture
def deployment(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Deployment:
    return Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path, ITEMS)


def forget(deployment: Deployment, session_id: str) -> dict[str, object]:
    """By the command of the page."""
    [command] = [one for one in commands(REPOSITORY / "docs" / "forget.md") if one.words[0] == "stream-app"]
    words = [session_id if word == "SESSION" else word for word in command.words[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "stream_app", *words, "--json"],
        cwd=REPOSITORY, env=deployment.environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_forgotten_sessions_are_gone_though_the_worker_is_killed(deployment: Deployment) -> None:
    deployment.announce(deployment.bundle("v1"))
    worker = deployment.start_ready()
    try:
        deployment.send(clicks(SESSIONS, 0, 3))
        deployment.wait_until_acknowledged()
        places = {session: forget(deployment, session) for session in FORGOTTEN[:2]}
        assert places[FORGOTTEN[0]]["topic"] == deployment.topics.clicks
        worker.kill()
        for session in FORGOTTEN[2:]:
            deployment.send_raw(session.encode(), json.dumps({"session_id": session, "action": "forget"}).encode())
        deployment.send(clicks(SESSIONS[1::3], 3, 2))
        deployment.flush()
        worker = deployment.start_ready()
        # It may have handled all of them by now: none would come any more.
        deployment.wait(lambda: worker.metric("nextclick_clicks_total") >= 1, "a click handled")
        worker.kill()  # perhaps between a changelog record and its row, or its acknowledgement
        deployment.send(clicks(AGAIN, 5, 2))
        worker = deployment.start_ready()
        deployment.wait_until_acknowledged()
        assert worker.stop() == 0
    finally:
        deployment.stop_all()
    deployment.verdict(worker).assert_nothing_lost_nothing_wrong()
    changelog = list(read_topic(deployment.connection.librdkafka(), deployment.changelog))
    for rows in (stored_rows(worker.data_dir), restored_rows(deployment.root / "a new worker", changelog)):
        assert set(rows) == set(SESSIONS)
        assert {rows[session].clicks for session in AGAIN} == {2}
        gone = [rows[session] for session in set(FORGOTTEN) - set(AGAIN)]
        assert gone == [forgotten(row.offset) for row in gone]
    latest: dict[str, bytes | None] = {}
    for record in read_topic(deployment.connection.librdkafka(), deployment.topics.rankings):
        key, value = record.key(), record.value()
        assert key is not None
        latest[key.decode()] = value
        assert value is None or decode_ranking(value).session_id == key.decode()
    assert {session for session, value in latest.items() if value is None} == set(FORGOTTEN) - set(AGAIN)
    # Nobody took a request for a click that is none.
    assert deployment.records(deployment.topics.rejected) == 0
