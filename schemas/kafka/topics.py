"""The topic table: name, key, partitions, cleanup policy and retention of every topic of a deployment.

Every topic keeps time by its broker (`LogAppendTime`): clicks can be replayed from an old file with old timestamps, and
retention by those would delete them, and the rows made from them, at the next roll of a segment.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from schemas.kafka.connection import TopicSettings

TABLE: Final = "sessions"
"""Name of the Faust table; with the app's id it names the changelog."""

_HOUR_MS: Final = 3_600_000
_MINUTE_MS: Final = 60_000
_MIB: Final = 1024**2


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as it should be."""

    name: str
    key: str
    """What a record's key is, for people."""
    partitions: int
    replication: int
    description: str
    config: Mapping[str, str] = field(default_factory=dict)
    """Kafka's topic configuration, names and values as Kafka has them."""
    partitions_of: str | None = None
    """The topic whose partition count this one must have, whatever `partitions` says (co-partitioning)."""
    required: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Configuration without which data would be lost or pile up for ever: name -> parts that its value must hold."""


def changelog_topic(app_id: str) -> str:
    """The changelog topic of the session table, as Faust names it."""
    return f"{app_id}-{TABLE}-changelog"


# Long: one entry per topic.
def topic_table(
    topics: TopicSettings,
    app_id: str,
    *,
    session_ttl_ms: int,
    idle_gap_ms: int = 30 * _MINUTE_MS,
    items: bool = False,
    rules: bool = False,
    splits: bool = False,
) -> tuple[TopicSpec, ...]:
    """Every topic of a deployment, `clicks` first; those of `items`, `rules` and `splits` where they are in use.

    `session_ttl_ms` is how long a row outlives its last click in RocksDB: the changelog's retention, so that ended
    sessions leave both. It must not be below the idle gap.
    """
    common = {
        "message.timestamp.type": "LogAppendTime",
        # A write is acknowledged by a majority, so that it survives the loss of one broker.
        "min.insync.replicas": str(topics.replication // 2 + 1 if topics.replication > 2 else 1),
    }
    compacted = {"cleanup.policy": "compact"}
    optional = (
        (items, topics.items, "item_id", "What the shop says of its items; the newest record of an item counts."),
        (rules, topics.rules, "rule_id", "What the shop wants of its rankings; the newest record of a rule counts."),
        (splits, topics.splits, "worker.app_id", "Which model ranks for which share of the sessions."),
    )
    return (
        *_click_topics(topics, common),
        _spec(
            topics,
            topics.models,
            key="alias",
            partitions=1,  # announcements have one order
            description="Which model bundle each alias means; the newest announcement of an alias counts.",
            config=common | compacted,
            required={"cleanup.policy": frozenset({"compact"})},
        ),
        _spec(
            topics,
            topics.scores,
            key="model version, variant, market, window start, partition",
            description="What the rankings of each model came to, window by window: Recall, MRR and counts.",
            config=common | {"cleanup.policy": "compact,delete", "retention.ms": str(topics.scores_retention_ms)},
            required={"cleanup.policy": frozenset({"compact"})},
        ),
        _spec(
            topics,
            changelog_topic(app_id),
            key="session_id",
            partitions_of=topics.clicks,
            description="The session table's rows, from which a worker restores the partitions that it is given.",
            config=common | _changelog_config(session_ttl_ms, idle_gap_ms),
            required={"cleanup.policy": frozenset({"compact", "delete"})},
        ),
        *(
            _spec(
                topics,
                name,
                key=key,
                partitions=1,  # what a worker has applied is one number
                description=description,
                config=common | compacted,
                required={"cleanup.policy": frozenset({"compact"})},
            )
            for used, name, key, description in optional
            if used
        ),
        *([_shadow_topic(topics, common)] if splits else []),
    )


def _click_topics(topics: TopicSettings, common: Mapping[str, str]) -> tuple[TopicSpec, ...]:
    """Of clicks and of what answers them."""
    return (
        _spec(
            topics,
            topics.clicks,
            key="session_id",
            description="Clicks of the shop, one record each, a session's clicks in one partition and in order.",
            config={**common, "cleanup.policy": "delete", "retention.ms": str(topics.clicks_retention_ms)},
        ),
        _spec(
            topics,
            topics.rankings,
            key="session_id",
            description="The answer to each click: the items most likely clicked next.",
            config={**common, "cleanup.policy": "delete", "retention.ms": str(topics.rankings_retention_ms)},
        ),
        _spec(
            topics,
            topics.rejected,
            key="the rejected record's key",
            description="Records of the clicks topic that are no clicks, with reason and position.",
            config={**common, "cleanup.policy": "delete", "retention.ms": str(topics.rejected_retention_ms)},
        ),
    )


def _shadow_topic(topics: TopicSettings, common: Mapping[str, str]) -> TopicSpec:
    """Where shadow models answer."""
    return _spec(
        topics,
        topics.rankings_shadow,
        key="session_id",
        description="What models that serve nobody would have answered to clicks; some are skipped.",
        config={**common, "cleanup.policy": "delete", "retention.ms": str(topics.rankings_retention_ms)},
    )


def _changelog_config(session_ttl_ms: int, idle_gap_ms: int) -> dict[str, str]:
    """Both halves of compact,delete work on closed segments only, so segments must close soon.

    A record leaves at the latest after retention.ms + segment.ms (and the broker's check interval, 5 minutes); a
    row's older versions after about max.compaction.lag.ms. A quarter of the retention keeps a restore within 1.25
    times the live sessions' rows without making tiny files.
    """
    segment_ms = min(max(session_ttl_ms // 4, _MINUTE_MS), _HOUR_MS)
    return {
        "cleanup.policy": "compact,delete",
        "retention.ms": str(session_ttl_ms),
        "segment.ms": str(segment_ms),
        "segment.bytes": str(64 * _MIB),
        # Compact what is a fifth stale; the default of half lets a busy table's log grow to twice its rows.
        "min.cleanable.dirty.ratio": "0.2",
        # A worker that was frozen while its partition moved may append a row older than its successor's. A restore
        # takes the newer of the two, as long as compaction has not removed it: by then the session should be over.
        "min.compaction.lag.ms": str(max(segment_ms, idle_gap_ms)),
        "max.compaction.lag.ms": str(2 * max(segment_ms, idle_gap_ms)),
        # Tombstones must outlive a restore that is under way.
        "delete.retention.ms": str(session_ttl_ms),
    }


def _spec(
    topics: TopicSettings,
    name: str,
    *,
    key: str,
    description: str,
    config: Mapping[str, str],
    partitions: int | None = None,
    partitions_of: str | None = None,
    required: Mapping[str, frozenset[str]] = MappingProxyType({}),
) -> TopicSpec:
    return TopicSpec(
        name=name,
        key=key,
        partitions=topics.partitions if partitions is None else partitions,
        replication=topics.replication,
        description=description,
        config=MappingProxyType(dict(config)),
        partitions_of=partitions_of,
        required=required,
    )
