"""Every command of docs/online-scores.md, on a real Kafka."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from schemas.messages.score import totals_by_model
from tests.conftest import KafkaUnderTest
from tests.doc_pages import REPOSITORY, blocks
from tests.faults.scorers import Scorers, shop_rankings

PAGE = REPOSITORY / "docs" / "online-scores.md"


@pytest.fixture
def scorers(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Iterator[Scorers]:
    scorers = Scorers(kafka.bootstrap_servers, topic_prefix, tmp_path)
    yield scorers
    scorers.stop_all()


def run(scorers: Scorers, line: str) -> "subprocess.CompletedProcess[str]":
    program, *words = line.split()
    assert program == "stream-app"
    return subprocess.run(
        [sys.executable, "-m", "stream_app", *words],
        cwd=scorers.root,
        env=scorers.environment() | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_of_the_page(scorers: Scorers) -> None:
    nothing = run(scorers, "stream-app scores")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "`stream-app score` publishes them" in nothing.stderr
    told: dict[str, str] = {}
    for line in (line for block in blocks(PAGE, "sh") for line in block.splitlines() if line):
        if line == "stream-app score":
            scorers.publish(shop_rankings(300))
            scorers.start()
            scorers.wait_until_counted()
            continue
        done = run(scorers, line)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        told[line] = done.stdout
    totals = totals_by_model(scorers.scores())
    assert set(totals) == {"v1", "v2"}
    whole = told["stream-app scores"]
    for version, total in totals.items():
        assert version in whole
        assert f"{total.predictions:,}" in whole
        assert f"{total.recall:.4f}" in whole
    by_type = told["stream-app scores --last 6h --by type"]
    assert "cart" in by_type
    assert "view" in by_type
    lines = json.loads(told["stream-app scores --by market --by window --json"])
    assert sum(line["predictions"] for line in lines) == sum(total.predictions for total in totals.values())
    assert {line["market"] for line in lines} == {"", "de"}


def test_shadows_are_scored_beside_those_that_serve(
    scorers: Scorers, kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path
) -> None:
    """In the same windows and partitions: neither goes on from the other's scores, however often it is started."""
    beside = Scorers(kafka.bootstrap_servers, topic_prefix, tmp_path / "beside", shadows=True)
    beside.root.mkdir()
    served = shop_rankings(120)
    shadows = [replace(one, variant="shadow:b", model_version="v3") for one in shop_rankings(90)]
    scorers.publish(served)
    beside.publish(shadows[:300])
    try:
        scorers.start()
        first = beside.start()
        beside.wait_until_counted()
        scorers.wait_until_counted()
        first.kill()
        beside.publish(shadows[300:])
        beside.start("another folder")
        beside.wait_until_counted()
        assert set(totals_by_model(beside.scores())) == {"v3"}
        assert "shadow:b" in run(scorers, "stream-app scores --by variant").stdout
    finally:
        beside.stop_all()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--by colour", "colour is none of variant, market, window, type, reason"),
        ("--by type --by reason", "type and reason are counted apart"),
        ("--last week", "'week' is no duration"),
    ],
)
def test_a_wrong_question_is_refused(scorers: Scorers, options: str, problem: str) -> None:
    done = run(scorers, f"stream-app scores {options}")
    assert done.returncode == 2
    assert problem in " ".join(done.stderr.replace("│", " ").split())
