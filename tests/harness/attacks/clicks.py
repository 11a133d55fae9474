"""On the clicks: how they are sent, and what they hold."""

import time
from collections.abc import Iterator
from typing import Final

from kafka import KafkaProducer

from tests.harness.attacks.rounds import FEW, rounds
from tests.harness.attacks.workers import killed
from tests.harness.clients import Record, bot, record, shop
from tests.harness.system import ITEMS, System

COMPRESSIONS: Final = ("gzip", "snappy", "lz4", "zstd")
_LARGE: Final = 10 * 2**20


def open_transactions(system: System, seconds: float) -> None:
    producer = KafkaProducer(bootstrap_servers=system.broker.direct, transactional_id=f"{system.name}-open", acks="all")
    producer.init_transactions()
    for number in rounds(seconds):
        system.clicks_pass(FEW)
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
    for number in rounds(seconds, least=len(COMPRESSIONS)):
        kind = COMPRESSIONS[number % len(COMPRESSIONS)]
        sender = system.load(shop(system.rng, ITEMS, name=kind), per_second=200, compression=kind)
        system.clicks_pass(FEW)
        system.kill()
        system.start_ready(compression=COMPRESSIONS[(number + 1) % len(COMPRESSIONS)])
        system.clicks_pass(FEW)
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
    for pair in zip(shop(system.rng, ITEMS), bot(system.rng, ITEMS), strict=True):
        yield from pair


def killed_beside_a_bot(system: System, seconds: float) -> None:
    """Until half of all clicks that the rate and the time come to are the bot's, however slow the machine is."""
    sender = system.senders[0]
    killed(system, seconds)
    system.wait(lambda: sender.sent >= sender.per_second * seconds, "all clicks are sent")


def of_now(system: System) -> Iterator[Record]:
    """Clicks that scores are counted of now."""
    return shop(system.rng, ITEMS, ago_ms=0)
