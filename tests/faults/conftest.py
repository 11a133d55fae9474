"""A deployment for each fault test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.messages.click import Click
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.faults.deployment import Deployment, real_clicks

CLICKS = 12_000
STREAM = 20_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "faults" in item.path.parts:
            item.add_marker(pytest.mark.fault)


@pytest.fixture(scope="session")
def stream() -> list[Click]:
    """Real clicks where the files are there, else simulated ones, for a load to go through again and again."""
    folder = REPOSITORY.parent / "shared" / "data"
    return real_clicks(folder if folder.is_dir() else None, STREAM)


@pytest.fixture(scope="session")
def clicks(stream: list[Click]) -> list[Click]:
    """As many as a worker has done in seconds."""
    return stream[:CLICKS]


@pytest.fixture
def deployment(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path, stream: list[Click]) -> Iterator[Deployment]:
    """Topics, a first model and no worker yet. A tenth of the items are unknown to the model."""
    items = sorted({click.item_id for click in stream})
    deployment = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path, [i for n, i in enumerate(items) if n % 10])
    deployment.announce(deployment.bundle("v1"))
    yield deployment
    deployment.stop_all()
