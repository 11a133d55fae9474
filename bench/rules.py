"""What do items and rules cost: a click's processor time, and reading a catalogue when a worker starts?

Processor time of plan, query and ranking together, in turn: with everything off, and with 1, 50 and 99 % of the
catalogue left out, a boost for a tenth of it, clicked items hidden, an item changed before each batch, and lists that
are diverse. Then a million items, from a real Kafka into a process of its own.

    make bench BENCH=rules
    CATALOGUES=5000,37000,330000 make bench BENCH=rules
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from confluent_kafka import Producer

from bench.broker import warm_broker
from bench.bundles import bundle
from bench.clicks import item_ids, shop_clicks
from bench.errors import BenchmarkError
from bench.report import Report, console
from schemas.bundle.files import open_bundle
from schemas.bundle.runtime import Model
from schemas.kafka.admin import ensure_topics
from schemas.kafka.connection import KafkaConnection, TopicSettings
from schemas.kafka.topics import topic_table
from schemas.messages.item import Item, encode_item
from schemas.messages.rule import Match, Rule, RuleAction
from stream_app.core.catalogue import Catalogue
from stream_app.core.diversity import DiversityRules
from stream_app.core.plan import SourcedClick
from stream_app.core.recommend import recommend
from stream_app.core.session import SessionRules
from stream_app.serve.live_catalogue import LiveCatalogue

CATALOGUES: Final = (5_000, 37_000)
BATCHES: Final = (1, 64)
PUBLISHED: Final = 20
READ_ITEMS: Final = 1_000_000
ROUNDS: Final = 15

Call = Callable[[], Any]


def main() -> None:
    """Clicks by catalogue and batch, and the start of a worker with a million items."""
    catalogues = tuple(map(int, os.environ.get("CATALOGUES", ",".join(map(str, CATALOGUES))).split(",")))
    measure(catalogues, BATCHES, rounds=ROUNDS).show("Processor time of a click, by what may be shown")
    measure_start(READ_ITEMS).show("Items read by a worker that starts")


def measure(catalogues: tuple[int, ...], batches: tuple[int, ...], *, rounds: int) -> Report:
    """Every case in turn, as often as ``rounds`` says, in alternating order."""
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        for items in catalogues:
            folder = bundle(Path(name), items)
            off = open_bundle(folder).ranking(PUBLISHED)
            on = open_bundle(folder, adjusts=True, rows=True).ranking(PUBLISHED)
            for batch in batches:
                cases = _cases(off, on, batch)
                spent: dict[str, list[float]] = {case: [] for case in cases}
                with console.status(f"{items:,} items, batches of {batch}"):
                    for round_ in range(-1, rounds):
                        for case, call in sorted(cases.items(), reverse=round_ % 2 == 1):
                            began = time.process_time()
                            for _ in range(repeats := max(1, 2_000_000 // (items * batch))):
                                call()
                            if round_ >= 0:
                                spent[case].append((time.process_time() - began) / repeats / batch)
                typical = {case: 1e6 * median(times) for case, times in spent.items()}
                rows += [
                    {"items": items, "batch": batch, "case": case, "us_per_click": typical[case]} for case in cases
                ]
                ratios |= {
                    f"{case}_to_off_{items}_items_batch_{batch}": typical[case] / typical["off"]
                    for case in cases
                    if case != "off"
                }
    return Report("rules", rows, ratios)


def _cases(off: Model, on: Model, batch: int) -> dict[str, Call]:
    """By name: a batch of clicks of new sessions, ranked from what may be shown."""
    ids = on.vocabulary.items
    rng = np.random.default_rng(0)
    clicks = [SourcedClick(click, n) for n, click in enumerate(shop_clicks(batch, len(ids), open_sessions=10**9))]

    def of(
        share: float,
        *rules: Rule,
        hide: bool = False,
        changing: bool = False,
        diversity: DiversityRules | None = None,
        categories: int = 10,
    ) -> Call:
        shown = rng.random(len(ids)) >= share
        catalogue = Catalogue()
        catalogue.put_items(
            [
                (item_id, Item(item_id=item_id, available=bool(there), categories=(f"c{n % categories}",)))
                for n, (item_id, there) in enumerate(zip(ids, shown, strict=True))
            ]
        )
        for rule in rules:
            catalogue.put_rule(rule.rule_id, rule)
        live = LiveCatalogue(catalogue, diversity)
        kept = SessionRules(hide=hide)

        def call() -> None:
            if changing:
                catalogue.put_items([(ids[0], Item(item_id=ids[0]))])
            now = time.time_ns() // 1_000_000
            offered = live.offered(on, {sourced.click.market for sourced in clicks}, now)
            recommend({}, clicks, on, kept, offered.by_market)

        return call

    boost = Rule(rule_id="boost", action=RuleAction.BOOST, match=Match(categories=("c3",)), boost=0.5)
    return {
        "off": lambda: recommend({}, clicks, off, SessionRules()),
        "all shown": of(0.0),
        "1 % left out": of(0.01),
        "50 % left out": of(0.5),
        "99 % left out": of(0.99),
        "10 % boosted": of(0.0, boost),
        "clicked hidden": of(0.0, hide=True),
        "an item changes": of(0.5, changing=True),
        "2 of a category": of(0.0, diversity=DiversityRules(max_per_category=2), categories=100),
        "MMR among 50": of(0.0, diversity=DiversityRules(mmr_lambda=0.8, mmr_candidates=50)),
        "MMR among 100": of(0.0, diversity=DiversityRules(mmr_lambda=0.8)),
        "both": of(0.0, diversity=DiversityRules(2, 0.8), categories=100),
    }


def measure_start(items: int) -> Report:
    """Seconds and memory of a process that reads so many items, beside the same one before it does."""
    topics = TopicSettings(items="bench-items")
    with warm_broker() as kafka:
        connection = KafkaConnection(bootstrap_servers=kafka.bootstrap_servers)
        specs = topic_table(topics, "bench", session_ttl_ms=3_600_000, items=True)
        ensure_topics(connection, [spec for spec in specs if spec.name == topics.items])
        with console.status(f"publishing {items:,} items"):
            _publish(connection, topics.items, items)
        command = [sys.executable, "-m", "bench.reading", kafka.bootstrap_servers, topics.items]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Report("rules start", [{"items": items, **json.loads(done.stdout.splitlines()[-1])}])


def _publish(connection: KafkaConnection, topic: str, items: int) -> None:
    """Items as a shop has them: two of a few markets, two of a thousand categories, a title, a brand and a price."""
    producer = Producer({**connection.librdkafka(), "linger.ms": 20, "queue.buffering.max.messages": items + 1})
    for n, item_id in enumerate(item_ids(items)):
        item = Item(
            item_id=item_id,
            available_until=1_900_000_000_000 + n if n % 100 == 0 else None,
            markets=None if n % 3 else (f"m{n % 7}", f"m{n % 5}"),
            categories=(f"category-{n % 30}", f"category-{n % 30}/{n % 990}"),
            attributes={"title": f"The item with the number {n}", "brand": f"brand-{n % 500}", "price": n % 1000 / 10},
        )
        producer.produce(topic, encode_item(item), item_id.encode())
    if producer.flush(120):
        raise BenchmarkError("the broker did not take the items within 120 s")
