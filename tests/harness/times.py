"""How long rankings stayed away in a run, in seconds: from its history, and from what its workers logged."""

import datetime
import json
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

STEPS: Final = {
    "health and metrics": "start of the process",
    "model in service": "model",
    "restoring tables": "join",
    "tables recovered": "restore",
}
"""What a worker logs at the end of each step between its start and its first ranking, in this order."""
_GIVES_UP: Final = "the worker cannot go on"
_SERVED_SECONDS: Final = 1.0
"""A longer time without a ranking was not served."""

Log = Sequence[tuple[float, str]]
"""When a worker logged what, in seconds since the run began."""


def figures(history: Iterable[Mapping[str, Any]], logs: Iterable[Path]) -> list[str]:
    """What is to be told of a run with a steady load, a line each."""
    rankings, nemesis, began = [], [], 0.0
    for line in history:
        if line["what"] == "received":
            rankings.append(float(line["at"]))
        elif line["what"] == "nemesis":
            nemesis.append((float(line["at"]), str(line["action"])))
        elif line["what"] == "setting" and line["name"] == "clock":
            began = line["value"] - line["at"]
    log = sorted(entry for path in logs for entry in _logged(path, began))
    until = _next(rankings, max(at for at, action in nemesis if action.endswith("started")))
    return [*_starts(rankings, nemesis, log), *_outages(rankings, nemesis, log), _gaps(rankings, until)]


def _logged(path: Path, began: float) -> Iterator[tuple[float, str]]:
    for line in path.read_text().splitlines():
        if line.startswith("{"):
            told = json.loads(line)
            yield datetime.datetime.fromisoformat(told["timestamp"]).timestamp() - began, told["event"]


def _next(times: Sequence[float], at: float) -> float:
    """The first of the times behind one; infinity where there is none."""
    place = bisect(times, at)
    return times[place] if place < len(times) else float("inf")


def _starts(rankings: Sequence[float], nemesis: Log, log: Log) -> Iterator[str]:
    """Of the workers that were killed, and got to a ranking before they were killed again."""
    kills = [at for at, action in nemesis if action == "killed"]
    took: dict[str, list[float]] = {}
    for killed in kills:
        again, at = _next(kills, killed), killed
        steps = {}
        for event, step in STEPS.items():
            ended = _next([when for when, logged in log if logged == event], at)
            steps[step], at = ended - at, ended
        first = _next(rankings, at)
        if first < again:
            for step, seconds in {**steps, "first ranking": first - at, "in all": first - killed}.items():
                took.setdefault(step, []).append(seconds)
    if took:
        told = ", ".join(f"{step} {median(seconds):.1f} ({max(seconds):.1f})" for step, seconds in took.items())
        yield f"{len(kills)} kills, {len(took['in all'])} times a ranking before the next one; median (longest): {told}"


def _outages(rankings: Sequence[float], nemesis: Log, log: Log) -> Iterator[str]:
    for down in [at for at, action in nemesis if action in ("broker killed", "broker stopped")]:
        up = _next([at for at, action in nemesis if action == "broker started"], down)
        lines = sum(down < at < up for at, _ in log)
        told = (
            f"no broker for {up - down:.1f} s, {lines} lines of log, next ranking after {_next(rankings, up) - up:.1f}"
        )
        said = _next([at for at, event in log if event == _GIVES_UP], down)
        if said < up:
            gone = _next([at for at, action in nemesis if action == "gave up"], down)
            told += f"; gave up after {said - down:.1f}, the process was gone {gone - said:.1f} later"
        yield told


def _gaps(rankings: Sequence[float], until: float) -> str:
    within = [at for at in rankings if at <= until]
    gaps = [later - sooner for sooner, later in pairwise(within)]
    unserved = sum(gap for gap in gaps if gap > _SERVED_SECONDS)
    return f"longest time without a ranking {max(gaps):.1f}, served {1 - unserved / sum(gaps):.0%} of {sum(gaps):.0f}"
