"""What the settings name, put together: registry, announcements, collector."""

from collections.abc import Callable

from trainer.service.announce import ModelsTopic
from trainer.service.champion import Championship
from trainer.service.click_log import ClickLogFolder
from trainer.service.collect import Collected, Collector
from trainer.service.registry import Registry
from trainer.service.settings import TrainerRoot


def registry_of(root: TrainerRoot, writer: str | None = None) -> Registry:
    return Registry(root.trainer.registry, cache_dir=root.trainer.work_dir / "cache", writer=writer)


def championship_of(root: TrainerRoot, registry: Registry) -> Championship:
    settings = root.trainer
    topic = ModelsTopic(
        root.kafka, root.topics.models, settings.model_alias, delivery_seconds=settings.delivery_timeout
    )
    return Championship(registry, topic)


def collector_of(
    root: TrainerRoot, folder: ClickLogFolder, on_records: Callable[[int], None] = lambda _: None
) -> Collector:
    settings = root.trainer
    return Collector(
        root.kafka,
        root.topics.clicks,
        folder,
        partitions=settings.collect_partitions,
        limits=root.clicks.limits,
        flush_clicks=settings.flush_clicks,
        flush_seconds=settings.flush_interval,
        on_records=on_records,
    )


def collect(
    root: TrainerRoot,
    *,
    once: bool,
    stopping: Callable[[], bool],
    on_records: Callable[[int], None] = lambda _: None,
) -> Collected:
    """Collect to the present end of the topic, or until `stopping`. Raises ClickLogError and CollectError."""
    folder = ClickLogFolder(root.trainer.log_dir)
    with folder.locked(), collector_of(root, folder, on_records) as collector:
        return collector.collect_to_end(stopping) if once else collector.collect_until(stopping)
