"""A client that cannot go on says so: a scenario without its clicks would find nothing wrong."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.harness import clients
from tests.harness.clients import Sender, record
from tests.harness.history import History


@pytest.mark.parametrize("transactions", [None, "id"])
def test_a_sender_that_fails_says_so_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transactions: str | None
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TimeoutError("no coordinator")

    closed: list[bool] = []
    producer = SimpleNamespace(
        init_transactions=refuse, send=refuse, flush=lambda: None, close=lambda: closed.append(True)
    )
    monkeypatch.setattr(clients, "KafkaProducer", lambda **_: producer)
    with History(tmp_path / "history.jsonl") as history:
        records = [record("s", "a", 1, event=None)]
        sender = Sender("nowhere:1", "clicks", records, history, per_second=1, transactions=transactions)
        with pytest.raises(TimeoutError, match="no coordinator"):
            sender.stop()
    assert closed == [True]
