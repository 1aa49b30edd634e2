"""A backend that takes its time for a call."""

from __future__ import annotations

import time

from backends.deterministic import DeterministicBackend


class SlowBackend(DeterministicBackend):
    """The deterministic backend, slowly."""

    def next_token(self, prompts, top_k):
        """See `blackbox.protocol.Backend`."""
        time.sleep(0.7)
        return super().next_token(prompts, top_k)
