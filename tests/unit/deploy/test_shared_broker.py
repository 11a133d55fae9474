"""What the tests do about a shared broker that is gone."""

from types import SimpleNamespace
from typing import Any

import pytest

from deploy.kafka import LocalKafkaError
from tests.conftest import SHARED_BROKER, pytest_runtest_setup


class DeadBroker:
    running_brokers: frozenset[int] = frozenset()

    def __init__(self, trouble: str | None) -> None:
        self.trouble = trouble

    def start_broker(self, broker: int) -> None:
        if self.trouble:
            raise LocalKafkaError(self.trouble)
        self.running_brokers = frozenset({broker})


def session(broker: object) -> Any:
    return SimpleNamespace(stash={SHARED_BROKER: broker}, shouldfail=False)


def test_it_is_started_again() -> None:
    broker = DeadBroker(None)
    item: Any = SimpleNamespace(session=session(broker))
    pytest_runtest_setup(item)
    assert broker.running_brokers == {0}
    assert item.session.shouldfail is False


def test_the_run_ends_with_its_log_when_it_does_not_start() -> None:
    item: Any = SimpleNamespace(session=session(DeadBroker("broker 0 ended with exit code 1: no space left on device")))
    with pytest.raises(LocalKafkaError, match="no space left"):
        pytest_runtest_setup(item)
    assert "no space left" in item.session.shouldfail
