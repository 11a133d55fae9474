"""Runs scenarios one after the other, and prints what came of each as a row of docs/proof.md.

python -m tests.harness.matrix [--scenario NAME] [--seconds N] [--seed N] [--rate N] [--minutes N] [--folder PATH]
"""

import argparse
import datetime
import logging
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.harness.clients import shop
from tests.harness.history import History, lines
from tests.harness.scenarios import SCENARIOS, Scenario
from tests.harness.system import ITEMS, REPOSITORY, Broker, System
from tests.harness.times import figures
from tests.harness.verdict import Verdict, judge


def run(
    name: str, scenario: Scenario, broker: Broker, folder: Path, *, seconds: float, seed: int, rate: float
) -> Verdict:
    """Run one scenario. Its history is `folder`/history.jsonl."""
    rng = random.Random(f"{name} {seed}")
    folder.mkdir(parents=True)
    history = History(folder / "history.jsonl")
    system = System(broker, folder, f"{name}-{seed}", rng, history, kind=scenario.kind, default_limits=scenario.timed)
    try:
        system.start_ready("a", proxied=scenario.proxied)
        records = shop(rng, ITEMS) if scenario.records is None else scenario.records(system)
        system.load(records, per_second=rate, transactions=system.name if scenario.transactions else None)
        scenario.attack(system, seconds)
        system.finish()
        system.look()
    finally:
        system.abandon()
        history.close()
    return judge(lines(history.path))


def commit() -> str:
    """Of this code, with a + where something differs from it; empty outside of a clone."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--exclude=*", "--abbrev=7", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def row(name: str, verdict: Verdict, took: float, ran: str) -> str:
    """Of the table in docs/proof.md; `ran` says when, with which rate and seed, and at which commit."""
    done = ", ".join(
        f"{count:,} {action}" for action, count in verdict.actions.most_common() if action != "announced" or count > 1
    )
    came = "kept" if not verdict.found else "**" + ", ".join(sorted(verdict.found)) + "**"
    repeats = f"{verdict.repeats} of {verdict.may_repeat}"
    cells = [f"`{name}`", ran, SCENARIOS[name].what, f"{verdict.clicks:,}", done]
    return f"| {' | '.join([*cells, f'{took:.0f} s', f'{verdict.recovery:.1f} s', repeats, came])} |"


def main(arguments: Sequence[str]) -> int:
    """Run them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make matrix")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), nargs="*", help="some, by name; all without")
    parser.add_argument("--seconds", type=float, default=20, help="how long each goes on")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of clicks and attacks")
    parser.add_argument("--rate", type=float, default=500, help="clicks a second")
    parser.add_argument("--minutes", type=float, default=60, help="after so many none begins any more, unless named")
    parser.add_argument("--folder", type=Path, help="for histories, data and logs; else a temporary one")
    told = parser.parse_args(arguments)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # brokers that are away are no news here
    folder = told.folder or Path(tempfile.mkdtemp(prefix="nextclick-matrix-"))
    today = datetime.date.today()
    ran = f"{today:%-d %b}, {told.rate:g}, seed {told.seed}, {commit()}".removesuffix(", ")
    print(f"{today}  seed {told.seed}  {told.rate:g} clicks/s  {folder}", flush=True)
    broken, until = False, time.monotonic() + told.minutes * 60
    with ExitStack() as stack:
        brokers: dict[int, Broker] = {}
        for name in told.scenario or [name for name, one in SCENARIOS.items() if not one.by_hand]:
            if time.monotonic() > until and not told.scenario:
                broken = True
                print(f"| {name} | **not run: {told.minutes:g} minutes are over** |", flush=True)
                continue
            scenario = SCENARIOS[name]
            if scenario.brokers not in brokers:
                brokers[scenario.brokers] = stack.enter_context(
                    Broker(folder / f"{scenario.brokers}", scenario.brokers)
                )
            began = time.monotonic()
            try:
                verdict = run(
                    name, scenario, brokers[scenario.brokers], folder / name,
                    seconds=told.seconds, seed=told.seed, rate=told.rate,
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001 - it got stuck, which is no reason to keep from the others
                broken = True
                print(f"| {name} | **{error}** |", folder / name, sep="\n", flush=True)
                if not isinstance(error, AssertionError):  # which says it all
                    traceback.print_exc()
                continue
            print(row(name, verdict, time.monotonic() - began, ran), flush=True)
            if scenario.timed:
                logs = (folder / name).glob("worker-*.log")
                print(*figures(lines(folder / name / "history.jsonl"), logs), sep="\n", flush=True)
            if verdict.found:
                broken = True
                print(verdict, folder / name, sep="\n", flush=True)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
