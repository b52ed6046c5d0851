"""What this process counts of its requests, for /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series of each, which nobody asked for


class Meters:
    """What one app counts of its requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ("method", "route")
        self._requests = Counter("allo_http_requests", "Answers", (*names, "status"), registry=self.registry)
        self._seconds = Histogram(
            "allo_http_request_seconds",
            "Until an answer's last byte",
            names,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._bytes = Counter("allo_http_bytes", "Bytes of bodies", ("direction",), registry=self.registry)

    def request(self, method: str, route: str, status: int | None, seconds: float, received: int, sent: int) -> None:
        """Count a request; `status` None: its client went away before an answer."""
        self._requests.labels(method, route, str(status or "none")).inc()
        self._seconds.labels(method, route).observe(seconds)
        self._bytes.labels("received").inc(received)
        self._bytes.labels("sent").inc(sent)
