"""The table of attacks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tests.harness.attacks import away, brokers, clicks, models, parts, versions, workers
from tests.harness.attacks.rounds import Attack, while_down
from tests.harness.clients import Record
from tests.harness.system import TRAINED, System


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
        by_hand: whether it runs only where it is named: it takes long, or what not everybody has.
        timed: whether workers have their default time limits, and it is told how long rankings stayed away.
    """

    attack: Attack
    what: str
    kind: str = "gru"
    records: Callable[[System], Iterator[Record]] | None = None
    transactions: bool = False
    proxied: bool = False
    brokers: int = 1
    by_hand: bool = False
    timed: bool = False


SCENARIOS: Final[dict[str, Scenario]] = {
    "steps": Scenario(workers.killed_at_each_step, "kill -9 at each step from a click to its acknowledgement"),
    "kills": Scenario(workers.killed, "kill -9 at random moments"),
    "kills-starting": Scenario(workers.killed_while_it_starts, "kill -9 while it starts and restores"),
    "kills-window": Scenario(workers.killed, "the same with a model that has no hidden state", kind="window"),
    "kills-counts": Scenario(workers.killed, "the same with a model that counts", kind="counts"),
    "replaced": Scenario(workers.replaced, "kill -9 of one of two workers, for longer than the session timeout"),
    "sigterm": Scenario(while_down(workers.nothing, kill=False), "SIGTERM and a new start"),
    "frozen": Scenario(workers.frozen, "SIGSTOP beyond the session timeout, then SIGCONT"),
    "workers": Scenario(workers.come_and_gone, "1-2-4-1 workers, with new folders and with old ones"),
    "cut": Scenario(brokers.cut("both"), "worker and broker cut off from each other", proxied=True),
    "cut-one-way": Scenario(
        brokers.cut("requests", "answers", "producer", "consumer"),
        "requests held, answers held, the producer's traffic held, the consumer's held",
        proxied=True,
    ),
    "slow": Scenario(brokers.slow, "10, 100 and 300 ms more for each request and each answer", proxied=True),
    "broker-kill": Scenario(brokers.down(kill=True), "kill -9 of the broker"),
    "broker-restart": Scenario(brokers.down(kill=False), "the broker restarts"),
    "outage": Scenario(brokers.down(kill=True, seconds=60), "no broker for 60 s"),
    "outage-long": Scenario(brokers.down(kill=True, seconds=300), "no broker for 5 minutes", by_hand=True),
    "three-brokers": Scenario(
        brokers.down(kill=True, seconds=6), "kill -9 of one of three brokers after the other", brokers=3
    ),
    "leader-moved": Scenario(brokers.leader_moved, "each of three brokers restarts, and leads again", brokers=3),
    "cut-coordinator": Scenario(
        brokers.cut_off_from_the_coordinator,
        "worker and the coordinator's broker cut off from each other",
        proxied=True,
        brokers=3,
    ),
    "cut-leader": Scenario(
        brokers.cut_off_from_a_leader,
        "worker and another of three brokers cut off from each other",
        proxied=True,
        brokers=3,
    ),
    "broker-disk-full": Scenario(brokers.disk_full, "no file of the broker may grow for 5 s, and kill -9 of it"),
    "refused-rankings": Scenario(brokers.refused_rankings, "the rankings topic refuses records"),
    "data-deleted": Scenario(while_down(workers.data_deleted), "kill -9, and the data folder is deleted"),
    "data-old": Scenario(
        while_down(workers.data_rolled_back), "kill -9, and the data folder goes back to an older copy"
    ),
    "bytes": Scenario(while_down(workers.bytes_flipped), "kill -9, and bits flip in three files of the data folder"),
    "disk-full": Scenario(workers.disk_full, "no file of the worker may grow for 5 s"),
    "clock": Scenario(
        workers.clock_jumps,
        "the worker's clock is set an hour ahead, right, an hour back and right again, and kill -9; items come and go "
        "at times in between",
        kind=TRAINED,
    ),
    "clicks-expired": Scenario(
        brokers.clicks_expired, "retention removes clicks that a frozen or stopped worker has not read"
    ),
    "clicks-lost": Scenario(
        brokers.clicks_lost, "the broker loses the last tenth or third of the clicks, which it had confirmed"
    ),
    "changelog-emptied": Scenario(
        while_down(System.expire_rows), "kill -9, and all records of the changelog are deleted"
    ),
    "rows-lost": Scenario(
        while_down(brokers.all_rows_lost, kill=False),
        "SIGTERM, all records of the changelog are deleted, and the data folder",
    ),
    "offsets-deleted": Scenario(
        while_down(System.forget_group, kill=False), "SIGTERM, and Kafka forgets the group and its offsets"
    ),
    "swaps": Scenario(models.swapped, "a swap each second between four models of three kinds, and kill -9"),
    "formats": Scenario(models.formats_swapped, "a swap each second between bundles of format 1 and 2, and kill -9"),
    "versions": Scenario(
        versions.mixed,
        "SIGTERM or kill -9 of workers of this version and of the one before, which take over from each other, and "
        "swaps between bundles of format 1 and 2",
        by_hand=True,
    ),
    "bad-bundles": Scenario(models.refused_bundles, "damaged bundles are announced, and kill -9"),
    "slow-bundles": Scenario(
        models.slow_bundles,
        "bundles that come late from a store that drips, are refused at their deadline, overtaken by another one, or "
        "slow to load and to rank, and kill -9",
    ),
    "bot": Scenario(
        clicks.killed_beside_a_bot, "half of all clicks are of one session, and kill -9", records=clicks.with_a_bot
    ),
    "transactions": Scenario(workers.killed, "clicks in transactions, a third aborted, and kill -9", transactions=True),
    "open-transactions": Scenario(clicks.open_transactions, "transactions stay open for seconds, and kill -9"),
    "compression": Scenario(clicks.compressed, "gzip, snappy, lz4 and zstd, of clicks and of rankings, and kill -9"),
    "invalid": Scenario(workers.killed, "invalid records, some of 10 MB, and kill -9", records=clicks.invalid_records),
    "again": Scenario(while_down(brokers.delivered_again, kill=False), "the group's offsets are set back to 0"),
    "items": Scenario(models.items_and_rules_changed, "items and rules change under load, and kill -9", kind=TRAINED),
    "splits": Scenario(
        models.splits_changed, "two models share the sessions, a third is a shadow, the shares change, and kill -9"
    ),
    "scores": Scenario(parts.scorer_killed, "kill -9 of worker and scorer, whose data folder is deleted as well"),
    "sink": Scenario(parts.sink_killed, "kill -9 of worker and sink, and of its Redis, which forgets all"),
    "api": Scenario(
        parts.api_killed, "kill -9 of worker and API, whose data folder is deleted as well, and which is frozen"
    ),
    "readers-outage": Scenario(
        parts.readers_without_a_broker, "kill -9 of the broker, while scorer, sink and API read as well"
    ),
    "trainer": Scenario(parts.trainer_killed, "kill -9 of the trainer in each phase"),
    "trainer-disk-full": Scenario(parts.trainer_disk_full, "no file of the trainer may grow for 5 s, in each phase"),
    "registry-full": Scenario(parts.registry_full, "the registry's disk is full for 10 s", by_hand=True),
    "guard": Scenario(
        parts.guard_killed,
        "kill -9 of worker, scorer and guard, also between its promotion of the better model and the end of the split",
        records=clicks.of_now,
        by_hand=True,
    ),
    "guard-rollback": Scenario(
        parts.guard_rolls_back,
        "a worse model is announced, and kill -9 of worker, scorer and guard until the guard has rolled it back",
        records=clicks.of_now,
        by_hand=True,
    ),
    "two-trainers": Scenario(
        parts.two_trainers,
        "a second trainer on the registry of one that runs, of one that is frozen, and of that one when it thaws",
        by_hand=True,
    ),
    "away-outage": Scenario(brokers.down(kill=True, seconds=30), "no broker for 30 s", by_hand=True, timed=True),
    "away-given-up": Scenario(
        away.given_up, "no broker until the worker has given up, and was started again", by_hand=True, timed=True
    ),
    "away-kills": Scenario(workers.killed, "kill -9 at random moments", by_hand=True, timed=True),
    "away-kills-often": Scenario(away.killed_often, "kill -9 every 1.5 to 9 s", by_hand=True, timed=True),
}
