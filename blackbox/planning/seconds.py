"""How long the parts of a run take: forward passes, vectors, and the training itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

from blackbox.answers.requests import render_requests
from blackbox.backend import BaseBackend
from blackbox.lm.prices import price_of, rate_of
from blackbox.planning.dry_run import DryRunBackend
from blackbox.prompts.inputs import Example
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import TimeEstimate

__all__ = ["estimated_seconds", "probe_seconds", "seconds_of_training", "seconds_of_vectors"]

_PROBED_TEXTS, _PROBED_PROMPTS, _PROBED_VECTORS = 4, 8, 16
# seconds of boosting and calibration with 1,000 rows, and the exponent of their growth with rows
# (docs/performance.md); and of all else that a training does, such as its baseline
_BOOSTING, _GROWTH, _BESIDE = 1.3, 0.6, 1.0


def probe_seconds(
    lm: BaseBackend, pool: PromptPool, texts: Sequence[Example], top_k: int
) -> float | None:
    """Return the mean seconds of a few forward passes; None where they may cost money."""
    price = price_of(rate_of(lm.identity, lm.limits))
    if price is None or price.input or price.output:
        return None
    some = pool[:_PROBED_PROMPTS]
    usage = lm.next_token(render_requests(lm, some, texts[:_PROBED_TEXTS]).requests, top_k).usage
    return usage.seconds_lm / usage.passes_made if usage.passes_made else None


def seconds_of_vectors(
    dry_run: DryRunBackend, embedder: BaseBackend, texts: Sequence[Example]
) -> float:
    """Return the time of all vectors: of a few, or by the backend's estimate if they may cost."""
    if not sum(dry_run.asked):
        return 0.0
    price = price_of(rate_of(embedder.identity, embedder.limits))
    if price is None or price.input:
        return estimated_seconds(dry_run).seconds or 0.0
    some = [text for text, _ in texts[:_PROBED_VECTORS]]
    started = time.perf_counter()
    embedder.embed(some)
    return sum(dry_run.asked) * (time.perf_counter() - started) / len(some)


def estimated_seconds(dry_run: DryRunBackend) -> TimeEstimate:
    """Return the backend's own estimate for all calls of a dry run."""
    return dry_run.backend.estimate_seconds(dry_run.calls, sum(dry_run.tokens))


def seconds_of_training(n_rows: int) -> float:
    """Return about how long boosting, calibration and the baseline take."""
    return _BESIDE + _BOOSTING * float((n_rows / 1000) ** _GROWTH)
