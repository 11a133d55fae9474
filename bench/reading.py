"""What `bench.rules` runs in a process of its own: read a topic of items as a worker does, and tell what it took."""

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from schemas.kafka.connection import KafkaConnection
from stream_app.core.catalogue import Catalogue
from stream_app.serve.live_catalogue import CatalogueFollower, LiveCatalogue
from stream_app.serve.metrics import Metrics

_FORGET_MOST = "5"


def read(servers: str, topic: str) -> Mapping[str, float]:
    """Seconds, and how much memory is added, in the end and at most."""
    live, failed = LiveCatalogue(Catalogue(attributes=["brand"])), threading.Event()
    follower = CatalogueFollower(
        consumer_config=KafkaConnection(bootstrap_servers=servers).plain_consumer("bench-reading"),
        items_topic=topic,
        rules_topic=None,
        live=live,
        metrics=Metrics(),
        on_fatal=lambda _: failed.set(),
    )
    Path("/proc/self/clear_refs").write_text(_FORGET_MOST)
    before, began, used = _mb("VmRSS"), time.perf_counter(), time.process_time()
    follower.start()
    while not follower.is_ready and not failed.is_set():
        time.sleep(0.01)
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    follower.stop()
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "mb_before": before,
        "mb_added": _mb("VmRSS") - before,
        "most_mb_added": _mb("VmHWM") - before,
    }


def _mb(field: str) -> float:
    """Of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


if __name__ == "__main__":
    print(json.dumps(read(*sys.argv[1:])))
