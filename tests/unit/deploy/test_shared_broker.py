"""One broker for all processes of a run, and what the tests do about one that is gone."""

import fcntl
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.kafka import LocalKafkaError
from deploy.kafka.ports import free_port
from tests.conftest import OWN_BROKER, SHARED_BROKER, pytest_runtest_setup
from tests.patience import PATIENCE
from tests.shared_broker import SharedBroker, answers


class ListeningBroker:
    """In a LocalKafka's place: nothing but its port."""

    def __init__(self, ports: Sequence[int] | None) -> None:
        self._port = ports[0] if ports else 0
        self.stopping: Callable[[], object] = bool

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", self._port))
        self._port = self._socket.getsockname()[1]

    def die(self) -> None:
        self._socket.close()

    def stop(self) -> None:
        self.stopping()
        self.die()


class Run:
    """Processes of one run. A lock belongs to an open file, so here they are objects, and threads where they wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.brokers: list[ListeningBroker] = []

    def process(self) -> SharedBroker:
        def new(_logs: Path, ports: Sequence[int] | None) -> ListeningBroker:
            self.brokers.append(ListeningBroker(ports))
            return self.brokers[-1]

        return SharedBroker(self.folder, new)

    def leave(self, *processes: SharedBroker) -> None:
        """At the same time."""
        threads = [beside(process.leave) for process in processes]
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert not any(answers(broker.bootstrap_servers) for broker in self.brokers)


def beside(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The locks that were asked for, as far as they had to be waited for."""
    waited: list[int] = []
    real = fcntl.flock

    def flock(file: Any, kind: int) -> None:
        try:
            real(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            waited.append(kind)
            real(file, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    return waited


def until(condition: Callable[[], object], thread: threading.Thread) -> None:
    while not condition():
        assert thread.is_alive()


def test_the_first_starts_it_and_its_owner_stops_it_after_the_others(run: Run, asked: list[int]) -> None:
    owner, other = run.process(), run.process()
    address = owner.join()
    assert other.join() == address
    assert asked == []
    order: list[str] = []
    run.brokers[0].stopping = lambda: order.append("stopped")
    leaving = beside(owner.leave)
    until(lambda: asked == [fcntl.LOCK_EX], leaving)
    late = run.process()
    assert late.join() == address  # while its owner waits it is there for everybody
    other.leave()
    order.append("left")
    late.leave()
    leaving.join(PATIENCE)
    assert order == ["left", "stopped"]
    assert not (run.folder / "kafka.address").exists()
    assert len(run.brokers) == 1


def test_who_comes_while_it_is_stopped_has_another(run: Run, asked: list[int]) -> None:
    owner, late = run.process(), run.process()
    owner.join()
    go_on, found = threading.Event(), list[str]()
    stopping = threading.Event()

    def stop() -> None:
        stopping.set()
        assert go_on.wait(PATIENCE)

    run.brokers[0].stopping = stop
    leaving = beside(owner.leave)
    assert stopping.wait(PATIENCE)
    coming = beside(lambda: found.append(late.join()))
    until(lambda: asked == [fcntl.LOCK_SH], coming)
    go_on.set()
    coming.join(PATIENCE)
    leaving.join(PATIENCE)
    assert found == [run.brokers[1].bootstrap_servers]
    assert answers(found[0])
    run.leave(late)


def test_one_that_is_gone_is_told_of_once_and_another_has_its_port(run: Run) -> None:
    owner, other = run.process(), run.process()
    address = owner.join()
    other.join()
    owner.logs.mkdir()
    (owner.logs / "broker-0.log").write_text("[2026-01-01] INFO: up\n[2026-01-01] ERROR out of memory\n")
    assert other.replaced() is None
    run.brokers[0].die()
    told = other.replaced()
    assert told is not None
    assert "broker-0.log" in told
    assert "ERROR out of memory" in told
    assert [owner.replaced(), other.replaced()] == [None, None]
    assert run.brokers[1].bootstrap_servers == address
    run.leave(owner, other)  # now both own one


@pytest.mark.parametrize("whole", [True, False])
def test_an_address_that_a_killed_owner_left_is_nobodys(run: Run, whole: bool) -> None:
    left = f"127.0.0.1:{free_port()}" if whole else ""
    (run.folder / "kafka.address").write_text(left)
    process = run.process()
    assert process.join() == left or not left
    assert len(run.brokers) == 1
    run.leave(process)


def test_one_that_does_not_start_keeps_no_other_process_from_trying(run: Run) -> None:
    def fail(*_: object) -> ListeningBroker:
        raise LocalKafkaError("no space left on device")

    first, second = SharedBroker(run.folder, fail), run.process()
    with pytest.raises(LocalKafkaError, match="no space left"):
        first.join()
    assert answers(second.join())
    run.leave(first, second)


class DeadBroker:
    """A process's own."""

    running_brokers: frozenset[int] = frozenset()

    def __init__(self, trouble: str | None) -> None:
        self.trouble = trouble

    def start_broker(self, broker: int) -> None:
        if self.trouble:
            raise LocalKafkaError(self.trouble)
        self.running_brokers = frozenset({broker})


def before_a_test(key: object, broker: object) -> Any:
    """A test that wants a Kafka, in a process with this broker."""
    session = SimpleNamespace(stash={key: broker}, shouldfail=False)
    return SimpleNamespace(session=session, get_closest_marker={"kafka": "marked"}.get)


def test_a_broker_of_ones_own_is_started_again() -> None:
    broker = DeadBroker(None)
    item = before_a_test(OWN_BROKER, broker)
    pytest_runtest_setup(item)
    assert broker.running_brokers == {0}
    assert item.session.shouldfail is False


def test_the_run_ends_with_its_log_when_it_does_not_start() -> None:
    item = before_a_test(OWN_BROKER, DeadBroker("broker 0 ended with exit code 1: no space left on device"))
    with pytest.raises(LocalKafkaError, match="no space left"):
        pytest_runtest_setup(item)
    assert "no space left" in item.session.shouldfail


def test_a_shared_broker_that_was_gone_fails_one_test_and_not_the_run() -> None:
    item = before_a_test(SHARED_BROKER, SimpleNamespace(replaced=lambda: "it was gone; see broker-0.log"))
    with pytest.raises(pytest.fail.Exception, match=r"broker-0\.log"):
        pytest_runtest_setup(item)
    assert item.session.shouldfail is False
