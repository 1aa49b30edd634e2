"""Metrics of a service for Prometheus. No client chooses the value of a label."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from blackbox.errors import BackendError, BudgetError
from blackbox.protocol import Usage
from blackbox.service.failures import failure_of

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters, gauges and histograms of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._by_route_and_status: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._requests = Counter(
            "blackbox_requests_total",
            "Requests by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "blackbox_request_seconds",
            "Seconds from the head of a request to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "blackbox_batch_texts",
            "Texts that were answered together.",
            ["model"],
            buckets=_SIZES,
            registry=registry,
        )
        self._passes = Counter(
            "blackbox_forward_passes_total",
            "Forward passes, made or out of the store.",
            ["model", "source"],
            registry=registry,
        )
        self._tokens = Counter(
            "blackbox_tokens_total",
            "Tokens of the prompts that were sent.",
            ["model"],
            registry=registry,
        )
        self._refused = Counter(
            "blackbox_refused_rows_total",
            "Texts without an answer.",
            ["model"],
            registry=registry,
        )
        self._errors = Counter(
            "blackbox_upstream_errors_total",
            "Batches that the language model failed.",
            ["model", "kind"],
            registry=registry,
        )
        self._defects = Counter(
            "blackbox_defects_total",
            "Batches that failed by a defect of the service.",
            ["model"],
            registry=registry,
        )
        self._waiting = Gauge(
            "blackbox_waiting_texts",
            "Texts that wait for the language model.",
            ["model"],
            registry=registry,
        )
        self._ready = Gauge(
            "blackbox_model_ready",
            "1 where the language model answers.",
            ["model"],
            registry=registry,
        )
        self._store_writable = Gauge(
            "blackbox_store_writable",
            "1 where the store keeps answers; 0 where they wait in memory, and its log says why.",
            ["model"],
            registry=registry,
        )

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered or refused."""
        # kept, as `labels` costs as much as counting, and there are few routes and statuses
        kept = self._by_route_and_status.get((route, status))
        if kept is None:
            kept = self._requests.labels(route, status), self._seconds.labels(route)
            self._by_route_and_status[route, status] = kept
        counter, histogram = kept
        counter.inc()
        histogram.observe(seconds)

    def count_unreadable(self, status: int) -> None:
        """Count a request that was refused as no readable HTTP."""
        self._requests.labels("unreadable", status).inc()

    def count_batch(self, model: str, n_texts: int, usage: Usage, n_unanswered: int) -> None:
        """Count a batch that was answered, apart from some of its texts."""
        self._batches.labels(model).observe(n_texts)
        self._passes.labels(model, "made").inc(usage.passes_made)
        self._passes.labels(model, "store").inc(usage.passes_from_store)
        self._tokens.labels(model).inc(usage.tokens)
        self._refused.labels(model).inc(n_unanswered)

    def count_unanswered(self, model: str, n_texts: int) -> None:
        """Count texts without an answer that took no forward pass."""
        self._refused.labels(model).inc(n_texts)

    def count_failure(self, model: str, error: Exception, passes_made: int) -> None:
        """Count a batch that failed, unless the budget refused it, and the passes made before."""
        self._passes.labels(model, "made").inc(passes_made)
        if isinstance(error, BackendError):
            self._errors.labels(model, failure_of(error).kind).inc()
        elif not isinstance(error, BudgetError):
            self._defects.labels(model).inc()

    def set_state(self, model: str, *, waiting: int, ready: bool, cached: bool) -> None:
        """Set the gauges of a model."""
        self._waiting.labels(model).set(waiting)
        self._ready.labels(model).set(ready)
        self._store_writable.labels(model).set(cached)

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
