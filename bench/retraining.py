"""What does a cycle of retraining take, and what does one robot's session of 20,000 items do to it?

Each case in a process of its own: processor time, and the greatest resident set beside that after a cycle over a few
sessions. A cycle reads a click log, trains, exports, evaluates beside the default baselines and publishes; after it
the baselines of `trainer evaluate`, each built and evaluated. With the robot the same log has two more sessions, one of
them among the newest, of clicks on 20,000 different items.

    python -m bench retraining
"""

import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from bench.generated_clicks import generated_sessions
from bench.report import Report, console
from schemas.messages.announcement import ModelAnnouncement
from trainer.data.sessions import SessionSet, temporal_holdout
from trainer.evaluation.baselines import BaselineSpec
from trainer.evaluation.protocol import evaluate
from trainer.service.champion import Championship
from trainer.service.click_log import ClickLogFolder, Rows, TopicIdentity
from trainer.service.cycle import Cycle
from trainer.service.registry import Registry
from trainer.service.settings import PeriodicTraining, TrainerRoot, TrainerSettings
from trainer.training.device import Hardware

SESSIONS: Final = (50_000, 200_000, 800_000)
ROBOT: Final = 20_000
"""Clicks of the robot, each on another item."""
_FILE: Final = 250_000
_MAKERS: Final = ("item-knn", "s-pop", "markov-chain", "sequential-rules", "bpr-mf", "vs-knn", "stan")
_FEW: Final = 20_000
"""Sessions that the baselines alone are measured on: the neighbours take a ms and more for each prediction."""


def main() -> None:
    """Every size without the robot, the smallest with it; the baselines both ways."""
    rows = [_case("cycle", sessions, 0) for sessions in SESSIONS]
    rows.append(_case("cycle", SESSIONS[0], ROBOT))
    rows += [_case(name, _FEW, robot) for name in _MAKERS for robot in (0, ROBOT)]
    by_case = {(row["what"], row["sessions"], row["robot"]): row for row in rows}
    ratios: dict[str, float] = {}
    for (what, sessions, robot), row in by_case.items():
        if robot:
            plain = by_case[what, sessions, 0]
            ratios |= {f"{what}_{of}_with_robot": row[of] / plain[of] for of in ("peak_mib", "cpu_seconds")}
    most, least = rows[len(SESSIONS) - 1], rows[0]
    clicks = most["clicks"] - least["clicks"]
    ratios["bytes_per_click"] = (most["peak_mib"] - least["peak_mib"]) * 2**20 / clicks
    ratios["cpu_seconds_per_million_clicks"] = (most["cpu_seconds"] - least["cpu_seconds"]) / clicks * 1e6
    Report("retraining", rows, ratios).show("A cycle, and baselines, by sessions; with a robot's session and without")


def _case(what: str, sessions: int, robot: int) -> dict[str, Any]:
    with console.status(f"{what}, {sessions:,} sessions{', a robot' if robot else ''}"):
        command = [sys.executable, "-m", "bench.retraining", what, str(sessions), str(robot)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    clicks, mib, seconds, log_bytes = done.stdout.split()[-4:]
    row = {"what": what, "sessions": sessions, "robot": robot, "clicks": int(clicks)}
    return row | {"peak_mib": float(mib), "cpu_seconds": float(seconds), "log_bytes_per_click": float(log_bytes)}


def run(what: str, sessions: int, robot: int) -> tuple[int, float, float, float]:
    """In a process of its own: clicks, MiB added, seconds of processor time, bytes of the log for each click."""
    Hardware(device="cpu").set_up()
    with TemporaryDirectory() as folder:
        if what == "cycle":
            return _run_cycle(Path(folder), sessions, robot)
    data = _with_robot(generated_sessions(sessions), robot)
    train, test = temporal_holdout(data, fraction=0.1)
    before, began = _peak(), time.process_time()
    evaluate(BaselineSpec(what).build(train), test)
    return data.clicks, _peak() - before, time.process_time() - began, 0.0


def _run_cycle(folder: Path, sessions: int, robot: int) -> tuple[int, float, float, float]:
    _cycle(folder / "warm-up", generated_sessions(2_000, items=500))
    data = _with_robot(generated_sessions(sessions), robot)
    log = _write(folder / "measured", data)
    clicks = data.clicks
    del data
    before, began = _peak(), time.process_time()
    _cycle(folder / "measured", None)
    return clicks, _peak() - before, time.process_time() - began, log / clicks


def _cycle(folder: Path, sessions: SessionSet | None) -> None:
    if sessions is not None:
        _write(folder, sessions)
    settings = TrainerSettings(
        log_dir=folder / "log", registry=str(folder / "registry"), work_dir=folder / "work",
        training=PeriodicTraining(engine="compiled"),
    )  # fmt: skip
    registry = Registry(settings.registry, cache_dir=folder / "cache")
    Cycle(
        TrainerRoot(trainer=settings), ClickLogFolder(settings.log_dir), registry, Championship(registry, _Topic())
    ).run()


class _Topic:
    """An alias that nobody reads."""

    alias = "champion"
    _announced: ModelAnnouncement | None = None

    def announced(self) -> dict[str, ModelAnnouncement]:
        return {} if self._announced is None else {self.alias: self._announced}

    def announce(self, announcement: ModelAnnouncement) -> None:
        self._announced = announcement


def _with_robot(sessions: SessionSet, clicks: int) -> SessionSet:
    """Two more sessions of `clicks` clicks, each on another item: one to learn from, one to be judged by."""
    if not clicks:
        return sessions
    parts = np.split(sessions.items, sessions.offsets[1:-1])
    parts.insert(len(parts) * 7 // 10, np.random.default_rng(2).permutation(len(sessions.item_ids))[:clicks])
    parts.append(np.random.default_rng(3).permutation(len(sessions.item_ids))[:clicks])
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return SessionSet(np.concatenate(parts), offsets, sessions.item_ids, np.arange(len(parts)), timed=False)


def _write(folder: Path, sessions: SessionSet) -> int:
    """The sessions as a click log, a second between clicks; returns its bytes."""
    log = ClickLogFolder(folder / "log")
    log.folder.mkdir(parents=True)
    of_click = sessions.session_of_click()
    for first in range(0, sessions.clicks, _FILE):
        last = min(first + _FILE, sessions.clicks)
        rows = Rows(
            [f"{session:032x}" for session in of_click[first:last].tolist()],
            [sessions.item_ids[item] for item in sessions.items[first:last].tolist()],
            [1000 * at for at in range(first, last)],
            list(range(first, last)),
            [None] * (last - first),
        )
        log.write(0, first, last - 1, rows, topic=TopicIdentity("clicks", "bench"), expected=first)
    return sum(path.stat().st_size for path in log.folder.glob("*.parquet"))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(*run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    else:
        main()
