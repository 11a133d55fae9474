"""Experiments by the trainer's commands, on a real Kafka: shares, what is refused, and a challenger that wins."""

import json
import re
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer

from bench.random_model import random_bundle
from deploy.demo.oracle import read_topic
from schemas.messages.score import encode_score, score_key
from schemas.messages.split import Split, Variant, decode_split
from stream_app.__main__ import main as stream_app
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.doc_pages import blocks, lines, parse
from tests.integration.trainer_deployment import Deployment
from tests.patience import PATIENCE
from tests.unit.trainer.service.test_guard import scores
from trainer.__main__ import main as trainer
from trainer.service.assembly import championship_of, registry_of, split_topic_of

ITEMS = tuple(f"item-{n}" for n in range(40))
PAGE = REPOSITORY / "docs" / "experiments.md"


@pytest.fixture
def deployment(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Deployment:
    """A champion and another version, and no topic of splits yet."""
    deployment = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    deployment.create_topics()
    registry = registry_of(deployment.root())
    for n, version in enumerate(("v1", "v2")):
        registry.publish(random_bundle(tmp_path / "staging", version, ITEMS, units=8, seed=n))
    championship_of(deployment.root(), registry).promote(registry.get("v1"), "the first")
    return deployment


class Shell:
    """Runs commands in this process: a trainer's takes seconds to start."""

    def __init__(
        self, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._patch, self._capsys = monkeypatch, capsys
        for name, value in (deployment.environ | {"COLUMNS": "200"}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(deployment.folder)
        # The logs of this process are pytest's.
        monkeypatch.setattr("trainer.commands.settings.configure_logs", lambda *_, **__: None)

    def __call__(self, line: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a command, of the second version where it names one."""
        [command] = parse(line.replace("VERSION", "v2"))
        program, *words = command.words
        if program == "export":
            self._patch.setenv(*words[0].split("=", 1))
            return 0, "", ""
        self._patch.setattr("sys.argv", [program, *words])
        try:
            {"trainer": trainer, "stream-app": stream_app}[program]()
        except SystemExit as ended:
            output = self._capsys.readouterr()
            return int(ended.code or 0), output.out, output.err
        raise AssertionError("typer exits")


@pytest.fixture
def shell(deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(deployment, monkeypatch, capsys)


def split_of(deployment: Deployment) -> Split | None:
    return split_topic_of(deployment.root()).current()


def test_the_commands_of_the_page_and_a_challenger_that_wins(deployment: Deployment, shell: Shell) -> None:
    begin, show, end = (lines(block) for block in blocks(PAGE, "sh")[:3])
    done = [shell(line) for line in begin]
    assert [code for code, _, _ in done] == [0] * len(begin), done
    assert done[-1][1] == "split: champion 90 %, challenger 10 %\n"
    expected = Split(app_id=deployment.app_id, variants=(Variant("champion", 90.0), Variant("challenger", 10.0)))
    assert split_of(deployment) == expected
    table, listed, told = (shell(line)[1] for line in show)
    assert re.search(r"v2 .* challenger *\n", table)
    assert told in table
    assert [(one["version"], one["aliases"], one["share"]) for one in json.loads(listed)] == [
        ("v1", ["champion"], 90.0),
        ("v2", ["challenger"], 10.0),
    ]
    for shares, problem in (
        ("champion=90 challenger=9", "the shares add up to 99, and must add up to 100"),
        ("champion=50 nobody=50", "no 'nobody' is announced; do that with `trainer promote VERSION --alias nobody`"),
        ("champion=50 challenger=half", "'challenger=half' is no share"),
        ("champion=50 champion=50", "'champion' is named twice"),
    ):
        code, _, error = shell(f"trainer split {shares}")
        assert code == 2
        assert problem in error
    assert split_of(deployment) == expected
    code, _, error = shell("trainer shadow challenger")
    assert (code, "challenger is named as a shadow and once more" in error) == (2, True)

    start = time.time_ns() // 1_000_000 + 60_000  # windows since both were announced
    producer = Producer({"bootstrap.servers": deployment.bootstrap_servers})
    for score in [*scores("v1", 0.4, start=start, variant="champion"), *scores("v2", 0.5, start=start, variant="b")]:
        producer.produce(deployment.topics.scores, encode_score(score), score_key(score))
    assert producer.flush(PATIENCE) == 0
    assert "would promote v2" in shell("trainer guard --once --dry-run")[1]
    assert deployment.models_topic().announced()["champion"].version == "v1"
    assert "promote v2" in shell("trainer guard --once")[1]
    champion = deployment.models_topic().announced()["champion"]
    assert champion.version == "v2"
    assert champion.evidence is not None
    assert champion.evidence["compared_with"]["version"] == "v2"
    assert split_of(deployment) == expected  # a kill between the two leaves it so
    shell("trainer guard --once")
    assert split_of(deployment) is None
    assert [shell(line)[0] for line in end] == [0]
    beside, gone = (lines(block) for block in blocks(PAGE, "sh")[3:])
    answers = [shell(line) for line in beside]
    assert answers[-1] == (0, "no split: one model serves all sessions\nshadow: challenger\n", "")
    assert split_of(deployment) == Split(app_id=deployment.app_id, shadow=("challenger",))
    assert "shadow: challenger" in shell("trainer models")[1]
    shell("trainer split champion=90 challenger=10")
    assert split_of(deployment) == expected  # which ranks for some now, and not beside them
    assert [shell(line)[0] for line in gone] == [0]
    assert split_of(deployment) == expected
    config = {"bootstrap.servers": deployment.bootstrap_servers}
    records = [record.value() for record in read_topic(config, deployment.topics.splits)]
    assert [None if value is None else decode_split(deployment.app_id.encode(), value) for value in records[:3]] == [
        expected, None, None,
    ]  # fmt: skip


def test_without_the_topic_nothing_is_divided_and_one_line_says_so(deployment: Deployment, shell: Shell) -> None:
    code, _, error = shell("trainer split champion=100")
    assert code == 2
    assert f"the topic {deployment.topics.splits} does not exist; create it with" in error
    code, table, _ = shell("trainer models")
    assert code == 0
    assert "split" not in table
