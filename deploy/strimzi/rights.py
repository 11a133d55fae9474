"""What each of our processes may do on a Kafka with access rules: no more than it needs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stream_app.settings import StreamSettings


@dataclass(frozen=True, slots=True)
class Right:
    """One user's operations on one resource."""

    kind: Literal["topic", "group", "transactionalId"]
    name: str
    operations: tuple[str, ...]
    """As Kafka names them. Read and Write let one describe the resource as well."""
    is_prefix: bool = False
    """Whether every resource is meant whose name begins with `name`."""


def rights(settings: StreamSettings, *, collect_group: str = "") -> dict[str, tuple[Right, ...]]:
    """The rights of each process by its name, for the topics that these settings use.

    `collect_group` is `trainer.collect_group`: where there is one, collectors join it under the trainer's name.

    Whoever compares topics with the settings when it starts (worker, scorer) must see their configuration. librdkafka
    looks for the coordinator of a group even where it joins none and commits nothing.
    """
    topics, app_id = settings.topics, settings.app_id
    names = [spec.name for spec in settings.topic_specs()]
    (changelog,) = [spec.name for spec in settings.topic_specs() if spec.partitions_of]
    shops = [name for name in (topics.items, topics.rules) if name in names]
    items = [name for name in (topics.items,) if name in names]
    splits = [name for name in (topics.splits,) if name in names]
    shadows = [name for name in (topics.rankings_shadow,) if name in names]
    scorers = [f"{app_id}-score", *(f"{app_id}-score-shadows" for _ in shadows)]
    collectors = [Right("group", f"{topics.prefix}{collect_group}", ("Read",))] if collect_group else []
    unused = Right("group", f"{app_id}-trainer", ("Describe",))
    return {
        "topics": (*_topics(names, "Create", "Describe", "DescribeConfigs"),),
        "worker": (
            *_topics([topics.clicks, topics.models, *shops, *splits], "Read", "DescribeConfigs"),
            *_topics([topics.rankings, topics.rejected, *shadows], "Write", "DescribeConfigs"),
            *_topics([changelog], "Read", "Write", "DescribeConfigs"),
            Right("group", app_id, ("Read",)),
        ),
        "score": (
            *_topics([topics.rankings, *shadows], "Read", "DescribeConfigs"),
            *_topics([topics.scores], "Read", "Write", "DescribeConfigs"),
            *(Right("group", name, ("Read",)) for name in scorers),
            *(Right("group", f"{name}-restore", ("Describe",)) for name in scorers),
            Right("transactionalId", f"{app_id}-score-", ("Write",), is_prefix=True),
        ),
        "trainer": (
            *_topics([topics.clicks], "Read"),
            *_topics([topics.models, *splits], "Read", "Write"),
            unused,
            *collectors,
        ),
        "guard": (*_topics([topics.scores], "Read"), *_topics([topics.models, *splits], "Read", "Write"), unused),
        "api": (
            *_topics([topics.clicks], "Read", "Write", "DescribeConfigs"),
            *_topics([topics.rankings, topics.models], "Read", "DescribeConfigs"),
            *_topics([topics.scores, topics.rejected, *items, changelog], "Read"),
            Right("group", app_id, ("Describe",)),
            Right("group", f"{app_id}-", ("Describe",), is_prefix=True),
        ),
        "sink": (*_topics([topics.rankings], "Read", "DescribeConfigs"), Right("group", f"{app_id}-sink", ("Read",))),
        "rejected": (
            *_topics([topics.clicks], "Write"),
            *_topics([topics.rejected], "Read", "Write"),
            Right("group", f"{app_id}-rejected", ("Describe",)),
            Right("transactionalId", topics.rejected, ("Write",)),
        ),
        "shop": (
            *_topics([topics.clicks, *shops], "Write"),
            *_topics([topics.rankings], "Read"),
            Right("group", "shop-", ("Read",), is_prefix=True),
        ),
    }


def _topics(names: Iterable[str], *operations: str) -> Iterable[Right]:
    return (Right("topic", name, operations) for name in names)
