"""That times are told of what happened: here all of it is known."""

import datetime
import json
from pathlib import Path
from typing import Any

from tests.harness.times import STEPS, figures

BEGAN = 1_800_000_000.0


def nemesis(at: float, action: str) -> dict[str, Any]:
    return {"at": at, "what": "nemesis", "action": action}


def logged(at: float, event: str) -> str:
    when = datetime.datetime.fromtimestamp(BEGAN + at, datetime.UTC)
    return json.dumps({"timestamp": when.isoformat(), "event": event})


def test_figures(tmp_path: Path) -> None:
    ranked = [n / 2 for n in range(1, 21)] + [26.0 + n / 2 for n in range(10)] + [78.0, 78.5]
    history = [
        {"at": 1.0, "what": "setting", "name": "clock", "value": BEGAN + 1.0},
        *({"at": at, "what": "received"} for at in ranked),
        nemesis(10.1, "killed"), nemesis(10.2, "started"),  # gets to no ranking
        nemesis(20.0, "killed"), nemesis(20.1, "started"),
        nemesis(31.0, "broker killed"), nemesis(65.0, "gave up"), nemesis(65.0, "started"),
        nemesis(75.0, "broker started"),
    ]  # fmt: skip
    log = tmp_path / "worker-a.log"
    steps = [logged(at, event) for at, event in zip((22.0, 23.0, 24.5, 25.0), STEPS, strict=True)]
    given_up = [logged(31.5, "kafka"), logged(61.0, "the worker cannot go on"), logged(61.1, "stopping")]
    log.write_text("\n".join([*steps, "no JSON", *given_up]))
    assert figures(history, [log]) == [
        "2 kills, 1 times a ranking before the next one; median (longest): start of the process 2.0 (2.0), "
        "model 1.0 (1.0), join 1.5 (1.5), restore 0.5 (0.5), first ranking 1.0 (1.0), in all 6.0 (6.0)",
        "no broker for 44.0 s, 3 lines of log, next ranking after 3.0; gave up after 30.0, "
        "the process was gone 4.0 later",
        "longest time without a ranking 47.5, served 18% of 78",
    ]
