"""What a search service counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class ServiceMetrics:
    """Counters of one service, apart from those of any other in the process."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry(auto_describe=False)
        self.requests = Counter(
            "retriever_requests", "Answered requests", ["status"], registry=registry
        )
        self.queries = Counter("retriever_queries", "Queries searched", registry=registry)
        self.in_flight = Gauge(
            "retriever_in_flight", "Requests not answered yet", registry=registry
        )
        self.body_bytes = Gauge(
            "retriever_body_bytes", "Bytes of requests not answered yet", registry=registry
        )
        self.waiting_queries = Gauge(
            "retriever_waiting_queries", "Queries that wait to be searched", registry=registry
        )
        self.request_seconds = Histogram(
            "retriever_request_seconds",
            "From the head of a request to its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.search_seconds = Histogram(
            "retriever_search_seconds", "Searching one batch", buckets=_SECONDS, registry=registry
        )
        self.batch_queries = Histogram(
            "retriever_batch_queries", "Queries in one batch", buckets=_SIZES, registry=registry
        )
        self.batch_requests = Histogram(
            "retriever_batch_requests", "Requests in one batch", buckets=_SIZES, registry=registry
        )

    def text(self) -> bytes:
        """All values in Prometheus' text format."""
        return generate_latest(self._registry)
