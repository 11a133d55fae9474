"""How long the trainer takes to recover, from when it was killed and from what it logged."""

import json
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.harness.history import History, lines
from tests.harness.trainers import Trainer

STARTED = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def test_a_kill_counts_to_the_end_of_a_cycle_unless_another_kill_comes_before(tmp_path: Path) -> None:
    with ExitStack() as closing, History(tmp_path / "history.jsonl") as history:
        system: Any = SimpleNamespace(folder=tmp_path, closing=closing, history=history)
        trainer = Trainer(system)
        told = [(5, "next cycle"), (40, "training"), (70, "next cycle"), (80, "next cycle"), (95, "training")]
        log = [{"event": event, "timestamp": _at(seconds).isoformat()} for seconds, event in told]
        trainer.log.write_text("\n".join(["a warning", *map(json.dumps, log)]))
        trainer.kills += map(_at, (10, 30, 90))
        trainer.note_recoveries()
    assert [line["seconds"] for line in lines(history.path) if line["what"] == "recovered"] == [40]


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(STARTED + seconds, UTC)
