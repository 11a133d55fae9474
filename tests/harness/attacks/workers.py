"""On the worker's process, its data folder and its clock."""

import shutil
import time
from typing import Final

from tests.harness.attacks.rounds import BEYOND, FEW, FULL_SECONDS, SMALL, rounds
from tests.harness.system import ITEMS, System, limit_files

STEPS: Final = (
    "computed",
    "half of the rankings",
    "rankings sent",
    "rankings confirmed",
    "half of the changelog",
    "changelog sent",
    "changelog confirmed",
    "RocksDB written",
    "acknowledged",
    "committed",
)
"""From a click to its acknowledgement, in this order."""
_HOUR_SECONDS: Final = 3600


def killed_at_each_step(system: System, seconds: float) -> None:
    system.kill()
    for _ in rounds(seconds, least=1):
        for step in STEPS:
            system.start(stop_at=step)
            system.died()
    system.start_ready()


def killed(system: System, seconds: float) -> None:
    for _ in rounds(seconds):
        system.clicks_pass(FEW)
        system.sleep(system.rng.uniform(0, 2))
        system.kill()
        system.start_ready()


def killed_while_it_starts(system: System, seconds: float) -> None:
    system.clicks_pass(FEW)
    for _ in rounds(seconds):
        system.kill()
        system.start()
        system.sleep(system.rng.uniform(0.5, 4))
    system.wait(system.ready, "worker a serves")


def replaced(system: System, seconds: float) -> None:
    system.start_ready("b")
    for number in rounds(seconds):
        system.clicks_pass(FEW)
        name = "ab"[number % 2]
        system.kill(name)
        system.sleep(BEYOND)
        system.start_ready(name)


def frozen(system: System, seconds: float) -> None:
    system.start_ready("b")
    for number in rounds(seconds):
        name = "ab"[number % 2]
        system.clicks_pass(FEW)
        system.freeze(name)
        system.sleep(BEYOND)
        system.thaw(name)
        system.sleep(2)


def come_and_gone(system: System, seconds: float) -> None:
    for number in rounds(seconds):
        others = [f"{name}{number // 2}" for name in "bcd"]  # each second round finds its folders
        system.start_ready(others[0])
        system.clicks_pass(FEW)
        for name in others[1:]:
            system.start(name)
        for name in others[1:]:
            system.wait(lambda name=name: system.ready(name), f"worker {name} serves")  # type: ignore[misc]
        system.clicks_pass(FEW)
        for name in others:
            system.stop(name)
        system.clicks_pass(FEW)


def clock_jumps(system: System, seconds: float) -> None:
    """Items come and go between the times that the clock jumps to."""
    system.stop()
    system.use_fake_clock()
    system.use_items_and_rules()
    now, half = int(time.time() * 1000), _HOUR_SECONDS * 500
    times = [{name: now + ms} for name in ("available_from", "available_until") for ms in (-half, half)]
    some = system.rng.sample(ITEMS, 200)
    system.publish("items", {item: {"item_id": item, **times[n % len(times)]} for n, item in enumerate(some)})
    system.start_ready()
    for number in rounds(seconds, least=5):
        system.clicks_pass(FEW)
        system.jump((_HOUR_SECONDS, 0, -_HOUR_SECONDS, 0)[number % 4])
        system.clicks_pass(FEW)
        if number % 3 == 2:
            system.kill()
            system.start_ready()


# -- what a worker that is down finds when it comes back --------------------------------------------------------------


def nothing(system: System) -> None:
    """It finds all as it was."""


def data_deleted(system: System) -> None:
    system.did("data deleted", worker="a")
    shutil.rmtree(system.data("a"))


def data_rolled_back(system: System) -> None:
    """The first of two rounds makes the copy that the second one brings back."""
    old = system.folder / "an older copy"
    if old.exists():
        system.did("data rolled back", worker="a")
        shutil.rmtree(system.data("a"))
        old.rename(system.data("a"))
    else:
        system.did("data copied", worker="a")
        shutil.copytree(system.data("a"), old)


def bytes_flipped(system: System) -> None:
    files = [path for path in system.data("a").rglob("*") if path.is_file() and path.stat().st_size]
    for path in system.rng.sample(sorted(files), 3):
        content = bytearray(path.read_bytes())
        for _ in range(1 + len(content) // 1000):
            content[system.rng.randrange(len(content))] ^= 1 << system.rng.randrange(8)
        path.write_bytes(content)
        system.did("bytes flipped", file=str(path.relative_to(system.data("a"))))


def disk_full(system: System, seconds: float) -> None:
    for _ in rounds(seconds):
        system.clicks_pass(FEW)
        system.did("disk full", worker="a", unclean=1)
        pid = system.workers["a"].process.pid
        limit_files(pid, SMALL)
        system.sleep(FULL_SECONDS)
        if system.workers["a"].process.pid == pid:
            limit_files(pid)
        system.did("disk not full", worker="a", healed=True)
        system.clicks_pass(FEW)
