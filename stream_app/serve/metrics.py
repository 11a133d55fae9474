"""What the worker measures, as Prometheus has it."""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_CLICKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """One registry a worker, so that several can live in one process under test."""

    # Long: one metric after the other, each with its help.
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.clicks = Counter(
            "nextclick_clicks", "Clicks read from the topic, rejected ones included.", registry=registry
        )
        self.rankings = Counter(
            "nextclick_rankings", "Rankings confirmed by Kafka, by what they came from.", ["reason"], registry=registry
        )
        self.rejected = Counter(
            "nextclick_rejected", "Records that are no click, by reason.", ["reason"], registry=registry
        )
        self.redelivered = Counter(
            "nextclick_redelivered", "Clicks skipped because their row had passed them.", registry=registry
        )
        self.expired = Counter(
            "nextclick_expired_clicks", "Offsets that retention removed before they were read.", registry=registry
        )
        self.unmoved = Counter("nextclick_unmoved_clicks", "Clicks whose type moves no session on.", registry=registry)
        self.dropped_chunks = Counter(
            "nextclick_dropped_chunks", "Chunks left to another worker after a rebalance.", registry=registry
        )
        self.chunk_clicks = Histogram(
            "nextclick_chunk_clicks", "Clicks computed together.", buckets=_CLICKS, registry=registry
        )
        self.chunks_in_flight = Gauge("nextclick_chunks_in_flight", "Chunks not yet acknowledged.", registry=registry)
        self.step_seconds = Histogram(
            "nextclick_step_seconds", "Time of a chunk's step.", ["step"], buckets=_SECONDS, registry=registry
        )
        self.end_to_end_seconds = Histogram(
            "nextclick_end_to_end_seconds",
            "From a click's record timestamp to its ranking being confirmed by Kafka.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.forgotten = Counter("nextclick_forgotten", "Requests to forget a session.", registry=registry)
        self.rebuilt_rows = Counter(
            "nextclick_rebuilt_rows", "Rows of another model's that were replayed.", registry=registry
        )
        self.model_info = Gauge("nextclick_model_info", "1 for the model that serves.", ["version"], registry=registry)
        self.model_age_seconds = Gauge("nextclick_model_age_seconds", "Since the model was made.", registry=registry)
        self.swaps = Counter("nextclick_swaps", "Models taken into service.", registry=registry)
        self.refused_bundles = Counter(
            "nextclick_refused_bundles", "Announced models that were refused.", registry=registry
        )
        self.items = Gauge("nextclick_items", "Items of the topic of items, without those gone.", registry=registry)
        self.rules = Gauge("nextclick_rules", "Rules that have not been ended.", registry=registry)
        self.refused_records = Counter(
            "nextclick_refused_records",
            "Records of items, rules and splits that were refused, by reason.",
            ["topic", "reason"],
            registry=registry,
        )
        self.variant_share = Gauge(
            "nextclick_variant_share",
            "Percent of the sessions by the split.",
            ["variant"],
            registry=registry,
        )
        self.variant_fallbacks = Counter(
            "nextclick_variant_fallbacks",
            "Clicks of a variant without a model, ranked by worker.model_alias.",
            registry=registry,
        )
        self.shadow_clicks = Counter("nextclick_shadow_clicks", "Clicks handed to shadows.", registry=registry)
        self.shadow_skipped = Counter(
            "nextclick_shadow_skipped_clicks", "Clicks that shadows had no time for.", registry=registry
        )
        self.lag = Gauge(
            "nextclick_lag_clicks",
            "Clicks not acknowledged yet in a partition that the worker has now.",
            ["partition"],
            registry=registry,
        )
        self.recovering = Gauge("nextclick_recovering", "1 while tables are being restored.", registry=registry)
        self.recovery_remaining = Gauge(
            "nextclick_recovery_remaining_records", "Changelog records still to be restored.", registry=registry
        )
        self.restored_rows = Gauge(
            "nextclick_restored_rows", "Changelog records restored since the start.", registry=registry
        )
        self.stored_rows = Gauge(
            "nextclick_stored_rows", "Rows in the local store (RocksDB's estimate).", registry=registry
        )
        # To look a label up takes as long as to encode a ranking, and each batch does it ten times.
        self.step = cache(lambda step: self.step_seconds.labels(step=step))
        self.ranked = cache(lambda reason: self.rankings.labels(reason=reason))
