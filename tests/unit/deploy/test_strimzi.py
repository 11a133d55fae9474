"""Strimzi's manifests against the topic table, and the page against the rights."""

import re
from pathlib import Path

import typer
import yaml
from typer.testing import CliRunner

from deploy.strimzi.__main__ import run as command
from deploy.strimzi.manifests import manifests
from deploy.strimzi.rights import rights
from schemas.config.settings import TopicSettings
from stream_app.settings import StreamSettings, WorkerSettings
from tests.container_files import REPOSITORY
from tests.doc_pages import table

SETTINGS = StreamSettings(
    topics=TopicSettings(partitions=16, replication=3), worker=WorkerSettings(items=True, rules=True, splits=True)
)


def test_every_topic_is_as_the_table_has_it() -> None:
    found = [one for one in manifests(SETTINGS, cluster="c", authentication="tls") if one["kind"] == "KafkaTopic"]
    assert [
        (one["spec"]["topicName"], one["spec"]["partitions"], one["spec"]["replicas"], one["spec"]["config"])
        for one in found
    ] == [(spec.name, spec.partitions, spec.replication, dict(spec.config)) for spec in SETTINGS.topic_specs()]


def test_names_are_such_as_kubernetes_takes() -> None:
    settings = StreamSettings(
        topics=TopicSettings(prefix="Shop_", clicks="A.Clicks_"), worker=WorkerSettings(app_id="A")
    )
    found = list(manifests(settings, cluster="c", authentication="tls"))
    names = [one["metadata"]["name"] for one in found]
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name) for name in names)
    assert len(set(zip([one["kind"] for one in found], names, strict=True))) == len(found)
    assert found[0]["spec"]["topicName"] == "Shop_A.Clicks_"
    acls = [
        acl["resource"] for one in found if one["kind"] == "KafkaUser" for acl in one["spec"]["authorization"]["acls"]
    ]
    assert {acl["name"] for acl in acls if not acl["name"].startswith("Shop_")} == {"shop-"}
    assert all(one["metadata"]["labels"] == {"strimzi.io/cluster": "c"} for one in found)


def test_the_command_prints_them_and_refuses_wrong_settings(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    file = tmp_path / "nextclick.toml"
    file.write_text("[topics]\npartitions = 16\nreplication = 3\n[worker]\nitems = true\nrules = true\nsplits = true\n")
    done = CliRunner().invoke(app, ["--config", str(file), "--cluster", "kafka-a", "--authentication", "tls"])
    assert done.exit_code == 0, done.output
    printed = list(yaml.safe_load_all(done.output))
    assert printed == list(manifests(SETTINGS, cluster="kafka-a", authentication="tls"))
    file.write_text(file.read_text() + '[trainer]\ncollect_group = "collect"\n')
    done = CliRunner().invoke(app, ["--config", str(file), "--cluster", "kafka-a"])
    users = [one for one in yaml.safe_load_all(done.output) if one["metadata"]["name"] == "nextclick-trainer"]
    acls = users[0]["spec"]["authorization"]["acls"]
    group = {"type": "group", "name": "collect", "patternType": "literal"}
    assert {"resource": group, "operations": ["Read"]} in acls
    file.write_text("[topics]\npartitons = 16\n")
    assert CliRunner().invoke(app, ["--config", str(file)]).exit_code == 2


def test_the_security_page_has_every_right() -> None:
    processes = {
        "`stream-app topics`": "topics",
        "`stream-app worker`": "worker",
        "`stream-app score`": "score",
        "`trainer run`": "trainer",
        "`trainer guard`": "guard",
        "`stream-app api`": "api",
        "`stream-app sink`": "sink",
        "`stream-app rejected`": "rejected",
        "the shop": "shop",
    }
    told: set[tuple[str, str, tuple[str, ...]]] = set()
    process = ""
    for who, what, operations in table(REPOSITORY / "docs" / "security.md", "| process | resource | operations |"):
        process = processes[who] if who else process
        named = set(re.findall(r"`([^`]+)`", what)) - {"worker.app_id"}
        names = {spec.name for spec in SETTINGS.topic_specs()} if what == "every topic" else named
        told |= {(process, name, tuple(operations.split(", "))) for name in names}
    assert told == {(name, right.name, right.operations) for name, own in rights(SETTINGS).items() for right in own}
