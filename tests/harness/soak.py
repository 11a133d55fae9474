"""Hours under load, with the nemesis on for a third of them: what grows?

    python -m tests.harness.soak --hours 2 [--folder .soak] [--rate N] [--window SECONDS] [--seed N]

Runs until the folder has so many hours, in windows. Each window's clicks are of sessions of its own, and have a verdict
of their own. A run that is broken off loses the window under way; the next one goes on, with workers and topics anew.
"""

import argparse
import datetime
import json
import logging
import os
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tests.harness.attacks.rounds import BEYOND
from tests.harness.clients import Running, end_offsets, shop
from tests.harness.history import History, lines
from tests.harness.system import ITEMS, Broker, System, children_named
from tests.harness.trend import P, trend
from tests.harness.verdict import judge

EVERY_SECONDS: Final = 5.0
TTL_SECONDS: Final = 1800
"""Of rows, the least that sessions of half an hour allow: until then sizes on disk can only grow."""
NEMESIS_EVERY: Final = 3
WINDOWS, SAMPLES, REPORT = "windows.jsonl", "samples.jsonl", "report.md"


class Sampler:
    """Notes memory, handles and threads of each process, and sizes on disk, as long as it is open."""

    def __init__(self, system: System, path: Path, run: str) -> None:
        self._system, self._path, self._run = system, path, run
        self._closed = threading.Event()
        self._thread = Running(self._sample, "sampler")

    def close(self) -> None:
        """No more samples."""
        self._closed.set()
        self._thread.join()

    def _sample(self) -> None:
        with self._path.open("a") as file:
            while not self._closed.wait(EVERY_SECONDS):
                for series, value in self._figures():
                    told = {"run": self._run, "at": round(time.time(), 1), "series": series, "value": value}
                    file.write(json.dumps(told) + "\n")
                file.flush()

    def _figures(self) -> Iterator[tuple[str, float]]:
        system = self._system
        pids = {f"worker {name}": worker.process.pid for name, worker in list(system.workers.items())}
        pids |= {f"broker {n}": pid for n, pid in enumerate(children_named("java"))}
        for name, pid in pids.items():
            try:
                status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                handles = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a link of another's may be gone
            except OSError:
                continue  # it has just ended
            if "VmRSS" in status:
                yield f"{name} (pid {pid}): memory, MB", int(status["VmRSS"].split()[0]) / 1024
                yield f"{name} (pid {pid}): handles", handles
                yield f"{name} (pid {pid}): threads", int(status["Threads"])
        for name in system.workers:
            yield f"worker {name}: RocksDB, MB", _megabytes(system.data(name).rglob("sessions-*.db/*"))
        yield "changelog, MB", _megabytes(system.broker.kafka.data_dir.glob(f"broker-*/{system.changelog}-*/*"))


def _megabytes(files: Iterator[Path]) -> float:
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except OSError:
            continue  # compacted away meanwhile
    return total / 2**20


def _nemesis(system: System, seconds: float) -> None:
    """Worker b dies, freezes, is stopped; worker a is cut off, and lives."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        match system.rng.choice(["kill", "freeze", "stop", "cut", "slow", "swap"]):
            case "kill":
                system.kill("b")
                system.start_ready("b")
            case "freeze":
                system.freeze("b")
                system.sleep(BEYOND)
                system.thaw("b")
            case "stop":
                system.stop("b")
                system.start_ready("b")
            case "cut":
                system.cut()
                system.sleep(BEYOND)
                system.heal()
            case "slow":
                system.slow(0.05)
                system.sleep(BEYOND)
                system.slow(0)
            case "swap":
                system.announce(system.bundle("gru"))
        system.sleep(system.rng.uniform(1, 10))


def _window(system: System, number: int, *, seconds: float, rate: float, last: bool) -> dict[str, Any]:
    """One window, and its verdict; of the last one, that on RocksDB, too."""
    path = system.folder / f"history-{number}.jsonl"
    system.turn_page(path)
    clicks, changelog = (end_offsets(system.broker.direct, topic) for topic in (system.clicks, system.changelog))
    attacked = number % NEMESIS_EVERY == NEMESIS_EVERY - 1
    sender = system.load(shop(system.rng, ITEMS, name=f"w{number}-"), per_second=rate)
    if attacked:
        _nemesis(system, seconds)
    else:
        system.sleep(seconds)
    sender.stop()
    system.wait(lambda: system.lag() == 0, "all clicks are acknowledged")
    if last:
        system.finish()
    else:
        system.receiver.catch_up()
    system.look(clicks, changelog, stores=last)
    system.history.flush()
    verdict = judge(lines(path))
    if not verdict.found:
        path.unlink()
    else:
        print(verdict, path, sep="\n", flush=True)
    return {
        "at": time.time(), "window": number, "nemesis": attacked, "seconds": seconds, "clicks": verdict.clicks,
        "actions": dict(verdict.actions), "repeats": verdict.repeats, "recovery": verdict.recovery,
        "median latency, ms": verdict.latency[0] * 1000, "99th percentile, ms": verdict.latency[1] * 1000,
        "found": {kind: len(told) for kind, told in verdict.found.items()},
    }  # fmt: skip


def _of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(folder: Path) -> str:
    """What all runs of a folder came to, in Markdown."""
    windows, series = _of(folder / WINDOWS), defaultdict(list)
    for sample in _of(folder / SAMPLES):
        series[sample["run"], sample["series"]].append((sample["at"], sample["value"]))
    for window in windows:
        if not window["nemesis"]:
            for name in ("median latency, ms", "99th percentile, ms"):
                series["all", f"{name}, windows without nemesis"].append((window["at"], window[name]))
    found = [f"window {window['window']}: {window['found']}" for window in windows if window["found"]]
    attacked = sum(window["nemesis"] for window in windows)
    text = [
        f"{sum(window['seconds'] for window in windows) / 3600:.2f} h in {len(windows)} windows, {attacked} with the "
        f"nemesis; {sum(window['clicks'] for window in windows):,} clicks; "
        + (f"**found: {'; '.join(found)}**" if found else "all promises kept"),
        "",
        f"| run | figure | samples | median | growth per hour | p | trend (p < {P}) |",
        "|---|---|---|---|---|---|---|",
    ]
    for (run, name), values in sorted(series.items()):
        it = trend(*zip(*sorted(values), strict=True))
        told = {True: "**grows**", False: "no", None: "too few"}[it.grows]
        text.append(f"| {run} | {name} | {len(values)} | {it.median:.1f} | {it.per_hour:+.2f} | {it.p:.3f} | {told} |")
    return "\n".join(text)


def main(arguments: Sequence[str]) -> int:
    """Run windows until there are enough; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--hours", type=float, required=True, help="of all runs in the folder together")
    parser.add_argument("--folder", type=Path, default=Path(".soak"), help="where runs go on and the report is")
    parser.add_argument("--rate", type=float, default=200, help="clicks a second")
    parser.add_argument("--window", type=float, default=300, help="seconds from verdict to verdict")
    parser.add_argument("--seed", type=int, default=1)
    told = parser.parse_args(arguments)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # brokers that are away are no news here
    run = datetime.datetime.now().strftime("%Y%m%dT%H%M%S")
    folder = told.folder.absolute()
    folder.mkdir(exist_ok=True)
    done = _of(folder / WINDOWS)
    left = told.hours * 3600 - sum(window["seconds"] for window in done)
    count = max(0, round(left / told.window))
    if count:
        rng = random.Random(f"{run} {told.seed}")
        settings = {"NEXTCLICK_WORKER__SESSION_TTL": str(TTL_SECONDS)}
        (folder / run).mkdir()
        with Broker(folder, keep=True) as broker, History(folder / run / "history-start.jsonl") as history:
            system = System(broker, folder / run, f"soak-{run}", rng, history, settings=settings)
            try:
                system.start_ready("a", proxied=True)
                system.start_ready("b")
                sampler = Sampler(system, folder / SAMPLES, run)
                for number in range(len(done), len(done) + count):
                    last = number == len(done) + count - 1
                    window = _window(system, number, seconds=told.window, rate=told.rate, last=last)
                    with (folder / WINDOWS).open("a") as file:
                        file.write(json.dumps(window | {"run": run}) + "\n")
                    print(json.dumps(window), flush=True)
                sampler.close()
            finally:
                system.abandon()
    text = report(folder)
    (folder / REPORT).write_text(text + "\n")
    print(text)
    return int("**" in text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
