"""What the settings name, put together: registry, announcements, collector."""

from collections.abc import Callable
from typing import Any

from schemas.bundle.signature import SigningKey, signing_key, trusted_keys
from schemas.errors import SettingsError
from schemas.formats.codec import formats_of
from schemas.messages.announcement import is_version
from trainer.errors import RegistryError
from trainer.service.announce import ModelsTopic
from trainer.service.champion import Championship
from trainer.service.click_log import ClickLogFolder
from trainer.service.collect import Collected, Collector
from trainer.service.collect_group import GroupCollector
from trainer.service.registry import Registry
from trainer.service.settings import TrainerRoot
from trainer.service.split import SplitTopic


def registry_of(root: TrainerRoot, writer: str | None = None) -> Registry:
    """With a `writer` to publish to, else only to read, promote and remove. Raises SettingsError for unusable keys."""
    return Registry(
        root.trainer.registry,
        cache_dir=root.trainer.work_dir / "cache",
        writer=writer,
        signing=None if writer is None else signing_key_of(root),
        trusted=trusted_keys(root.bundles.trusted_keys),
    )


def signing_key_of(root: TrainerRoot) -> SigningKey | None:
    """The key of `trainer.signing_key`, None where it is not set. Raises SettingsError."""
    path, trusted = root.trainer.signing_key, trusted_keys(root.bundles.trusted_keys)
    key = None if path is None else signing_key(path)
    if trusted is not None and key is None:
        raise SettingsError(
            "bundles.trusted_keys is set and trainer.signing_key is not set: nobody would serve what is published"
        )
    if trusted is not None and key is not None and not trusted.include(key):
        raise SettingsError(
            f"trainer.signing_key: the public key of {path} is not among bundles.trusted_keys: no worker would serve "
            "what it signs"
        )
    return key


def championship_of(root: TrainerRoot, registry: Registry, alias: str | None = None) -> Championship:
    """Of `trainer.model_alias`, or of another alias. RegistryError for what cannot name one."""
    settings = root.trainer
    alias = settings.model_alias if alias is None else alias
    if not is_version(alias):  # it names a folder, too
        raise RegistryError(f"{alias!r} is no alias: letters, digits, dots, hyphens and underscores name one")
    topic = ModelsTopic(
        root.kafka, root.topics.models, alias, group=root.group, delivery_seconds=settings.delivery_timeout
    )
    return Championship(registry, topic)


def split_topic_of(root: TrainerRoot) -> SplitTopic:
    """Of the workers of `worker.app_id`."""
    return SplitTopic(
        root.kafka,
        root.topics.splits,
        root.worker.app_id,
        group=root.group,
        delivery_seconds=root.trainer.delivery_timeout,
    )


def collector_of(
    root: TrainerRoot,
    folder: ClickLogFolder,
    on_records: Callable[[int], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
    *,
    tidies: bool = False,
) -> Collector:
    """Of all that `trainer.collect_partitions` names, or a member of `trainer.collect_group`.

    With `tidies` it joins and removes old files itself, which a trainer does elsewhere; a member always does.
    """
    settings = root.trainer
    arguments = root.kafka, root.topics.clicks, folder
    options: dict[str, Any] = {
        "limits": root.clicks.limits,
        "flush_clicks": settings.flush_clicks,
        "flush_seconds": settings.flush_interval,
        "on_records": on_records,
        "formats": formats_of(root.schema_registry, root.topics, stopping=stopping),
    }
    if settings.collect_group:
        group = f"{root.topics.prefix}{settings.collect_group}"
        return GroupCollector(*arguments, group=group, log_keep=settings.log_keep, **options)
    log_keep = settings.log_keep if tidies else None
    partitions = settings.collect_partitions
    return Collector(*arguments, group=root.group, partitions=partitions, log_keep=log_keep, **options)


def collect(
    root: TrainerRoot,
    *,
    once: bool,
    stopping: Callable[[], bool],
    on_records: Callable[[int], None] = lambda _: None,
) -> Collected:
    """Collect to the present end of the topic, or until `stopping`. Raises ClickLogError and CollectError."""
    folder = ClickLogFolder(root.trainer.log_dir)
    with (
        folder.shared() if root.trainer.collect_group else folder.locked(),
        collector_of(root, folder, on_records, stopping, tidies=True) as collector,
    ):
        if not once:
            return collector.collect_until(stopping)
        collected = collector.collect_to_end(stopping)
        if not stopping():
            collector.tidy()  # else nobody would, where this is a job of every hour
        return collected
