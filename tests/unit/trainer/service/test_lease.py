"""One trainer a registry and alias, in a folder and in an object store: who holds the lease, who is refused."""

import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from trainer.errors import LeaseError, RegistryError, StopRequested
from trainer.service.lease import Lease
from trainer.service.store import Store

PATH = "_lease/champion.json"


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.service.lease._SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("trainer.service.lease._POLL_SECONDS", 0.01)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    yield Store(str(tmp_path / "registry") if request.param == "local" else f"memory://{uuid.uuid4().hex}/models")
    MemoryFileSystem.store.clear()


def test_a_second_trainer_is_refused_by_the_name_of_the_first(store: Store) -> None:
    with Lease(store, "champion", "first", seconds=0.4):
        with (
            pytest.raises(LeaseError, match=r"publishes the alias champion here \(host .+, process \d+, since 20"),
            Lease(store, "champion", "second", seconds=60),
        ):
            pass
        with Lease(store, "canary", "second"):
            pass  # another alias is another trainer's business
        with (
            Lease(store, "champion", "third", guards=True, seconds=0.4),
            pytest.raises(LeaseError, match=r"another guard watches the alias champion here \("),
            Lease(store, "champion", "fourth", guards=True, seconds=60),
        ):
            pass
    with Lease(store, "champion", "second"):  # given back
        pass
    assert store.read(PATH) is None


def killed(store: Store, writer: str) -> Lease:
    """A trainer that was killed: its lease is there, and nobody renews it."""
    lease = Lease(store, "champion", writer, seconds=3600)
    lease.__enter__()
    lease._ended.set()
    return lease


def test_a_killed_trainer_takes_its_own_lease_back_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = killed(store, "first")

    def never(*_: object) -> None:
        raise AssertionError("it waited")

    monkeypatch.setattr("trainer.service.lease.time.sleep", never)
    with Lease(store, "champion", "first") as lease:
        lease.check()
        with pytest.raises(LeaseError):  # its log was copied, and it lives after all: one of the two stops
            before.check()
        lease.check()


def test_the_lease_of_a_dead_trainer_runs_out(store: Store) -> None:
    dead = killed(store, "first")
    with Lease(store, "champion", "second", seconds=0.2) as lease:
        lease.check()
        with pytest.raises(LeaseError, match="another trainer publishes"):
            dead.check()
    assert store.read(PATH) is None


@pytest.mark.parametrize(
    ("changed", "waits"),
    [
        ({}, False),
        ({"pid": os.getppid()}, True),
        ({"home": "another boot, or another container"}, True),
        ({"home": ""}, True),  # of an older version, or not on Linux
    ],
)
@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_holder_that_has_ended_on_this_machine_is_not_waited_for(
    store: Store, changed: dict[str, Any], *, waits: bool
) -> None:
    """A guard that was killed has no name by which it knows its own lease, and the host's name is no proof."""
    killed(store, "first")
    with subprocess.Popen(["true"]) as ended:
        pass
    held = msgspec.json.decode(store.read(PATH) or b"") | {"pid": ended.pid} | changed
    store.write(PATH, msgspec.json.encode(held))
    second = Lease(store, "champion", "second", stopping=lambda: True)
    if waits:
        with pytest.raises(StopRequested), second:
            pass
    else:
        with second:
            second.check()


@pytest.mark.parametrize(
    "torn", [b"{torn", b'{"writer":"","process":"","host":"","pid":1,"since":1%s,"renewed":0}' % (b"0" * 99)]
)
def test_a_lease_that_is_no_lease_runs_out_too(store: Store, torn: bytes) -> None:
    store.write(PATH, torn)
    with Lease(store, "champion", "second", seconds=0.2) as lease:
        lease.check()


def test_whoever_waits_for_a_lease_can_be_stopped(store: Store) -> None:
    killed(store, "first")
    with pytest.raises(StopRequested), Lease(store, "champion", "second", stopping=lambda: True):
        pass


def test_of_two_that_write_at_once_the_later_has_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find no lease; the first one's look after writing tells it."""
    rival = Lease(store, "champion", "second")
    monkeypatch.setattr("trainer.service.lease.time.sleep", lambda _: rival._write())
    with pytest.raises(LeaseError, match="another trainer publishes"), Lease(store, "champion", "first"):
        pass
    rival.check()


def test_a_taken_lease_is_found_out_by_the_renewing_thread(store: Store) -> None:
    with Lease(store, "champion", "first", seconds=0.1) as lease:
        Lease(store, "champion", "second")._write()
        lease._thread.join(timeout=60)
        with pytest.raises(LeaseError, match="another trainer publishes"):
            lease.raise_if_lost()
    assert store.read(PATH) is not None  # not ours to give back


def test_a_store_that_is_away_costs_no_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def away(*_: object) -> None:
        asked.set()
        raise RegistryError("the store is away")

    with Lease(store, "champion", "first", seconds=0.1) as lease:
        with monkeypatch.context() as patched:
            patched.setattr(Store, "read", away)
            assert asked.wait(60)
            with pytest.raises(RegistryError, match="away"):
                lease.check()
        lease.check()
        assert lease._thread.is_alive()
