"""What Prometheus may know: requests, jobs, streams. One registry per service, so that tests can start several."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0)


class Metrics:
    """Counters of one service."""

    def __init__(self, active_jobs: Callable[[], dict[str, int]], streams: Callable[[], int]) -> None:
        """
        Args:
            active_jobs: by state; asked when the metrics are.
            streams: event streams that are open.
        """
        self.registry = CollectorRegistry()
        prefix = "streamsparse"
        self._requests = Counter(
            f"{prefix}_requests", "Answered requests.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            f"{prefix}_request_seconds", "Until an answer begins.", ["route"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._ended = Counter(
            f"{prefix}_jobs_ended", "Attempts of jobs, by the state they led to.", ["kind", "state"],
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(_Live(active_jobs, streams))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. `route` is the template, so that names of runs make no series of their own."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def job_ended(self, kind: str, state: str) -> None:
        """Count an attempt of a job."""
        self._ended.labels(kind, state).inc()

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Live(Collector):
    """What is counted when it is asked for."""

    def __init__(self, active_jobs: Callable[[], dict[str, int]], streams: Callable[[], int]) -> None:
        self._active_jobs, self._streams = active_jobs, streams

    def collect(self) -> Iterable[Metric]:
        """The present numbers."""
        jobs = GaugeMetricFamily("streamsparse_jobs", "Jobs that have not ended.", labels=["state"])
        found = self._active_jobs()
        for state in ("queued", "running", "waiting"):
            jobs.add_metric([state], found.get(state, 0))
        yield jobs
        yield GaugeMetricFamily("streamsparse_event_streams", "Open event streams.", value=self._streams())
