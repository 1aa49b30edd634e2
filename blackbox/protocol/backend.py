"""The members that an object needs to be a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from blackbox.protocol.answers import TokenLogProbs
from blackbox.protocol.identity import BackendIdentity
from blackbox.protocol.limits import Limits
from blackbox.protocol.requests import RenderedPrompt


@runtime_checkable
class Backend(Protocol):
    """The members that an object needs to be a backend, which runs forward passes.

    Optional abilities are methods of `blackbox.backend.BaseBackend`, each with a default.
    """

    @property
    def identity(self) -> BackendIdentity:
        """The LM and all settings that can change an answer."""

    @property
    def limits(self) -> Limits:
        """The kinds and sizes of requests that can be served."""

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Return the `top_k` most likely next (or masked) tokens of each prompt, in order.

        Callers pass all their prompts in one call: the backend orders and batches them.
        """
