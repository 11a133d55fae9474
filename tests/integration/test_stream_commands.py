"""The commands of `stream-app` as an operator runs them, on a real Kafka."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import NewTopic
from msgspec.structs import replace

from schemas.bundle.files import manifest_digest
from schemas.config.settings import KafkaConnection, load_settings
from schemas.kafka.topics import topic_table
from schemas.messages.announcement import ModelAnnouncement, encode_announcement
from schemas.messages.click import ClickLimits, decode_click
from schemas.messages.ranking import RankedItem, Ranking, RankingReason, encode_ranking
from schemas.messages.source import Source
from stream_app.core.session import SessionState
from stream_app.core.state_codec import encode_state
from stream_app.kafka.plain_consumer import partition_of, plain_consumer
from stream_app.settings import StreamSettings
from tests.admin import create_topics, ensure_topics
from tests.conftest import KafkaUnderTest
from tests.contract.tiny_model import TinyModel
from tests.doc_pages import REPOSITORY, commands
from tests.patience import PATIENCE

PARTITIONS = 4
STATE = SessionState("v7", 41, 1_767_225_600_000, 3, ("a", "b"), np.array([[3.0, 4.0]], dtype=np.float16))


@dataclass(frozen=True)
class Shop:
    """Names of a deployment's own on the shared broker, and its commands."""

    servers: str
    prefix: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        ours = {
            "NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": self.servers,
            "NEXTCLICK_TOPICS__PARTITIONS": str(PARTITIONS),
            "NEXTCLICK_WORKER__APP_ID": self.prefix,
            "NEXTCLICK_WORKER__DELIVERY_TIMEOUT": "30",
            **{f"NEXTCLICK_TOPICS__{name.upper()}": self.topic(name) for name in ("clicks", "rankings", "models")},
            **{f"NEXTCLICK_TOPICS__{name.upper()}": self.topic(name) for name in ("rejected", "scores")},
            "COLUMNS": "200",
        }
        return {name: value for name, value in os.environ.items() if not name.startswith("NEXTCLICK_")} | ours

    def topic(self, name: str) -> str:
        return f"{self.prefix}.{name}"

    @property
    def changelog(self) -> str:
        return f"{self.prefix}-sessions-changelog"

    def start(self, *arguments: str, stderr: int | IO[bytes] = subprocess.PIPE) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "stream_app", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=stderr)

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Standard output and error of a command that ends by itself with `code`."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, err.decode()
        return out.decode(), err.decode()

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code)[0])

    def produce(self, topic: str, *records: tuple[bytes, bytes | None, int | None]) -> list[int]:
        """Key, value, partition (None: by the key); returns the partitions in which they lie."""
        placed: list[int] = []
        producer = Producer({"bootstrap.servers": self.servers, "partitioner": "murmur2_random"})
        for key, value, partition in records:
            where = -1 if partition is None else partition
            producer.produce(
                topic, value, key, where, on_delivery=lambda _, message: placed.append(message.partition())
            )
            producer.flush(PATIENCE)
        return placed

    def read(self, topic: str) -> Iterator[Message]:
        connection = KafkaConnection(bootstrap_servers=self.servers)
        with plain_consumer(connection, topic, name=f"{self.prefix}-test") as consumer:
            for partition in consumer.partitions:
                yield from consumer.history(partition)


@pytest.fixture
def shop(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Shop:
    shop = Shop(kafka.bootstrap_servers, topic_prefix, tmp_path)
    settings = load_settings(StreamSettings, config=None, environ=shop.environment)
    specs = topic_table(settings.topics, settings.worker.app_id, session_ttl_ms=6 * 3_600_000)
    ensure_topics(settings.kafka, specs)
    return shop


def click_file(folder: Path, *times: float) -> str:
    """Sessions s0, s1 and s2 in turn; gzipped, with names of columns of its own."""
    path = folder / "clicks.csv.gz"
    rows = [f"s{n % 3},item-{n % 12},{time}" for n, time in enumerate(times)]
    with gzip.open(path, "wt") as text:
        text.write("\n".join(["SessionId,ItemId,timestamp", *rows]) + "\n")
    return str(path)


COLUMNS = ("--session-column", "SessionId", "--item-column", "ItemId")


def test_without_topics_every_command_says_how_to_make_them(
    kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path
) -> None:
    shop = Shop(kafka.bootstrap_servers, topic_prefix, tmp_path)
    commands = [["watch"], ["inspect", "s"], ["replay", click_file(tmp_path, 0), *COLUMNS], ["worker"]]
    for process in [shop.start(*command) for command in commands]:
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (2, b"")
        assert b"`stream-app topics`" in err.replace(b"\n", b" ")
    created = shop.json("topics")["created"]
    assert sorted(created) == sorted(
        [shop.changelog, *map(shop.topic, ("clicks", "rankings", "rejected", "models", "scores"))]
    )


# -- replay -----------------------------------------------------------------------------------------------------------


def test_keys_lie_where_the_partitioner_says(shop: Shop) -> None:
    keys = [f"session-{n}-{'x' * (n % 9)}ü".encode() for n in range(100)]
    placed = shop.produce(shop.topic("rankings"), *((key, b"{}", None) for key in keys))
    assert placed == [partition_of(key, PARTITIONS) for key in keys]


def test_replay_publishes_the_file(shop: Shop) -> None:
    file = click_file(shop.folder, *range(300))
    done = shop.json("replay", file, "--as-fast-as-possible", "--no-rebase", *COLUMNS)
    assert (done["clicks"], done["unconfirmed"], done["interrupted"], done["skipped_rows"]) == (300, 0, False, 0)
    assert done["clicks_per_second"] > 0
    found = []
    for message in shop.read(shop.topic("clicks")):
        key, value = message.key(), message.value()
        click = decode_click(key, value, now_ms=300_000, limits=ClickLimits(min_timestamp_ms=0))
        assert message.partition() == partition_of(click.session_id.encode(), PARTITIONS)
        found.append((click.timestamp, click.session_id, click.item_id, click.event_id))
    assert sorted(found) == [(n * 1000, f"s{n % 3}", f"item-{n % 12}", str(n + 2)) for n in range(300)]


def test_replay_sends_types_by_the_command_of_the_page(shop: Shop) -> None:
    (command,) = [one for one in commands(REPOSITORY / "docs" / "event-types.md") if one.words[0] == "stream-app"]
    assert command.words[1:3] == ("replay", "events.csv")
    kinds = ("view", "addtocart", "transaction", "view")
    rows = [f"{1_433_221_332_117 + 1000 * n},v,{kind},i{n}," for n, kind in enumerate(kinds)]
    text = "\n".join(["timestamp,visitorid,event,itemid,transactionid", *rows])
    (shop.folder / "events.csv").write_text(text + "\n")
    assert shop.json(*command.words[1:], "--as-fast-as-possible")["clicks"] == 4
    clicks = [
        decode_click(message.key(), message.value(), now_ms=2**53, limits=ClickLimits())
        for message in shop.read(shop.topic("clicks"))
    ]
    assert [(click.item_id, click.type) for click in clicks] == [
        ("i0", None),
        ("i1", "cart"),
        ("i2", "purchase"),
        ("i3", None),
    ]


def test_replay_by_the_clock_gives_clicks_the_time_of_their_sending(shop: Shop) -> None:
    before = time.time_ns() // 1_000_000
    file = click_file(shop.folder, 100, 103, 106, 9999)
    out, _ = shop.run("replay", file, "--speed", "60", "--limit", "3", *COLUMNS)
    assert f"3 clicks on {shop.topic('clicks')} in " in out
    clicks = [
        decode_click(message.key(), message.value(), now_ms=2**53, limits=ClickLimits())
        for message in shop.read(shop.topic("clicks"))
    ]
    times = sorted(click.timestamp for click in clicks)
    assert [at - times[0] for at in times] == [0, 50, 100]
    assert times[0] >= before


def test_an_interrupted_replay_sums_up(shop: Shop) -> None:
    file = click_file(shop.folder, 0, 1, 100_000)
    process = shop.start("replay", file, "--json", *COLUMNS)
    deadline = time.monotonic() + PATIENCE
    while sum(1 for _ in shop.read(shop.topic("clicks"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err.decode()
    done = json.loads(out)
    assert (done["clicks"], done["unconfirmed"], done["interrupted"]) == (2, 0, True)


def test_clicks_that_kafka_refuses_fail_the_replay(shop: Shop) -> None:
    narrow = NewTopic(shop.topic("narrow"), 1, 1, config={"max.message.bytes": "60"})
    create_topics({"bootstrap.servers": shop.servers}, narrow)
    file = click_file(shop.folder, 0)
    done = shop.json("replay", file, "--topic", shop.topic("narrow"), *COLUMNS, code=1)
    assert (done["clicks"], done["unconfirmed"]) == (0, 1)
    assert "too large" in done["error"]


def test_a_replay_that_cannot_begin_says_why(shop: Shop) -> None:
    click_file(shop.folder, 0)
    refused = {
        "nowhere.tsv: no such file or folder": ["nowhere.tsv"],
        "has no column nobody": ["clicks.csv.gz", "--session-column", "nobody"],
        "there is no topic nowhere": ["clicks.csv.gz", *COLUMNS, "--topic", "nowhere"],
        "delimiter '::'": ["clicks.csv.gz", *COLUMNS, "--delimiter", "::"],
        "--speed": ["clicks.csv.gz", "--speed", "inf"],
        "--max-gap": ["clicks.csv.gz", "--max-gap", "nan"],
        "minutes": ["clicks.csv.gz", *COLUMNS, "--timestamps", "minutes"],
    }
    started = {message: shop.start("replay", *arguments) for message, arguments in refused.items()}
    for message, process in started.items():
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (2, b"")
        assert message in err.decode()
        assert b"Traceback" not in err


# -- watch ------------------------------------------------------------------------------------------------------------


def ranking(session_id: str, offset: int) -> tuple[bytes, bytes, None]:
    told = Ranking(
        session_id=session_id,
        event_id=None,
        item_id="i0",
        model_version="v1",
        items=(RankedItem("i1", 0.5), RankedItem("i2", 0.25)),
        source=Source("clicks", 0, offset),
        click_timestamp=0,
        produced_at=0,
        reason=RankingReason.MODEL,
    )
    return session_id.encode(), encode_ranking(told), None


def test_watch_from_the_beginning(shop: Shop) -> None:
    shop.produce(shop.topic("rankings"), ranking("s", 1), ranking("t", 2), ranking("s", 3), ranking("s", 4))
    out, _ = shop.run("watch", "--from-beginning", "--json", "--session", "s", "--limit", "2")
    assert [json.loads(line)["source"]["offset"] for line in out.splitlines()] == [1, 3]
    out, _ = shop.run("watch", "--from-beginning", "--limit", "4")
    assert sorted(out.splitlines()) == [
        *["s  clicked i0  next: i1, i2  (v1)"] * 3,
        "t  clicked i0  next: i1, i2  (v1)",
    ]


def test_watch_shows_what_comes(shop: Shop) -> None:
    shop.produce(shop.topic("rankings"), ranking("before", 1))
    process = shop.start("watch", "--json")
    assert process.stderr is not None
    assert process.stdout is not None
    assert b"watching" in process.stderr.readline()
    shop.produce(shop.topic("rankings"), ranking("s", 2))
    assert json.loads(process.stdout.readline())["session_id"] == "s"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, b"", b"")


# -- inspect ----------------------------------------------------------------------------------------------------------


def row(offset: int, clicks: int = 3) -> bytes:
    return encode_state(replace(STATE, offset=offset, clicks=clicks))


def test_inspect_shows_the_newest_row(shop: Shop) -> None:
    home = partition_of(b"s", PARTITIONS)
    shop.produce(shop.changelog, (b"s", row(10, 1), home), (b"t", row(99), home), (b"s", row(12, 2), home))
    found = shop.json("inspect", "s")
    assert (found["clicks"], found["source"]) == (2, {"partition": home, "offset": 12})
    assert found["hidden"] == {"layers": 1, "units": 2, "norm": [5.0]}
    assert (found["model_version"], found["recent"]) == ("v7", ["a", "b"])
    out, _ = shop.run("inspect", "s")
    assert "Session s" in out
    assert f"partition {home}, offset 12 of the clicks" in out


def test_inspect_finds_rows_of_clicks_that_were_placed_otherwise(shop: Shop) -> None:
    elsewhere = (partition_of(b"s", PARTITIONS) + 1) % PARTITIONS
    shop.produce(shop.changelog, (b"s", row(10), elsewhere))
    assert shop.json("inspect", "s")["source"]["partition"] == elsewhere


def test_inspect_says_that_there_is_none(shop: Shop) -> None:
    shop.produce(shop.changelog, (b"s", row(10), None), (b"s", None, None))
    out, err = shop.run("inspect", "s", "--json", code=1)
    assert out == ""
    assert "no row for session 's'" in err
    assert "Traceback" not in err


# -- all together -----------------------------------------------------------------------------------------------------


def test_replayed_clicks_are_ranked_watched_and_inspected(shop: Shop) -> None:
    bundle = TinyModel(k=12).write(shop.folder / "registry", "v1")
    announced = ModelAnnouncement("champion", "v1", str(bundle), manifest_digest(bundle), 0, "test")
    shop.produce(shop.topic("models"), (b"champion", encode_announcement(announced), None))
    file = click_file(shop.folder, *range(30))
    assert shop.json("replay", file, "--as-fast-as-possible", *COLUMNS)["clicks"] == 30
    with (shop.folder / "worker.log").open("wb") as log:
        worker = shop.start("worker", "--web-port", "0", stderr=log)
    try:
        out, _ = shop.run("watch", "--from-beginning", "--json", "--limit", "30")
    finally:
        worker.send_signal(signal.SIGTERM)
        code = worker.wait(PATIENCE)
        assert worker.stdout is not None
        worker.stdout.close()
    assert code == 0, (shop.folder / "worker.log").read_text()
    shown = [json.loads(line) for line in out.splitlines()]
    assert {one["event_id"] for one in shown} == {str(line) for line in range(2, 32)}
    found = shop.json("inspect", "s1")
    assert (found["model_version"], found["clicks"]) == ("v1", 10)
    assert found["recent"] == [f"item-{n % 12}" for n in range(1, 30, 3)]
    last = max((one for one in shown if one["session_id"] == "s1"), key=lambda one: one["source"]["offset"])
    assert found["source"] == {"partition": last["source"]["partition"], "offset": last["source"]["offset"]}

    # What it was at an earlier click, computed anew.
    answers = sorted((one for one in shown if one["session_id"] == "s1"), key=lambda one: one["source"]["offset"])
    for n in (0, 6):
        offset = answers[n]["source"]["offset"]
        then = shop.json("replay-session", "s1", "--at", str(offset))
        assert then["published"] in ("equal", "equal but for rounding")
        assert then["at"] == {"partition": answers[n]["source"]["partition"], "offset": offset}
        assert (then["row"]["clicks"], then["row"]["recent"]) == (n + 1, found["recent"][: n + 1])
        assert [one["item_id"] for one in then["items"]] == [one["item_id"] for one in answers[n]["items"]]
    out, err = shop.run("replay-session", "s1", "--at", "1000", code=1)
    assert "session 's1' has no click at offset 1000" in err

    # Why it is as it is now.
    told = shop.json("explain", "s1")
    assert (told["model_version"], told["clicks"], told["replayed"]) == ("v1", 10, False)
    assert [one["item_id"] for one in told["items"]] == [one["item_id"] for one in last["items"]]
    scores = [one["score"] for one in told["items"]]
    np.testing.assert_allclose(scores, [one["score"] for one in last["items"]], atol=1e-2)
    assert list(told["items"][0]["recent"]) == list(dict.fromkeys(reversed(found["recent"])))
    # The commands of the page.
    named = {"SESSION": "s1", "ITEM": last["items"][0]["item_id"], "4711": str(answers[3]["source"]["offset"])}
    page = commands(REPOSITORY / "docs" / "explain.md")
    outputs = [shop.run(*(named.get(word, word) for word in command.words[1:]))[0] for command in page]
    assert [command.words[1] for command in page] == ["explain", "explain", "replay-session", "replay-session"]
    assert "place without it" in outputs[1]
    assert all("equal" in out for out in outputs[2:])
    out, err = shop.run("explain", "s1", "--item", "nothing", code=1)
    assert "v1 does not know the item 'nothing'" in err
    assert "no row for session 'nobody'" in shop.run("explain", "nobody", code=1)[1]
