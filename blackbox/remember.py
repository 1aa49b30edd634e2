"""A backend that remembers, as long as it lives, every answer that another one gave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.protocol import (
    Backend,
    RenderedPrompt,
    TokenLogProbs,
    Usage,
    gather_parts,
    request_digest,
)

__all__ = ["RememberingBackend"]


class RememberingBackend:
    """Wraps a backend: what was asked before is answered from memory, the rest is asked for.

    Parameters
    ----------
    backend : Backend
        The LM.

    Attributes
    ----------
    usage : Usage
        What the LM took so far; answers from memory take nothing.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.identity = backend.identity
        self.limits = backend.limits
        self.usage = Usage()
        self._known: dict[str, tuple[NDArray[np.int32], NDArray[np.float32]]] = {}
        self._token_bytes: dict[int, bytes] = {}
        for optional in ("count_tokens", "show"):
            if hasattr(backend, optional):
                setattr(self, optional, getattr(backend, optional))

    def iter_next_token(
        self, prompts: Sequence[RenderedPrompt], top_k: int
    ) -> Iterator[tuple[list[int], TokenLogProbs]]:
        """Answers in parts: those in memory at once, the others as they come."""
        digests = [request_digest(self.identity, prompt, {"top_k": top_k}) for prompt in prompts]
        known = [row for row, digest in enumerate(digests) if digest in self._known]
        if known:
            yield known, self._recall([digests[row] for row in known])
        wanted = [row for row, digest in enumerate(digests) if digest not in self._known]
        for where, part in self._ask([prompts[row] for row in wanted], top_k):
            rows = [wanted[place] for place in where]
            for place, row in enumerate(rows):
                if place not in part.row_errors:
                    self._keep(digests[row], part.token_ids[place], part.log_probs[place])
            self._token_bytes.update(part.token_bytes)
            self.usage += part.usage
            yield rows, part

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """All answers in order; see `blackbox.protocol.Backend`."""
        return gather_parts(self.iter_next_token(prompts, top_k), len(prompts), top_k)

    def _keep(self, digest: str, ids: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        self._known[digest] = (ids, values)

    def _ask(
        self, prompts: list[RenderedPrompt], top_k: int
    ) -> Iterator[tuple[list[int], TokenLogProbs]]:
        stream = getattr(self.backend, "iter_next_token", None)
        if prompts and stream is not None:
            yield from stream(prompts, top_k)
        elif prompts:
            yield list(range(len(prompts))), self.backend.next_token(prompts, top_k)

    def _recall(self, digests: list[str]) -> TokenLogProbs:
        width = max(len(self._known[digest][0]) for digest in digests)
        ids = np.full((len(digests), width), -1, np.int32)
        values = np.full((len(digests), width), -np.inf, np.float32)
        for row, digest in enumerate(digests):
            known_ids, known_values = self._known[digest]
            ids[row, : len(known_ids)], values[row, : len(known_ids)] = known_ids, known_values
        return TokenLogProbs(ids, values, self._token_bytes)

    def __sklearn_clone__(self) -> RememberingBackend:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RememberingBackend:
        return self
