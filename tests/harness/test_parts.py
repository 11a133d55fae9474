"""Is each difference between a part and the topics found? Both are made here, and one thing is made wrong."""

import hashlib
import json
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.harness import parts, trainers
from tests.harness.clients import record
from tests.harness.history import History, lines
from tests.harness.parts import api_equals_the_topic, store_equals_the_topic
from tests.harness.system import KINDS
from tests.harness.trainers import Guard, Trainer
from tests.harness.verdict import judge

Topics = dict[str, list[Any]]


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> Topics:
    """What each topic holds, record by record."""
    found: Topics = {}
    for module in (parts, trainers):
        monkeypatch.setattr(module, "read_all", lambda _, topic: iter(found[topic]))
    monkeypatch.setattr(parts, "PATIENCE", 1)  # what differs stays so
    return found


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack, closing(History(tmp_path / "history.jsonl")) as history:
        yield SimpleNamespace(
            name="shop", clicks="shop-clicks", rankings="shop-rankings", folder=tmp_path, history=history,
            broker=SimpleNamespace(direct="nowhere:1"), rng=random.Random(1), tend=lambda: None, closing=stack,
            workers={}, models=[tmp_path / "registry" / "v0"], environment=dict,
        )  # fmt: skip


def found(system: Any) -> set[str]:
    """What the verdict names, of the parts."""
    system.history.note("setting", name="in_flight", value=1)
    system.history.note("model", version="v0", path=str(KINDS["counts"](1).write(system.folder, "v0")))
    system.history.note("end")
    system.history.flush()
    return set(judge(lines(system.history.path)).found)


def one(key: str, value: bytes | None, partition: int = 0, offset: int = 0) -> Any:
    return SimpleNamespace(key=key.encode(), value=value, partition=partition, offset=offset)


# -- the store and the API --------------------------------------------------------------------------------------------


def ranking(offset: int) -> bytes:
    return json.dumps({"source": {"offset": offset}}).encode()


RANKINGS = [("s", 1), ("t", 2), ("s", 3), ("s", 1), ("u", 4)]
"""Session and offset of the click: the fourth one came again."""
LATEST = {"s": ranking(3), "t": ranking(2), "u": ranking(4)}


class Asked(BaseHTTPRequestHandler):
    """Answers with what `answers` has of a session."""

    answers: dict[str, bytes]

    def do_GET(self) -> None:
        answer = self.answers.get(self.path.split("/")[3])
        self.send_response(404 if answer is None else 200)
        self.end_headers()
        self.wfile.write(answer or b"{}")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def api(system: Any, topics: Topics) -> Iterator[dict[str, bytes]]:
    """What the API answers, which is right."""
    topics["shop-rankings"] = [one(session, ranking(offset)) for session, offset in RANKINGS]
    answers = dict(LATEST)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Its", (Asked,), {"answers": answers}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    system.workers["api"] = SimpleNamespace(port=server.server_port)
    yield answers
    server.shutdown()
    server.server_close()


def another(has: dict[str, Any]) -> None:
    has["s"] = ranking(1)


def one_less(has: dict[str, Any]) -> None:
    del has["t"]


def nothing_in_it(has: dict[str, Any]) -> None:
    has["t"] = b""


def one_of_nobody(has: dict[str, Any]) -> None:
    has["nobody"] = ranking(3)


def one_without_a_ranking(has: dict[str, Any]) -> None:
    """A key in Redis that has not got the field."""
    has["nobody"] = None


PLANTED = [another, one_less, nothing_in_it, one_of_nobody]


@pytest.mark.parametrize("plant", [*PLANTED, one_without_a_ranking])
def test_what_is_wrong_in_the_store_is_found(
    system: Any, api: dict[str, bytes], plant: Callable[[dict[str, Any]], None]
) -> None:
    has: dict[str, Any] = dict(LATEST)
    plant(has)
    store: Any = SimpleNamespace(rankings=lambda: has)
    store_equals_the_topic(system, store)
    assert found(system) == {"wrong store"}


@pytest.mark.parametrize("plant", PLANTED)
def test_what_the_api_answers_wrong_is_found(
    system: Any, api: dict[str, bytes], plant: Callable[[dict[str, Any]], None]
) -> None:
    plant(api)
    store: Any = SimpleNamespace(rankings=lambda: LATEST)
    store_equals_the_topic(system, store)
    assert found(system) == {"wrong API"}


def test_an_api_that_does_not_answer_is_found(system: Any, api: dict[str, bytes]) -> None:
    system.workers["api"].port = 1
    api_equals_the_topic(system)
    assert found(system) == {"wrong API"}


def test_a_store_and_an_api_without_anything_to_compare_are_found(
    system: Any, api: dict[str, bytes], topics: Topics
) -> None:
    topics["shop-rankings"].clear()
    store: Any = SimpleNamespace(rankings=dict)
    store_equals_the_topic(system, store)
    assert found(system) == {"wrong store", "wrong API"}


def test_nothing_is_found_in_a_store_and_an_api_that_are_right(system: Any, api: dict[str, bytes]) -> None:
    store: Any = SimpleNamespace(rankings=lambda: dict(LATEST))
    store_equals_the_topic(system, store)
    assert found(system) == set()


# -- the trainer ------------------------------------------------------------------------------------------------------


def announced(alias: str, version: str, folder: Path | None = None, **told: Any) -> Any:
    digest = None if folder is None else hashlib.sha256((folder / version / "manifest.json").read_bytes()).hexdigest()
    said = {"version": version, "uri": str((folder or Path("/nowhere")) / version), "manifest_sha256": digest}
    return one(alias, json.dumps(said | told).encode())


class Trained:
    """A trainer that has done all right: three clicks in its log, two versions that passed the gate, one announced."""

    def __init__(self, system: Any, topics: Topics) -> None:
        self.trainer = Trainer(system)
        self.trainer.log.touch()
        self.registry = self.trainer.registry
        for seed in (1, 2):
            KINDS["gru"](seed).write(self.registry, f"v{seed}")
            self.passes(f"v{seed}", created_at=seed)
        sent = [record(f"s{n}", f"item-{n}", 1000 + n, event=None) for n in range(3)]
        topics["shop-clicks"] = [
            *(SimpleNamespace(key=key, value=value, partition=1, offset=n) for n, (key, value) in enumerate(sent)),
            one("x", b"no click", partition=1, offset=3),
        ]
        self.topics = topics
        self.announce("v1", "v2")
        self.folder = system.folder / "trainer-clicks"
        self.folder.mkdir()
        self.rows = [
            {"session_id": f"s{n}", "item_id": f"item-{n}", "timestamp": 1000 + n, "offset": n} for n in range(3)
        ]
        self.write()

    def passes(self, version: str, **told: Any) -> None:
        path = self.registry / version / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"metrics": {"gate": {"passed": True}}} | told))

    def announce(self, *versions: str) -> None:
        self.topics["shop-models"] = [announced("challenger", version, self.registry) for version in versions]

    def write(self) -> None:
        """The log, of two files."""
        for name, rows in (("clicks-p00001-0-0", self.rows[:1]), ("clicks-p00001-1-3", self.rows[1:])):
            pq.write_table(pa.Table.from_pylist(rows), self.folder / f"{name}.parquet")


@pytest.fixture
def trained(system: Any, topics: Topics, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stderr=""))
    return Trained(system, topics)


def a_click_less(its: Trained) -> None:
    its.rows.pop()
    its.write()


def a_click_twice(its: Trained) -> None:
    its.rows.append(its.rows[0])
    its.write()


def another_click(its: Trained) -> None:
    """In its place, of the same session."""
    its.rows[1]["item_id"] = "item-7"
    its.write()


def of_another_partition(its: Trained) -> None:
    (its.folder / "clicks-p00001-0-0.parquet").rename(its.folder / "clicks-p00002-0-0.parquet")


def what_is_no_click(its: Trained) -> None:
    its.rows.append(its.rows[0] | {"offset": 3})
    its.write()


def damaged(its: Trained) -> None:
    path = its.registry / "v1" / "rank.onnx"
    path.write_bytes(b"\0" + path.read_bytes()[1:])


def half_published(its: Trained) -> None:
    (its.registry / "v2" / "manifest.json").unlink()
    its.announce("v1")


def changed_since_it_was_announced(its: Trained) -> None:
    its.passes("v2", created_at=3)


def announced_and_gone(its: Trained) -> None:
    (its.registry / "v2").rename(its.folder / "elsewhere")


def not_the_newest_announced(its: Trained) -> None:
    its.announce("v2", "v1")


def none_announced(its: Trained) -> None:
    its.announce()


def none_published(its: Trained) -> None:
    none_announced(its)
    for version in ("v1", "v2"):
        (its.registry / version).rename(its.folder / version)


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        *((plant, "wrong clicks of the trainer") for plant in (a_click_less, a_click_twice, another_click)),
        *((plant, "wrong clicks of the trainer") for plant in (of_another_partition, what_is_no_click)),
        *((plant, "wrong models") for plant in (damaged, half_published, changed_since_it_was_announced)),
        *((plant, "wrong models") for plant in (announced_and_gone, not_the_newest_announced)),
        *((plant, "wrong models") for plant in (none_announced, none_published)),
    ],
)
def test_what_is_wrong_with_a_trainer_is_found(
    system: Any, trained: Trained, plant: Callable[[Trained], None], kind: str
) -> None:
    plant(trained)
    trained.trainer.is_whole()
    assert found(system) == {kind}


def test_nothing_is_found_with_a_trainer_that_is_whole(system: Any, trained: Trained) -> None:
    trained.trainer.is_whole()
    assert found(system) == set()


# -- the guard --------------------------------------------------------------------------------------------------------

BY_HAND = announced("champion", "v0")


@pytest.fixture
def guarded(topics: Topics) -> Topics:
    """It has promoted v1, and ended the split."""
    topics["shop-models"] = [BY_HAND, announced("b", "v1"), announced("champion", "v1", evidence={"e": 1})]
    topics["shop-splits"] = [one("shop", b"50"), one("shop", None)]
    ranked = [("v0", 0), ("v0", 1), ("v1", 0), ("v1", 1)]
    topics["shop-rankings"] = [one("s", json.dumps({"model_version": version}).encode(), p) for version, p in ranked]
    return topics


def announced_nothing(its: Topics) -> None:
    its["shop-models"].pop()


def announced_twice(its: Topics) -> None:
    its["shop-models"].append(its["shop-models"][-1])


def announced_the_other(its: Topics) -> None:
    its["shop-models"][-1] = announced("champion", "v0", evidence={"e": 1})


def announced_without_saying_why(its: Topics) -> None:
    """Or somebody else did: either way another model serves."""
    its["shop-models"].append(BY_HAND)


def left_the_split(its: Topics) -> None:
    its["shop-splits"].pop()


def ended_the_split_of_another(its: Topics) -> None:
    its["shop-splits"][-1] = one("another", None)


def begun_a_split_again(its: Topics) -> None:
    its["shop-splits"].append(one("shop", b"50"))


def another_model_ranks_last(its: Topics) -> None:
    its["shop-rankings"].pop()


WRONG = [
    announced_nothing, announced_twice, announced_the_other, announced_without_saying_why, another_model_ranks_last
]  # fmt: skip


@pytest.mark.parametrize("plant", [*WRONG, left_the_split, ended_the_split_of_another, begun_a_split_again])
def test_what_a_guard_decides_wrong_is_found(system: Any, guarded: Topics, plant: Callable[[Topics], None]) -> None:
    plant(guarded)
    Guard(system).has_decided(Path("v1"))
    assert found(system) == {"wrong guard"}


@pytest.mark.parametrize("plant", WRONG)
def test_a_rollback_that_is_wrong_is_found(system: Any, guarded: Topics, plant: Callable[[Topics], None]) -> None:
    plant(guarded)
    Guard(system).has_rolled_back(Path("v1"))
    assert found(system) == {"wrong guard"}


def test_nothing_is_found_with_a_guard_that_decides_right(system: Any, guarded: Topics) -> None:
    Guard(system).has_decided(Path("v1"))
    Guard(system).has_rolled_back(Path("v1"))
    assert found(system) == set()
