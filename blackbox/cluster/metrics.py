"""Metrics of a job for Ray's dashboard and Prometheus: rows, forward passes, tokens, dollars."""

from __future__ import annotations

from ray.util.metrics import Counter

from blackbox.protocol import Usage

__all__ = ["Metrics"]

_COUNTERS = {
    "rows": "Rows that were worked on.",
    "forward_passes": "Forward passes made.",
    "tokens": "Tokens of their prompts.",
    "dollars": "US dollars that they cost, where the price is known.",
}


class Metrics:
    """Counters of one actor; each node exports those of its actors.

    Prometheus has them as ``ray_promptboosting_rows_total`` and so on, with the node as a label.
    """

    def __init__(self) -> None:
        self._counters = {
            name: Counter(f"promptboosting_{name}", description=what)
            for name, what in _COUNTERS.items()
        }
        self._known: dict[str, float] = dict.fromkeys(_COUNTERS, 0.0)

    def report(self, rows: int, usage: Usage) -> None:
        """Count a batch.

        Parameters
        ----------
        rows : int
            Its rows.
        usage : Usage
            Of all batches of this actor.
        """
        now = {
            "rows": self._known["rows"] + rows,
            "forward_passes": usage.passes_made,
            "tokens": usage.tokens,
            "dollars": usage.cost or 0.0,
        }
        for name, counter in self._counters.items():
            if now[name] > self._known[name]:
                counter.inc(now[name] - self._known[name])
        self._known = now
