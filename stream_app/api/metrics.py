"""What the API and the sink measure, as Prometheus has it."""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ApiMetrics:
    """One registry a process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "nextclick_api_requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "nextclick_api_request_seconds",
            "From a request to the beginning of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.open = Gauge("nextclick_api_open", "Requests that wait or stream.", registry=registry)
        self.rankings = Counter("nextclick_api_rankings", "Rankings read.", registry=registry)
        self.unreadable = Counter(
            "nextclick_api_unreadable", "Records of the rankings topic that are no ranking.", registry=registry
        )
        self.expired = Counter(
            "nextclick_api_expired", "Offsets that retention removed before they were read.", registry=registry
        )
        self.lag = Gauge("nextclick_api_lag", "Rankings not read yet in a partition.", ["partition"], registry=registry)
        # To look a label up takes as long as a lookup.
        self.answered = cache(lambda route, status: self.requests.labels(route=route, status=str(status)))
        self.seconds = cache(lambda route: self.request_seconds.labels(route=route))


class SinkMetrics:
    """One registry a sink."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.rankings = Counter("nextclick_sink_rankings", "Rankings read and stored.", registry=registry)
        self.unreadable = Counter(
            "nextclick_sink_unreadable", "Records of the rankings topic that are no ranking.", registry=registry
        )
        self.moved = Counter(
            "nextclick_sink_moved",
            "Batches that the store refused, because it was at another position: another sink wrote, or it lost data.",
            registry=registry,
        )
        self.expired = Counter(
            "nextclick_sink_expired", "Offsets that retention removed before they were read.", registry=registry
        )
        self.lag = Gauge(
            "nextclick_sink_lag", "Rankings not stored yet in a partition.", ["partition"], registry=registry
        )
        self.waits = Gauge("nextclick_sink_waits", "1 while the store does not answer, else 0.", registry=registry)
