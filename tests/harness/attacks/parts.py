"""On the parts beside the workers: scorer, sink, API, trainer, guard."""

import shutil
from functools import partial
from typing import Any

from tests.harness.attacks.rounds import FEW, FULL_SECONDS, SMALL, rounds
from tests.harness.parts import (
    API,
    SCORE,
    SCORE_SETTINGS,
    Store,
    api_equals_the_topic,
    scores_equal_a_recount,
    store_equals_the_topic,
)
from tests.harness.system import System
from tests.harness.trainers import PHASES, Disk, Guard, Trainer

_ENDS = "next cycle"
_BY_THE_GUARD = "announced by the guard"


def scorer_killed(system: System, seconds: float) -> None:
    system.settings |= SCORE_SETTINGS
    system.at_rest.append(partial(scores_equal_a_recount, system))
    system.start_ready("scorer", command=SCORE)
    for number in rounds(seconds):
        system.clicks_pass(FEW)
        system.kill("scorer")
        if number % 2:
            system.did("data deleted", worker="scorer")
            shutil.rmtree(system.data("scorer"))
        system.kill()
        system.start_ready()
        system.start_ready("scorer", command=SCORE)


def readers_without_a_broker(system: System, seconds: float) -> None:
    system.settings |= SCORE_SETTINGS
    system.start_ready("scorer", command=SCORE)
    store, _ = _with_a_store(system)
    for _ in rounds(seconds, least=1):
        system.clicks_pass(FEW)
        system.broker_down(0, kill=True)
        system.sleep(2)
        system.broker_up(0)
        system.clicks_pass(FEW)
    system.at_rest += [partial(scores_equal_a_recount, system), partial(store_equals_the_topic, system, store)]


def sink_killed(system: System, seconds: float) -> None:
    store, parts = _with_a_store(system)
    for number in rounds(seconds):
        system.clicks_pass(FEW)
        system.kill("sink")
        if number % 2:
            system.did("store emptied")
            store.close()
            store.start()
        system.kill()
        system.start_ready()
        system.start_ready("sink", command=parts["sink"])
    system.at_rest.append(partial(store_equals_the_topic, system, store))


def _with_a_store(system: System) -> tuple[Store, dict[str, tuple[str, ...]]]:
    """A store, and sink and API by their commands, which have begun."""
    store = Store(system.folder)
    system.closing.callback(store.close)
    system.settings |= {"NEXTCLICK_API__STORE_URL": store.url, "NEXTCLICK_SINK__SESSION_TIMEOUT": "6"}
    parts: dict[str, tuple[str, ...]] = {"sink": ("sink", store.url), "api": API}
    for name, command in parts.items():
        system.start_ready(name, command=command)
    return store, parts


def trainer_killed(system: System, seconds: float) -> None:
    trainer = _trainer(system)
    for number in rounds(seconds, least=len(PHASES)):
        phase = PHASES[number % len(PHASES)]
        trainer.reaches(phase)
        trainer.kill(f"trainer killed ({phase})")
        trainer.start()
    trainer.reaches(_ENDS)


def trainer_disk_full(system: System, seconds: float) -> None:
    trainer = _trainer(system)
    for number in rounds(seconds, least=len(PHASES)):
        trainer.reaches(PHASES[number % len(PHASES)])
        system.did("trainer's disk full")
        trainer.limit_files(SMALL)
        system.sleep(FULL_SECONDS)
        system.did("trainer's disk not full")
        trainer.limit_files()
        trainer.reaches(_ENDS)


def registry_full(system: System, seconds: float) -> None:
    disk = Disk(system.folder / "disk")
    system.closing.callback(disk.close)
    trainer = _trainer(system, registry=disk.folder / "registry")
    for number in rounds(seconds):
        trainer.reaches(("training", "publishing")[number % 2])
        system.did("registry's disk full")
        disk.fill()
        system.sleep(2 * FULL_SECONDS)
        system.did("registry's disk not full")
        disk.empty()
        trainer.reaches("published")


def two_trainers(system: System, seconds: float) -> None:
    """The second one is refused; it takes over while the first one is frozen, which ends when it thaws."""
    first = Trainer(system)
    second = Trainer(system, "second", registry=first.registry)
    first.start()
    for _ in rounds(seconds, least=1):
        first.reaches("training")
        second.start()
        second.is_refused(first)
        first.freeze()
        second.start()
        second.reaches(_ENDS)
        first.thaw()
        first.is_refused(second)
        first, second = second, first
    # The one that runs comes first: it has the lease, and no other one removes what it leaves half-done.
    system.at_rest += [first.is_whole, second.is_whole]


def guard_killed(system: System, seconds: float) -> None:
    """It is killed before it decides, and between its two deeds: its announcement and the end of the split."""
    system.settings |= SCORE_SETTINGS
    better = system.bundle("popular")
    system.announce(better, alias="b")
    system.use_splits()
    system.split(50, shadow=False)
    system.kill()
    system.start_ready()
    system.start_ready("scorer", command=SCORE)
    guard = Guard(system)
    guard.start()
    for _ in rounds(seconds, least=1):
        system.clicks_pass(FEW)
        guard.kill("guard killed")
        guard.start()
        system.kill()
        system.start_ready()
    guard.waits(lambda: guard.told(_BY_THE_GUARD, since=0), "sure")
    guard.kill("guard killed (split not ended)")
    guard.start()
    system.kill("scorer")
    system.start_ready("scorer", command=SCORE)
    guard.waits(guard.split_is_over, "at its end")
    system.note_split(0)
    system.clicks_pass(FEW)
    system.at_rest.append(partial(guard.has_decided, better))


def guard_rolls_back(system: System, seconds: float) -> None:
    """A worse model is announced, which opens as any other; all are killed until the better one serves again."""
    system.settings |= SCORE_SETTINGS
    good, worse = system.bundle("popular"), system.bundle("gru")
    guard = Guard(system)
    guard.promotes(good, "the better one")
    system.kill()
    system.start_ready()
    system.start_ready("scorer", command=SCORE)
    system.serves(good)
    system.wait(lambda: guard.scored_sessions(good) >= 2 * guard.SESSIONS, "there are scores to compare with")
    guard.start()
    guard.promotes(worse, "it passed every check")
    system.serves(worse)
    for _ in rounds(seconds, least=1):
        system.clicks_pass(FEW)
        guard.kill("guard killed")
        guard.start()
        system.kill()
        system.start_ready()
    while not guard.told(_BY_THE_GUARD, since=0):
        guard.waits(lambda: True, "at work")  # or started anew
        system.kill()
        system.kill("scorer")
        system.start_ready("scorer", command=SCORE)
        system.start_ready()
        system.clicks_pass(4 * FEW)
    system.kill()  # before it has the announcement in service
    guard.kill("guard killed (rolled back)")
    guard.start()
    system.start_ready()
    system.clicks_pass(FEW)
    system.at_rest.append(partial(guard.has_rolled_back, good))


def api_killed(system: System, seconds: float) -> None:
    """The API with a RocksDB of its own is killed, frozen, and killed and finds no folder, in turns."""
    system.start_ready("api", command=API)
    for number in rounds(seconds, least=3):
        system.clicks_pass(FEW)
        if number % 3 == 1:
            system.freeze("api", expelled=False)
            system.clicks_pass(FEW)
            system.thaw("api")
            continue
        system.kill("api")
        if number % 3 == 2:
            system.did("data deleted", worker="api")
            shutil.rmtree(system.data("api"))
        system.kill()
        system.start_ready()
        system.start_ready("api", command=API)
    system.at_rest.append(partial(api_equals_the_topic, system))


def _trainer(system: System, **told: Any) -> Trainer:
    """One that trains, and is looked at in the end."""
    trainer = Trainer(system, **told)
    system.at_rest.append(trainer.is_whole)
    trainer.start()
    return trainer
