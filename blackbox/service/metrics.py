"""What a service counts, for Prometheus. No label has a value that a client chooses."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from blackbox.errors import BackendError, BudgetError
from blackbox.protocol import Usage
from blackbox.service.failures import failure_of

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters and histograms of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._counted: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
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

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered, or refused."""
        # routes and statuses are few, and looking one up costs as much as counting it
        counted = self._counted.get((route, status))
        if counted is None:
            counted = self._requests.labels(route, status), self._seconds.labels(route)
            self._counted[route, status] = counted
        counted[0].inc()
        counted[1].observe(seconds)

    def batch(self, model: str, n: int, usage: Usage, n_refused: int) -> None:
        """A batch was answered."""
        self._batches.labels(model).observe(n)
        self._passes.labels(model, "made").inc(usage.passes_made)
        self._passes.labels(model, "store").inc(usage.passes_from_store)
        self._tokens.labels(model).inc(usage.tokens)
        self._refused.labels(model).inc(n_refused)

    def refused(self, model: str, n: int) -> None:
        """So many texts got no answer, and took no pass."""
        self._refused.labels(model).inc(n)

    def failed(self, model: str, error: Exception) -> None:
        """A batch failed; one that the budget didn't hold was never begun."""
        if isinstance(error, BackendError):
            self._errors.labels(model, failure_of(error).kind).inc()
        elif not isinstance(error, BudgetError):
            self._defects.labels(model).inc()

    def state(self, model: str, *, waiting: int, ready: bool) -> None:
        """How it is just now."""
        self._waiting.labels(model).set(waiting)
        self._ready.labels(model).set(ready)

    def page(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)
