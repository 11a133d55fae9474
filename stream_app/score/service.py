"""`stream-app score` from start to exit: topics, data folder, health and metrics around the scorer's thread."""

import asyncio
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Final

import structlog
from confluent_kafka import KafkaException

from schemas.errors import SchemaRegistryError, SettingsError, StoppedWaitingError
from schemas.kafka.admin import check_topics
from stream_app.errors import StoreError, StreamError
from stream_app.score.metrics import ScoreMetrics
from stream_app.score.scorer import Scorer, rankings_topic, scores_dir
from stream_app.serve.web import Web
from stream_app.settings import StreamSettings
from stream_app.state.data_lock import DataLock
from stream_app.state.member import member_id
from stream_app.state.topic_identity import topic_ids, watch_identity

log = structlog.get_logger(__name__)

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1


async def run_scorer(settings: StreamSettings, *, shadows: bool = False) -> int:
    """Count until SIGTERM or SIGINT; returns the exit code."""
    stop = threading.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    needed = {rankings_topic(settings, shadows=shadows), settings.topics.scores}
    if shadows and not settings.worker.splits:
        raise SettingsError("worker.splits is off, so no worker has shadows; set it here as for the workers")
    specs = [spec for spec in settings.topic_specs() if spec.name in needed]
    for difference in await asyncio.to_thread(check_topics, settings.kafka, specs):
        log.warning("topic differs", difference=str(difference))
    metrics = ScoreMetrics()
    scorer = await asyncio.to_thread(_scorer, settings, metrics, stop.is_set, shadows=shadows)
    failure: str | None = None

    def readiness() -> Mapping[str, str | None]:
        return {"scorer": failure, "partitions": None if scorer.assigned else "none assigned yet"}

    scores = settings.scores
    web = Web(scores.web_host, scores.web_port, registry=metrics.registry, readiness=readiness, refresh=lambda: None)
    await web.start()
    log.info("health and metrics", url=f"http://{scores.web_host}:{web.port}")
    read = {rankings_topic(settings, shadows=shadows): scorer.topic_id}
    same = asyncio.create_task(watch_identity(settings.kafka, read, on_fatal=scorer.fail))
    try:
        await asyncio.to_thread(scorer.run)
    except StoppedWaitingError as error:
        log.info("stopped", waited_for=str(error))
    except (StreamError, SchemaRegistryError, KafkaException) as error:
        failure = str(error)
        log.error("the scorer cannot go on", error=failure, kind=type(error).__name__)
    finally:
        same.cancel()
        await web.stop()
    return EXIT_OK if failure is None else EXIT_FAILED


def _scorer(settings: StreamSettings, metrics: ScoreMetrics, stopping: Callable[[], bool], *, shadows: bool) -> Scorer:
    data_dir, rankings = scores_dir(settings, shadows=shadows), rankings_topic(settings, shadows=shadows)
    try:
        DataLock(data_dir, setting="scores.data_dir")  # until the process ends
        member = settings.scores.group_instance_id or member_id(data_dir)
    except OSError as error:
        raise StoreError(f"scores.data_dir {data_dir} cannot be written: {error}") from error
    topic_id = topic_ids(settings.kafka, [rankings])[rankings]
    return Scorer(settings, metrics, member=member, topic_id=topic_id, stopping=stopping, shadows=shadows)


def main(settings: StreamSettings, *, shadows: bool = False) -> int:
    """`stream-app score`; returns the exit code."""
    return asyncio.run(run_scorer(settings, shadows=shadows))
