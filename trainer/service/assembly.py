"""What the settings name, put together: registry, announcements, collector."""

from collections.abc import Callable

from schemas.formats.codec import formats_of
from schemas.messages.announcement import is_version
from trainer.errors import RegistryError
from trainer.service.announce import ModelsTopic
from trainer.service.champion import Championship
from trainer.service.click_log import ClickLogFolder
from trainer.service.collect import Collected, Collector
from trainer.service.registry import Registry
from trainer.service.settings import TrainerRoot
from trainer.service.split import SplitTopic


def registry_of(root: TrainerRoot, writer: str | None = None) -> Registry:
    return Registry(root.trainer.registry, cache_dir=root.trainer.work_dir / "cache", writer=writer)


def championship_of(root: TrainerRoot, registry: Registry, alias: str | None = None) -> Championship:
    """Of `trainer.model_alias`, or of another alias. RegistryError for what cannot name one."""
    settings = root.trainer
    alias = settings.model_alias if alias is None else alias
    if not is_version(alias):  # it names a folder, too
        raise RegistryError(f"{alias!r} is no alias: letters, digits, dots, hyphens and underscores name one")
    topic = ModelsTopic(root.kafka, root.topics.models, alias, delivery_seconds=settings.delivery_timeout)
    return Championship(registry, topic)


def split_topic_of(root: TrainerRoot) -> SplitTopic:
    settings = root.trainer
    return SplitTopic(root.kafka, root.topics.splits, settings.app_id, delivery_seconds=settings.delivery_timeout)


def collector_of(
    root: TrainerRoot,
    folder: ClickLogFolder,
    on_records: Callable[[int], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
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
        formats=formats_of(root.schema_registry, root.topics, stopping=stopping),
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
    with folder.locked(), collector_of(root, folder, on_records, stopping) as collector:
        return collector.collect_to_end(stopping) if once else collector.collect_until(stopping)
