"""Adaptive batch size: as few texts as the engine at hand labels at about its best rate."""

from __future__ import annotations

__all__ = ["BatchSize"]

_FIRST = 8  # texts, before anything is known
_ABOUT = 1.05  # times the seconds per text of the best size
_NEW = 0.3  # weight of a new measurement
_AGAIN = 32  # batches after which twice the size is tried again


class BatchSize:
    """Learns from the seconds that batches take how many texts pay.

    A small batch keeps the others waiting for a shorter time; a large one uses an engine, or the
    connections to an API, better, up to a size that depends on them. So twice the size is tried
    for as long as it is faster by a twentieth.

    Parameters
    ----------
    most : int
        Maximum number of texts per batch.
    """

    def __init__(self, most: int) -> None:
        # most, half of it, a quarter, ... 1
        self._sizes = [most >> halvings for halvings in range(most.bit_length())]
        self._seconds: dict[int, float] = {}  # per text, by size
        self._n_batches = 0

    def choose(self, n_waiting: int) -> int:
        """Return the maximum number of texts of the next batch.

        Parameters
        ----------
        n_waiting : int
            Texts that wait: a larger size is tried where there are enough.
        """
        if not self._seconds:
            return min(size for size in self._sizes if size >= min(_FIRST, self._sizes[0]))
        best = min(self._seconds.values())
        size = min(size for size, each in self._seconds.items() if each <= _ABOUT * best)
        larger = self._sizes[max(self._sizes.index(size) - 1, 0)]
        is_unknown = larger not in self._seconds or self._n_batches % _AGAIN == 0
        return larger if is_unknown and n_waiting >= larger else size

    def record(self, n: int, seconds: float) -> None:
        """Note the seconds that a batch of n texts took."""
        size = next(size for size in self._sizes if size <= n)
        each = seconds / n
        before = self._seconds.get(size, each)
        self._seconds[size] = before + _NEW * (each - before)
        self._n_batches += 1
