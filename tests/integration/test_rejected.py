"""Every command of docs/rejected.md, on a real Kafka with a worker that rejects and then ranks."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer

from deploy.demo.oracle import read_topic
from schemas.messages.headers import RESENT
from schemas.messages.ranking import decode_ranking
from stream_app.__main__ import main as stream_app
from tests.conftest import KafkaUnderTest
from tests.doc_pages import REPOSITORY, blocks, lines, parse
from tests.faults.deployment import NEVER_TAKEN_FOR_DEAD, Deployment
from tests.patience import PATIENCE

PAGE = REPOSITORY / "docs" / "rejected.md"
ITEMS = tuple(f"item-{n}" for n in range(12))
AHEAD_MS = 20_000
"""How far a click lies in the future: time enough for a worker on a busy machine to reject it before it comes."""
NO_TEXT = b"\x1b[2J\xff\x00"
"""It would clear a terminal."""


@pytest.fixture
def deployment(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(
        kafka.bootstrap_servers,
        topic_prefix,
        tmp_path,
        ITEMS,
        extra=NEVER_TAKEN_FOR_DEAD | {"NEXTCLICK_CLICKS__MAX_FUTURE": "1s"},
    )
    deployment.announce(deployment.bundle("v1"))
    yield deployment
    deployment.stop_all()


class Shell:
    """Runs commands in this process: one of its own takes a second to start."""

    def __init__(
        self, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._patch, self._capsys = monkeypatch, capsys
        for name, value in (deployment.environment() | {"COLUMNS": "200"}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(deployment.root)

    def __call__(self, line: str) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        [command] = parse(line)
        if command.words[0] == "python":
            subprocess.run([sys.executable, *command.words[1:]], check=True)
            return 0, "", ""
        self._patch.setattr("sys.argv", list(command.words))
        try:
            stream_app()
        except SystemExit as ended:
            output = self._capsys.readouterr()
            return int(ended.code or 0), output.out, output.err
        raise AssertionError("typer exits")


@pytest.fixture
def shell(deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(deployment, monkeypatch, capsys)


def click(session: str, timestamp: float) -> tuple[bytes, bytes]:
    """Key and value, of a shop that has a field of its own."""
    fields = {"session_id": session, "item_id": ITEMS[0], "timestamp": timestamp, "basket": 1.50}
    return session.encode(), json.dumps(fields).encode()


def killed_before_it_committed(deployment: Deployment) -> Producer:
    """Whoever sent before: its click and its mark are in a transaction that is open."""
    dead = Producer({**deployment.connection.librdkafka(), "transactional.id": deployment.topics.rejected})
    dead.init_transactions(PATIENCE)
    dead.begin_transaction()
    for partition in range(4):
        dead.produce(deployment.topics.rejected, None, partition=partition, headers=[(RESENT, b"x/0/0")])
    dead.produce(deployment.topics.clicks, *reversed(click("dead", time.time_ns() // 1_000_000)))
    dead.flush(PATIENCE)
    return dead


def looked_at(deployment: Deployment, shell: Shell, look: list[str], show: str) -> list[dict[str, Any]]:
    """By the commands that only look; returns what they found."""
    code, table, _ = shell(look[0])
    assert code == 0
    assert re.search(r"3 bad-timestamp, 2 not-json, 1 future-timestamp", table)
    assert NO_TEXT[:1].decode() not in table
    _, some, _ = shell(look[1])
    assert "3 bad-timestamp" in some
    assert "not-json" not in some
    found = [json.loads(line) for line in shell(look[2])[1].splitlines()]
    assert [one["reason"] for one in found].count("not-json") == 2
    assert {one["source"]["topic"] for one in found} == {deployment.topics.clicks}
    [no_text] = [one for one in found if "value_base64" in one]
    place = f"{no_text['partition']}:{no_text['offset']}"
    _, shown, _ = shell(show.replace("3:17", place))
    assert "1b 5b 32 4a ff 00" in shown
    assert "\x1b" not in shown
    return found


def repaired(deployment: Deployment, shell: Shell, export: str, program: str, send: str) -> None:
    """By the commands that repair, each run once more."""
    assert shell(export)[1] == "3 records in repairs.jsonl\n"
    assert "repairs.jsonl exists" in shell(export)[2]
    code, _, error = shell(send)
    assert code == 2
    assert "repairs.jsonl: line 1: would be rejected again: bad-timestamp" in error
    (script,) = blocks(PAGE, "python")
    Path("repair.py").write_text(script)
    shell(program)
    dead = killed_before_it_committed(deployment)
    assert shell(send) == (
        0,
        f"3 sent again to {deployment.topics.clicks}\n",
        f"reading {deployment.topics.rejected}\n",
    )
    with pytest.raises(KafkaException):
        dead.commit_transaction(PATIENCE)
    assert shell(send)[1] == "nothing sent; 3 were sent before\n"
    assert shell("stream-app rejected --reason bad-timestamp --resend")[1] == "nothing sent; 3 were sent before\n"


def test_rejected_records_are_looked_at_repaired_and_ranked(deployment: Deployment, shell: Shell) -> None:
    look, [show], repair, [as_they_were] = (lines(block) for block in blocks(PAGE, "sh"))
    worker = deployment.start_ready()
    now = time.time_ns() // 1_000_000
    good, early = click("good", now), click("e", now + AHEAD_MS)
    seconds = [click(f"s{n}", now // 1000 - n) for n in range(3)]
    wrong = [early, *seconds, (NO_TEXT, NO_TEXT), (b"s", b'{"session_id": "s",')]
    for record in (good, *wrong):
        deployment.send_raw(*record)
    deployment.flush()
    deployment.wait_until_acknowledged()

    found = looked_at(deployment, shell, look, show)
    repaired(deployment, shell, *repair)
    deployment.wait(lambda: "1 sent again" in shell(as_they_were)[1], "its time has come")
    assert "2 would be rejected again" in shell("stream-app rejected --reason not-json --resend")[1]
    assert shell("stream-app rejected --export all.jsonl")[1] == "2 records in all.jsonl; 4 were sent again before\n"

    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    config = deployment.connection.librdkafka()
    ranked = [decode_ranking(one.value() or b"").session_id for one in read_topic(config, deployment.topics.rankings)]
    assert sorted(ranked) == ["e", "good", "s0", "s1", "s2"]
    clicks = {one.key(): one for one in read_topic(config, deployment.topics.clicks) if one.headers()}
    assert {key: dict(one.headers())[RESENT] for key, one in clicks.items()} == {
        one["key"].encode(): f"{deployment.topics.rejected}/{one['partition']}/{one['offset']}".encode()
        for one in found
        if one["reason"].endswith("timestamp")
    }
    assert clicks[b"e"].value() == early[1], "as it was, byte by byte"
    assert json.loads(clicks[b"s0"].value()) == json.loads(seconds[0][1]) | {"timestamp": now // 1000 * 1000}


def test_what_cannot_be_done_is_told_in_one_line(deployment: Deployment, shell: Shell) -> None:
    Path("gone.jsonl").write_text('{"partition": 0, "offset": 7, "key": "s", "value": {}}\n')
    Path("twice.jsonl").write_text('{"partition": 0, "offset": 7, "value": null}\n\n' * 2)
    for arguments, message in {
        "0:7": "no rejected record is at 0:7",
        "seven": "'seven' is no place",
        "--reason because": "because",
        "--last tomorrow": "is no duration",
        "--limit 0": "--limit",
        "--send gone.jsonl --resend": "are two different things",
        "--send gone.jsonl --limit 3": "takes neither",
        "--resend --json": "is for records that are shown",
        "--send nowhere.jsonl": "nowhere.jsonl cannot be read: No such file",
        "--send gone.jsonl": f"line 1: 0:7 is not on {deployment.topics.rejected}",
        "--send twice.jsonl": "line 3: is the same record as twice.jsonl: line 1",
        "--export no/where.jsonl": "no/where.jsonl cannot be written",
    }.items():
        code, out, error = shell(f"stream-app rejected {arguments}")
        assert (code, out) == (2, ""), arguments
        assert message in " ".join(error.replace("│", " ").split()), arguments
        assert "Traceback" not in error
    assert deployment.records(deployment.topics.clicks) == 0
