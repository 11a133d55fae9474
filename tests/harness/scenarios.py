"""The table of attacks: each begins with a worker `a` under load, and returns when nothing is broken any more."""

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from kafka import KafkaProducer

from tests.faults.proxy import ALL
from tests.harness.clients import Record, bot, leaders, mixed, move_leaders_back, record, set_committed, shop
from tests.harness.parts import SCORE, SCORE_SETTINGS, Store, scores_equal_a_recount, store_equals_the_topic
from tests.harness.system import ITEMS, SESSION_TIMEOUT, TRAINED, System, limit_files

Attack = Callable[[System, float], None]
"""Gets the seconds that it has to go on; begins nothing anew behind them."""
BEYOND: Final = SESSION_TIMEOUT + 4
"""Seconds after which a silent worker has been replaced."""
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
COMPRESSIONS: Final = ("gzip", "snappy", "lz4", "zstd")
_FEW: Final = 300
_LARGE: Final = 10 * 2**20
_SMALL: Final = 1000
"""Bytes that a file may have, as where the disk is full."""


@dataclass(frozen=True)
class Scenario:
    """One attack.

    Attributes:
        attack: what is done.
        what: in words, for docs/proof.md.
        kind: of model.
        records: how clicks come, where it is not the usual shop.
        transactions: whether they come in transactions, of which every third is aborted.
        proxied: whether worker `a` reaches the broker through the proxy.
        brokers: 1 or 3.
    """

    attack: Attack
    what: str
    kind: str = "gru"
    records: Callable[[System], Iterator[Record]] | None = None
    transactions: bool = False
    proxied: bool = False
    brokers: int = 1


def _rounds(seconds: float, *, least: int = 2) -> Iterator[int]:
    """Rounds, until the time is over."""
    began = time.monotonic()
    for number in itertools.count():
        if number >= least and time.monotonic() - began > seconds:
            return
        yield number


# -- the process ------------------------------------------------------------------------------------------------------


def killed_at_each_step(system: System, seconds: float) -> None:
    system.kill()
    for _ in _rounds(seconds, least=1):
        for step in STEPS:
            system.start(stop_at=step)
            system.died()
    system.start_ready()


def killed(system: System, seconds: float) -> None:
    for _ in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.sleep(system.rng.uniform(0, 2))
        system.kill()
        system.start_ready()


def killed_while_it_starts(system: System, seconds: float) -> None:
    system.clicks_pass(_FEW)
    for _ in _rounds(seconds):
        system.kill()
        system.start()
        system.sleep(system.rng.uniform(0.5, 4))
    system.wait(system.ready, "worker a serves")


def replaced(system: System, seconds: float) -> None:
    system.start_ready("b")
    for number in _rounds(seconds):
        system.clicks_pass(_FEW)
        name = "ab"[number % 2]
        system.kill(name)
        system.sleep(BEYOND)
        system.start_ready(name)


def stopped(system: System, seconds: float) -> None:
    for _ in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.stop()
        system.start_ready()


def frozen(system: System, seconds: float) -> None:
    system.start_ready("b")
    for number in _rounds(seconds):
        name = "ab"[number % 2]
        system.clicks_pass(_FEW)
        system.freeze(name)
        system.sleep(BEYOND)
        system.thaw(name)
        system.sleep(2)


def come_and_gone(system: System, seconds: float) -> None:
    for number in _rounds(seconds):
        others = [f"{name}{number // 2}" for name in "bcd"]  # each second round finds its folders
        system.start_ready(others[0])
        system.clicks_pass(_FEW)
        for name in others[1:]:
            system.start(name)
        for name in others[1:]:
            system.wait(lambda name=name: system.ready(name), f"worker {name} serves")  # type: ignore[misc]
        system.clicks_pass(_FEW)
        for name in others:
            system.stop(name)
        system.clicks_pass(_FEW)


# -- the network and the broker ---------------------------------------------------------------------------------------


def _cut(*ways: str) -> Attack:
    def attack(system: System, seconds: float) -> None:
        system.start_ready("b")
        for number in _rounds(seconds):
            way = ways[number % len(ways)]
            system.clicks_pass(_FEW)
            system.cut([gate for gate in ALL if way in (*gate, "both")])
            system.sleep(BEYOND)
            system.heal()
            system.sleep(2)

    return attack


def slow(system: System, seconds: float) -> None:
    system.start_ready("b")
    for number in _rounds(seconds):
        system.slow((0.01, 0.1, 0.3)[number % 3])
        system.sleep(8)
        system.slow(0)
        system.clicks_pass(_FEW)


def _broker(*, kill: bool, down: float = 2.0) -> Attack:
    def attack(system: System, seconds: float) -> None:
        brokers = sorted(system.broker.kafka.running_brokers)
        for number in _rounds(seconds, least=1):
            one = brokers[number % len(brokers)]
            system.clicks_pass(_FEW)
            system.broker_down(one, kill=kill)
            system.sleep(down)
            system.broker_up(one)
            system.clicks_pass(_FEW)

    return attack


def leader_moved(system: System, seconds: float) -> None:
    for number in _rounds(seconds, least=3):
        system.clicks_pass(_FEW)
        system.broker_down(number % 3, kill=False)
        system.clicks_pass(_FEW)
        system.broker_up(number % 3)
        system.did("leaders moved back", healed=True)
        move_leaders_back(system.broker.direct)
        system.clicks_pass(_FEW)


def cut_off_from_the_coordinator(system: System, seconds: float) -> None:
    _cut_off_from_one(system, seconds, system.coordinator)


def cut_off_from_a_leader(system: System, seconds: float) -> None:
    def another() -> int:
        others = {*leaders(system.broker.direct, system.changelog).values()} - {system.coordinator()}
        return system.rng.choice(sorted(others))

    _cut_off_from_one(system, seconds, another)


def _cut_off_from_one(system: System, seconds: float, broker: Callable[[], int]) -> None:
    system.start_ready("b")
    for _ in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.cut(brokers=[broker()])
        system.sleep(BEYOND)
        system.heal()
        system.sleep(2)


def broker_disk_full(system: System, seconds: float) -> None:
    for _ in _rounds(seconds, least=1):
        system.clicks_pass(_FEW)
        system.broker_disk_full(_SMALL)
        system.sleep(5)
        system.broker_down(kill=True)  # whoever runs it makes room, and starts it again
        system.broker_up()
        system.clicks_pass(_FEW)


def refused_rankings(system: System, seconds: float) -> None:
    for number in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.configure(system.rankings, "min.insync.replicas" if number % 2 else "max.message.bytes", 2)
        system.sleep(6)
        system.configure(system.rankings, "min.insync.replicas" if number % 2 else "max.message.bytes", None)
        system.clicks_pass(_FEW)


# -- the data folder --------------------------------------------------------------------------------------------------


def data_deleted(system: System, seconds: float) -> None:
    for _ in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.kill()
        system.did("data deleted", worker="a")
        shutil.rmtree(system.data("a"))
        system.start_ready()


def data_rolled_back(system: System, seconds: float) -> None:
    old = system.folder / "an older copy"
    for number in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.kill()
        if number % 2 == 0:
            system.did("data copied", worker="a")
            shutil.copytree(system.data("a"), old)
        else:
            system.did("data rolled back", worker="a")
            shutil.rmtree(system.data("a"))
            old.rename(system.data("a"))
        system.start_ready()


def bytes_flipped(system: System, seconds: float) -> None:
    for _ in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.kill()
        files = [path for path in system.data("a").rglob("*") if path.is_file() and path.stat().st_size]
        for path in system.rng.sample(sorted(files), 3):
            content = bytearray(path.read_bytes())
            for _ in range(1 + len(content) // 1000):
                content[system.rng.randrange(len(content))] ^= 1 << system.rng.randrange(8)
            path.write_bytes(content)
            system.did("bytes flipped", file=str(path.relative_to(system.data("a"))))
        system.start_ready()


def disk_full(system: System, seconds: float) -> None:
    for _ in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.did("disk full", worker="a", unclean=1)
        pid = system.workers["a"].process.pid
        limit_files(pid, _SMALL)
        system.sleep(5)
        if system.workers["a"].process.pid == pid:
            limit_files(pid)
        system.did("disk not full", worker="a", healed=True)
        system.clicks_pass(_FEW)


# -- what topics and the group lose ------------------------------------------------------------------------------------


def clicks_expired(system: System, seconds: float) -> None:
    for number in _rounds(seconds):
        system.clicks_pass(_FEW)
        if number % 2:
            system.stop()
        else:
            system.freeze(expelled=False)
        system.sleep(3)
        system.expire_clicks(keep=100)
        if number % 2:
            system.start_ready()
        else:
            system.thaw()
        system.clicks_pass(_FEW)


def changelog_emptied(system: System, seconds: float) -> None:
    for _ in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.kill()
        system.expire_rows()
        system.start_ready()


def all_rows_lost(system: System, seconds: float) -> None:
    for _ in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.stop()
        system.expire_rows()
        system.did("data deleted", worker="a")
        shutil.rmtree(system.data("a"))
        system.note_begin_anew()
        system.start_ready()


def offsets_deleted(system: System, seconds: float) -> None:
    for _ in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.stop()
        system.forget_group()
        system.start_ready()
        system.clicks_pass(_FEW)


# -- models -----------------------------------------------------------------------------------------------------------


def swapped(system: System, seconds: float) -> None:
    paths = [system.bundle(kind) for kind in ("gru", "window", "gru", "counts")]
    for number in _rounds(seconds):
        system.announce(paths[number % len(paths)])
        system.sleep(1)
        if number % 10 == 9:
            system.kill()
            system.start_ready()


def formats_swapped(system: System, seconds: float) -> None:
    paths = [system.bundle("gru", format_1=number % 2 == 0) for number in range(4)]
    for number in _rounds(seconds, least=6):
        system.announce(paths[number % len(paths)])
        system.sleep(1)
        if number % 5 == 4:
            system.kill()
            system.start_ready()


def refused_bundles(system: System, seconds: float) -> None:
    for number in _rounds(seconds):
        bad = system.bundle("gru")
        for name in ("rank.onnx", "vocabulary.json", "golden.json", "manifest.json"):
            if system.rng.random() < 0.5 or name == "rank.onnx":
                content = bytearray((bad / name).read_bytes())
                content[system.rng.randrange(len(content))] ^= 255
                (bad / name).write_bytes(content)
        system.announce(bad)
        system.sleep(3)
        if number % 2:
            system.kill()
            system.announce(system.bundle("gru"))
            system.start_ready()


# -- items and rules ---------------------------------------------------------------------------------------------------


def items_and_rules_changed(system: System, seconds: float) -> None:
    system.use_items_and_rules()
    for number in _rounds(seconds, least=4):
        if number % 3 == 0:
            system.kill()
            system.start_ready()
        some, barred = system.rng.sample(ITEMS, 60), system.rng.sample(ITEMS, 60)
        system.publish("items", {item: {"item_id": item, "available": number % 2 == 1} for item in some})
        rule = {"rule_id": "no", "action": "exclude", "match": {"items": barred}}
        system.publish("rules", {"no": rule if number % 3 else None})
        system.clicks_pass(_FEW)


# -- the parts beside the workers --------------------------------------------------------------------------------------


def scorer_killed(system: System, seconds: float) -> None:
    system.settings |= SCORE_SETTINGS
    system.at_rest.append(partial(scores_equal_a_recount, system))
    system.start_ready("scorer", command=SCORE)
    for number in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.kill("scorer")
        if number % 2:
            system.did("data deleted", worker="scorer")
            shutil.rmtree(system.data("scorer"))
        system.kill()
        system.start_ready()
        system.start_ready("scorer", command=SCORE)


def sink_killed(system: System, seconds: float) -> None:
    store = Store(system.folder)
    system.closing.callback(store.close)
    system.settings |= {"NEXTCLICK_API__STORE_URL": store.url, "NEXTCLICK_SINK__SESSION_TIMEOUT": "6"}
    parts = {"sink": ("sink", store.url), "api": ("api",)}
    for name, command in parts.items():
        system.start_ready(name, command=command)
    for number in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.kill("sink")
        if number % 2:
            system.did("store emptied")
            store.close()
            store.start()
        system.kill()
        system.start_ready()
        system.start_ready("sink", command=parts["sink"])
    system.at_rest.append(partial(store_equals_the_topic, system, store))


# -- the clicks -------------------------------------------------------------------------------------------------------


def open_transactions(system: System, seconds: float) -> None:
    producer = KafkaProducer(bootstrap_servers=system.broker.direct, transactional_id=f"{system.name}-open", acks="all")
    producer.init_transactions()
    for number in _rounds(seconds):
        system.clicks_pass(_FEW)
        producer.begin_transaction()
        for n in range(8):
            key, value = record(f"open{number}.{n}", ITEMS[1], int(time.time() * 1000), event=None)
            producer.send(system.clicks, key=key, value=value)
        producer.flush()
        system.did("transaction open")
        system.sleep(4)
        system.kill()
        system.start_ready()
        producer.commit_transaction() if number % 2 else producer.abort_transaction()
        system.did("transaction ended", healed=True)
    producer.close()


def compressed(system: System, seconds: float) -> None:
    for number in _rounds(seconds):
        kind = COMPRESSIONS[number % len(COMPRESSIONS)]
        sender = system.load(shop(system.rng, ITEMS, name=kind), per_second=200, compression=kind)
        system.clicks_pass(_FEW)
        system.kill()
        system.start_ready(compression=COMPRESSIONS[(number + 1) % len(COMPRESSIONS)])
        system.clicks_pass(_FEW)
        sender.stop()
        if number == len(COMPRESSIONS) - 1:
            break


def invalid_records(system: System) -> Iterator[Record]:
    """Records that must be rejected, some of them of 10 MB, one in two hundred of the first kind."""
    good = shop(system.rng, ITEMS)
    bad = [
        (b"s", b"not json"),
        (b"s", b"[]"),
        (b"s", b'{"session_id":"s","item_id":1,"timestamp":1}'),
        (b"s", b'{"session_id":"other","item_id":"i","timestamp":1767225600000}'),
        (b"s", b"\xff" * 17_000),
    ]
    for number, one in enumerate(good):
        yield one
        if number % 25 == 0:
            yield bad[number // 25 % len(bad)]
        if number % 1000 == 999:
            yield b"s", b"x" * _LARGE


def with_a_bot(system: System) -> Iterator[Record]:
    """Half of all clicks are of one session."""
    return mixed(system.rng, shop(system.rng, ITEMS), bot(system.rng, ITEMS))


def delivered_again(system: System, seconds: float) -> None:
    for _ in _rounds(seconds):
        system.clicks_pass(_FEW)
        system.stop()
        system.did("offsets set back", to=0)
        set_committed(system.broker.direct, system.name, system.clicks, 0)
        system.start_ready()
        system.clicks_pass(_FEW)


SCENARIOS: Final[dict[str, Scenario]] = {
    "steps": Scenario(killed_at_each_step, "kill -9 at each step from a click to its acknowledgement"),
    "kills": Scenario(killed, "kill -9 at random moments"),
    "kills-starting": Scenario(killed_while_it_starts, "kill -9 while it starts and restores"),
    "kills-window": Scenario(killed, "the same with a model that has no hidden state", kind="window"),
    "kills-counts": Scenario(killed, "the same with a model that counts", kind="counts"),
    "replaced": Scenario(replaced, "kill -9 of one of two workers, for longer than the session timeout"),
    "sigterm": Scenario(stopped, "SIGTERM and a new start"),
    "frozen": Scenario(frozen, "SIGSTOP beyond the session timeout, then SIGCONT"),
    "workers": Scenario(come_and_gone, "1-2-4-1 workers, with new folders and with old ones"),
    "cut": Scenario(_cut("both"), "worker and broker cut off from each other", proxied=True),
    "cut-one-way": Scenario(
        _cut("requests", "answers", "producer", "consumer"),
        "requests held, answers held, the producer's traffic held, the consumer's held",
        proxied=True,
    ),
    "slow": Scenario(slow, "10, 100 and 300 ms more for each request and each answer", proxied=True),
    "broker-kill": Scenario(_broker(kill=True), "kill -9 of the broker"),
    "broker-restart": Scenario(_broker(kill=False), "the broker restarts"),
    "outage": Scenario(_broker(kill=True, down=60), "no broker for 60 s"),
    "three-brokers": Scenario(_broker(kill=True, down=6), "kill -9 of one of three brokers after the other", brokers=3),
    "leader-moved": Scenario(leader_moved, "each of three brokers restarts, and leads again", brokers=3),
    "cut-coordinator": Scenario(
        cut_off_from_the_coordinator,
        "worker and the coordinator's broker cut off from each other",
        proxied=True,
        brokers=3,
    ),
    "cut-leader": Scenario(
        cut_off_from_a_leader, "worker and another of three brokers cut off from each other", proxied=True, brokers=3
    ),
    "broker-disk-full": Scenario(broker_disk_full, "no file of the broker may grow for 5 s, and kill -9 of it"),
    "refused-rankings": Scenario(refused_rankings, "the rankings topic refuses records"),
    "data-deleted": Scenario(data_deleted, "kill -9, and the data folder is deleted"),
    "data-old": Scenario(data_rolled_back, "kill -9, and the data folder goes back to an older copy"),
    "bytes": Scenario(bytes_flipped, "kill -9, and bits flip in three files of the data folder"),
    "disk-full": Scenario(disk_full, "no file of the worker may grow for 5 s"),
    "clicks-expired": Scenario(clicks_expired, "retention removes clicks that a frozen or stopped worker has not read"),
    "changelog-emptied": Scenario(changelog_emptied, "kill -9, and all records of the changelog are deleted"),
    "rows-lost": Scenario(all_rows_lost, "SIGTERM, all records of the changelog are deleted, and the data folder"),
    "offsets-deleted": Scenario(offsets_deleted, "SIGTERM, and Kafka forgets the group and its offsets"),
    "swaps": Scenario(swapped, "a swap each second between four models of three kinds, and kill -9"),
    "formats": Scenario(formats_swapped, "a swap each second between bundles of format 1 and 2, and kill -9"),
    "bad-bundles": Scenario(refused_bundles, "damaged bundles are announced, and kill -9"),
    "bot": Scenario(killed, "half of all clicks are of one session, and kill -9", records=with_a_bot),
    "transactions": Scenario(killed, "clicks in transactions, a third aborted, and kill -9", transactions=True),
    "open-transactions": Scenario(open_transactions, "transactions stay open for seconds, and kill -9"),
    "compression": Scenario(compressed, "gzip, snappy, lz4 and zstd, of clicks and of rankings, and kill -9"),
    "invalid": Scenario(killed, "invalid records, some of 10 MB, and kill -9", records=invalid_records),
    "again": Scenario(delivered_again, "the group's offsets are set back to 0"),
    "items": Scenario(items_and_rules_changed, "items and rules change under load, and kill -9", kind=TRAINED),
    "scores": Scenario(scorer_killed, "kill -9 of worker and scorer, whose data folder is deleted as well"),
    "sink": Scenario(sink_killed, "kill -9 of worker and sink, and of its Redis, which forgets all"),
}
