"""Whatever lies in a registry under the names of our small files: it is read or left alone, and no version is lost."""

import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import examples
from schemas.messages.announcement import encode_announcement
from tests.contract.tiny_model import TinyNone
from tests.unit.odd_bytes import odd_json
from trainer.errors import LeaseError
from trainer.service.history import Entry
from trainer.service.lease import Lease
from trainer.service.registry import Registry

HELD = {
    "writer": "w", "process": "p", "host": "h", "pid": os.getpid(), "since": 1_767_225_600_000, "renewed": 7,
    "home": "",
}  # fmt: skip
UNFINISHED = {"version": "v9", "writer": "w", "since": 1}
PATH = "_lease/champion.json"


@pytest.fixture(scope="module", autouse=True)
def _without_waiting() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.service.lease._SETTLE_SECONDS", 0.0)
        patch.setattr("trainer.service.lease._POLL_SECONDS", 0.0)
        patch.setattr("trainer.service.lease.Lease._keep_renewing", lambda _: None)  # it would write meanwhile
        yield


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry(str(folder / "models"), cache_dir=folder / "cache")
    registry.publish(TinyNone().write(folder, "v1"))
    return registry


@given(content=odd_json(json.dumps(HELD).encode()))
def test_any_lease_of_another_is_outwaited(registry: Registry, content: bytes) -> None:
    registry.store.write(PATH, content)
    with Lease(registry.store, "champion", "ours", seconds=0.001) as lease:
        lease.check()
        registry.store.write(PATH, content)
        with pytest.raises(LeaseError, match="another trainer publishes the alias champion here"):
            lease.check()
    assert registry.store.read(PATH) == content


@given(content=odd_json(json.dumps(UNFINISHED).encode()), name=st.sampled_from(["v9", "v1", "", ".v9", "v9.v9"]))
def test_any_entry_of_an_unfinished_version_is_read_or_left_alone(
    registry: Registry, content: bytes, name: str
) -> None:
    path = f"_unfinished/{name}.json"
    registry.store.write(path, content)
    registry.store.write("v9/rank.onnx", b"half of a graph")
    removed = registry.remove_leftovers()
    assert [model.version for model in registry.versions()] == ["v1"]
    assert removed in ([], ["v9"])
    if not removed:
        assert registry.store.read("v9/rank.onnx") is not None
    registry.store.remove(path)


@given(content=odd_json(encode_announcement(examples.MODEL_ANNOUNCEMENT)))
def test_any_entry_of_a_history_is_read_or_says_nothing(registry: Registry, content: bytes) -> None:
    entry = Entry(1, "promoted", "v1")
    registry.store.write(f"_history/champion/{entry.name}", content)
    assert registry.history("champion") == [entry]
    found = registry.announced_as("champion", entry)
    assert found is None or encode_announcement(found)
