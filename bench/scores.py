"""How many rankings a second does one core score? A backlog on a real Kafka, and the bare decoding of the same bytes.

`stream-app score` reads rankings of 20 items from all partitions. What counts is its processor time, all of its threads
together: the machine's other work does not change that much. The bare decoding (msgspec, the fields that scoring
needs) is measured before and after, in this process: the limit for anything that reads JSON.

    python -m bench scores
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from confluent_kafka import Consumer, TopicPartition

from bench.broker import warm_broker
from bench.clicks import item_ids, shop_clicks
from bench.deployment import Deployment, cpu_seconds
from bench.report import Report, console, spread
from deploy.kafka.ports import free_port
from schemas.messages.ranking import RankedItem, Ranking, RankingReason, encode_ranking
from schemas.messages.source import Source
from stream_app.core.scoring import decode_ranking
from stream_app.score.scorer import group_of

RANKINGS = 200_000
WARM = 20_000
ROUNDS = 3
ITEMS = 20


def main() -> None:
    """Three rounds, each with a topic of its own."""
    measure(RANKINGS, ROUNDS).show("Rankings scored, by one core")


def measure(count: int, rounds: int) -> Report:
    """Decode, score, decode: in each round."""
    scored, decoded = [], []
    values = [value for _, value in rankings(WARM)]
    with warm_broker() as kafka, tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        for number in range(rounds):
            with console.status(f"round {number + 1} of {rounds}"):
                before = _decode(values)
                scored.append(_score(kafka.bootstrap_servers, Path(name), count))
                decoded.append((before + _decode(values)) / 2)
    rate, rates = spread([1e6 / us for us in scored])
    ratio = median(us / bare for us, bare in zip(scored, decoded, strict=True))
    row = {
        "rankings": count,
        "bytes": sum(map(len, values)) / len(values),
        "rankings_per_core_second": rate,
        "rankings_per_core_second_spread": rates,
        "cpu_us_per_ranking": median(scored),
        "cpu_us_per_bare_decode": median(decoded),
    }
    return Report("scores", [row], {"cpu_to_bare_decode": ratio})


def rankings(count: int, *, first: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of a shop's rankings, of clicks from an offset on."""
    ids = item_ids(5_000)
    for n, click in enumerate(shop_clicks(count, 5_000)):
        items = tuple(RankedItem(ids[(n * 31 + place * 7) % len(ids)], 9.87654 - place / 7) for place in range(ITEMS))
        ranking = Ranking(
            session_id=click.session_id,
            event_id=click.event_id,
            item_id=click.item_id,
            model_version="20260101T000000000Z-1f0c2a3b",
            items=items,
            source=Source("clicks", 0, first + n),
            click_timestamp=click.timestamp,
            produced_at=click.timestamp,
            reason=RankingReason.MODEL,
        )
        yield click.session_id.encode(), encode_ranking(ranking)


def _decode(values: Sequence[bytes]) -> float:
    """Processor microseconds a ranking."""
    began = time.process_time()
    for value in values:
        decode_ranking(value)
    return 1e6 * (time.process_time() - began) / len(values)


def _score(bootstrap: str, folder: Path, count: int) -> float:
    """Processor microseconds a ranking, of a scorer that has been through the first of them."""
    with Deployment(bootstrap, folder) as deployment:
        producer = deployment.producer(**{"linger.ms": 20})
        marks = Consumer({**deployment.connection.librdkafka(), "group.id": group_of(deployment.name)})

        def send(more: int, first: int) -> None:
            for key, value in rankings(more, first=first):
                producer.produce(deployment.topics.rankings, value, key)
                while len(producer) > 50_000:
                    producer.poll(0.05)
            deployment.flush(producer)

        def read() -> int:
            found = marks.committed(
                [TopicPartition(deployment.topics.rankings, number) for number in range(deployment.partitions)],
                timeout=30,
            )
            return sum(max(0, one.offset) for one in found)

        send(WARM, 0)
        process = _start(deployment, folder)
        try:
            deployment.wait_for(lambda: read() >= WARM, "the first rankings", every=0.5)
            before = cpu_seconds(process.pid)
            send(count, WARM)
            deployment.wait_for(lambda: read() >= WARM + count, "all rankings", every=0.5)
            return 1e6 * (cpu_seconds(process.pid) - before) / count
        finally:
            process.terminate()
            process.wait(60)
            marks.close()


def _start(deployment: Deployment, folder: Path) -> "subprocess.Popen[bytes]":
    environment = deployment.environment(
        scores__data_dir=folder / f"{deployment.name}-scores", scores__web_port=free_port()
    )
    with (folder / f"{deployment.name}-scores.log").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "stream_app", "score"], env=environment, stdout=output, stderr=output
        )
