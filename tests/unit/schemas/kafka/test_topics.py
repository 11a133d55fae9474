"""The topic table, and a cluster's topics compared with it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from schemas.config.settings import load_settings
from schemas.errors import SettingsError, TopicError
from schemas.kafka import admin as topics_admin
from schemas.kafka.admin import FoundTopic, TopicReport, check_topics, differences, ensure_topics, missing_topics
from schemas.kafka.connection import KafkaConnection, TopicSettings
from schemas.kafka.topics import TopicSpec, changelog_topic, topic_table
from stream_app.settings import StreamSettings
from trainer.service.settings import TrainerRoot

HOUR = 3_600_000
TABLE = topic_table(TopicSettings(partitions=4), "shop", session_ttl_ms=2 * HOUR)
CHANGELOG = "shop-sessions-changelog"
CONNECTION = KafkaConnection(bootstrap_servers="broker:9092")


def as_specified(table: tuple[TopicSpec, ...] = TABLE) -> dict[str, FoundTopic]:
    return {spec.name: FoundTopic(spec.partitions, spec.replication, dict(spec.config)) for spec in table}


def changed(name: str, config: Mapping[str, str] | None = None, **fields: Any) -> dict[str, FoundTopic]:
    found = as_specified()
    old = found[name]
    found[name] = dataclasses.replace(old, config={**old.config, **(config or {})}, **fields)
    return found


def test_the_table() -> None:
    assert [spec.name for spec in TABLE] == ["clicks", "rankings", "clicks.rejected", "models", "scores", CHANGELOG]
    assert changelog_topic("shop") == CHANGELOG
    assert [spec.partitions for spec in TABLE] == [4, 4, 4, 1, 4, 4]
    assert all(spec.description and spec.key for spec in TABLE)
    assert {spec.config["message.timestamp.type"] for spec in TABLE} == {"LogAppendTime"}


def test_a_prefix_stands_before_every_name(tmp_path: Path) -> None:
    plain, prefixed = TopicSettings(), TopicSettings(prefix="shop-a.", models="my-models")
    names = {name for name, info in TopicSettings.model_fields.items() if isinstance(info.default, str)} - {"prefix"}
    for name in names - {"models"}:
        assert getattr(prefixed, name) == f"shop-a.{getattr(plain, name)}"
    assert prefixed.models == "shop-a.my-models"
    environ = {"NEXTCLICK_TOPICS__PREFIX": "shop-a.", "NEXTCLICK_TRAINER__REGISTRY": str(tmp_path)}
    stream = load_settings(StreamSettings, config=None, environ=environ)
    assert {spec.name.startswith("shop-a.") for spec in stream.topic_specs()} == {True}
    assert stream.app_id == "shop-a.nextclick"
    trainer = load_settings(TrainerRoot, config=None, environ=environ)
    assert (trainer.topics, trainer.group) == (stream.topics, "shop-a.nextclick-trainer")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"prefix": "shop a"}, r"^setting refused: topics\.prefix .* should match pattern"),
        ({"prefix": "x" * 100, "clicks": "y" * 150}, r"topics\.clicks .* should match pattern"),
        ({"prefix": "a.", "clicks": "same", "models": "same"}, r"two topics have the name 'a\.same'"),
    ],
)
def test_a_prefix_that_makes_no_names_is_refused(settings: dict[str, str], problem: str) -> None:
    given = {f"topics.{name}": value for name, value in settings.items()}
    with pytest.raises(SettingsError, match=problem):
        load_settings(StreamSettings, config=None, environ={}, overrides=given)


def test_ended_sessions_leave_the_changelog() -> None:
    config = TABLE[-1].config
    assert config["cleanup.policy"] == "compact,delete"
    assert int(config["retention.ms"]) == 2 * HOUR
    assert int(config["segment.ms"]) == HOUR // 2


@pytest.mark.parametrize(("replication", "in_sync"), [(1, "1"), (2, "1"), (3, "2"), (5, "3")])
def test_writes_survive_one_broker_where_there_are_three(replication: int, in_sync: str) -> None:
    table = topic_table(TopicSettings(replication=replication), "shop", session_ttl_ms=HOUR)
    assert {spec.config["min.insync.replicas"] for spec in table} == {in_sync}


def test_nothing_differs_from_itself() -> None:
    assert differences(TABLE, as_specified()) == []
    assert missing_topics(TABLE, as_specified()) == []
    assert differences(TABLE, changed(CHANGELOG, {"cleanup.policy": "delete, compact"})) == []


def test_a_changelog_is_made_for_the_clicks_that_are_there() -> None:
    there = {"clicks": FoundTopic(12, 1, TABLE[0].config)}
    assert [(spec.name, count) for spec, count in missing_topics(TABLE, there)] == [
        ("rankings", 4), ("clicks.rejected", 4), ("models", 1), ("scores", 4), (CHANGELOG, 12),
    ]  # fmt: skip
    assert [count for _, count in missing_topics(TABLE, {})] == [4, 4, 4, 1, 4, 4]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (changed(CHANGELOG, partitions=3), f"topic {CHANGELOG}: partitions is 3, expected 4; .*delete {CHANGELOG}"),
        (changed("clicks", partitions=5), f"topic {CHANGELOG}: partitions is 4, expected 5"),
        (changed(CHANGELOG, {"cleanup.policy": "compact"}), "cleanup.policy is compact, expected compact,delete"),
        (changed(CHANGELOG, {"cleanup.policy": "delete"}), r"kafka-configs .*cleanup.policy=\[compact,delete\]"),
        (changed("models", {"cleanup.policy": "delete"}), "topic models: cleanup.policy is delete, expected compact"),
    ],
)
def test_a_worker_does_not_start_with(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, FoundTopic], message: str
) -> None:
    monkeypatch.setattr(topics_admin._Cluster, "describe", lambda *_: found)
    with pytest.raises(TopicError, match=message):
        check_topics(CONNECTION, TABLE)


@pytest.mark.parametrize(
    ("found", "topic", "setting"),
    [
        (changed("rankings", partitions=3), "rankings", "partitions"),
        (changed("models", replication=2), "models", "replication"),
        (changed("clicks", {"retention.ms": "1"}), "clicks", "retention.ms"),
        (changed(CHANGELOG, {"retention.ms": "-1"}), CHANGELOG, "retention.ms"),
        (changed(CHANGELOG, {"segment.ms": "1"}), CHANGELOG, "segment.ms"),
    ],
)
def test_a_worker_starts_and_tells(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, FoundTopic], topic: str, setting: str
) -> None:
    monkeypatch.setattr(topics_admin._Cluster, "describe", lambda *_: found)
    (difference,) = check_topics(CONNECTION, TABLE)
    assert (difference.topic, difference.setting, difference.fatal) == (topic, setting, False)


def test_missing_topics_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = as_specified()
    del found["models"], found[CHANGELOG]
    monkeypatch.setattr(topics_admin._Cluster, "describe", lambda *_: found)
    with pytest.raises(TopicError, match=rf"broker:9092: models, {CHANGELOG}; create them with `stream-app topics`"):
        check_topics(CONNECTION, TABLE)


def test_a_broker_that_is_not_there_is_told() -> None:
    nowhere = KafkaConnection(bootstrap_servers="127.0.0.1:1")
    for act in (ensure_topics, check_topics):
        with pytest.raises(
            TopicError, match=r"Kafka at 127\.0\.0\.1:1 does not answer: .*Connection refused.*is it running"
        ):
            act(nowhere, TABLE, timeout=0.2)


def test_unusable_connection_settings_are_told() -> None:
    connection = KafkaConnection(security_protocol="SSL", ssl_ca_location="/no/such/ca.pem")
    with pytest.raises(TopicError, match=r"settings in \[kafka\] are not usable"):
        check_topics(connection, TABLE, timeout=0.2)


def test_a_report_is_plain_data() -> None:
    report = TopicReport(("a",), (), ())
    assert dataclasses.asdict(report) == {"created": ("a",), "present": (), "differs": ()}
