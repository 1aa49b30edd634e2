"""Top k of next-token distributions, computed on the device that has the logits.

Only k tokens per sequence reach the host, not a vocabulary. On CUDA the next input is computed
while the host reads the answers to the one before, names their tokens and stores them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.local import TopPart

__all__ = ["LogitPart", "likeliest"]

LogitPart = tuple[list[int], Any, int]
"""Numbers of the sequences, their logits (n, vocabulary) on the device, and tokens evaluated."""


def likeliest(parts: Iterable[LogitPart], top_k: int) -> Iterator[TopPart]:
    """Yield the likeliest tokens of each part and their log-probabilities, highest first."""
    before: tuple[list[int], _OnItsWay, int] | None = None
    for rows, logits, evaluated in parts:
        if before is not None:
            yield before[0], *before[1].arrive(), before[2]
            before = None
        part = rows, _OnItsWay(logits, top_k), evaluated
        if logits.is_cuda:
            before = part  # the next input is begun before this answer is waited for
        else:
            yield rows, *part[1].arrive(), evaluated
    if before is not None:
        yield before[0], *before[1].arrive(), before[2]


class _OnItsWay:
    """The likeliest tokens of logits, on their way from the device to the host."""

    def __init__(self, logits: Any, top_k: int) -> None:
        import torch

        with torch.inference_mode():
            top = logits.topk(top_k, dim=-1)
            total = logits.float().logsumexp(dim=-1, keepdim=True)
            found = (top.indices.int(), top.values.float() - total)
            self._event = None
            if logits.is_cuda:
                pinned = [torch.empty_like(one, device="cpu", pin_memory=True) for one in found]
                for here, there in zip(pinned, found, strict=True):
                    here.copy_(there, non_blocking=True)
                self._event = torch.cuda.Event()
                self._event.record(torch.cuda.current_stream(logits.device))
                found = tuple(pinned)
            self._found = found

    def arrive(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return token ids and log-probabilities (n, k): by value, ties by id."""
        if self._event is not None:
            self._event.synchronize()
        ids, values = (one.cpu().numpy() for one in self._found)
        values = np.minimum(values, 0)  # rounding may leave a certain token a little above
        order = np.lexsort((ids, -values), axis=1)  # the last key decides first
        return np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1)
