"""The profile of an endpoint: what a probe found that it gives, and how requests are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backends.api.request_format import CHAT, COMPLETIONS, RESPONSES, RequestFormat
from backends.api.token_alphabets import IDS, NAMED_IDS
from blackbox.protocol import Usage

__all__ = ["EndpointProfile"]


@dataclass(frozen=True)
class EndpointProfile:
    """The profile of an endpoint: what it gives, and how.

    Parameters
    ----------
    wire : RequestFormat
        How requests to it are written.
    max_top_k : int
        Most tokens that it gives for one prompt.
    native_ids, named_bytes : bool
        Whether it tells the model's own token ids, and bytes instead of text only.
    raw : bool or None
        Whether log-probabilities are those before temperature; None where it couldn't be seen.
    spread : float
        Largest difference of a log-probability between two answers to one prompt.
    prompt_tokens : int
        Tokens of one request of the probe.
    seconds : float
        Median time of a request.
    usage : Usage
        What the probe took.
    reasons_first : bool
        Whether its chats begin with reasoning.
    not_served : mapping of str to str
        Endpoints that aren't served, with the reason.
    answered_by, system_fingerprint : str
        The model, and the version of its configuration, as all answers have them, if they do.
    answers_digest : str
        See `backends.api.fingerprint`.
    draws_at_once : bool
        Whether one request gives several texts; found out where the endpoint only writes.
    images : bool
        Whether its answers change with an image; found out where that is asked for.
    tokens_per_image, tokens_per_megapixel : float
        About how many tokens an image takes, as reported for two.
    """

    wire: RequestFormat
    max_top_k: int
    native_ids: bool
    named_bytes: bool
    raw: bool | None
    spread: float
    prompt_tokens: int
    seconds: float
    usage: Usage = field(default_factory=Usage)
    reasons_first: bool = False
    not_served: Mapping[str, str] = field(default_factory=dict)
    answered_by: str = ""
    system_fingerprint: str = ""
    answers_digest: str = ""
    draws_at_once: bool = True
    images: bool = False
    tokens_per_image: float = 0.0
    tokens_per_megapixel: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the same in words, as JSON data."""
        endpoints = {CHAT: "chat", COMPLETIONS: "completions", RESPONSES: "responses"}
        tokens = "ids and bytes" if self.native_ids else "bytes" if self.named_bytes else "text"
        if self.wire.alphabet:
            tokens += f": {self.wire.alphabet}"
            tokens += {NAMED_IDS: "", IDS: ", no class names among them"}.get(
                self.wire.alphabet, ", decoded"
            )
        return {
            "endpoints": sorted(endpoints[path] for path in self.wire.endpoints),
            "not_served": [f"{endpoints[path]}: {why}" for path, why in self.not_served.items()],
            "max_top_k": self.max_top_k,
            "log_probs": {True: "raw", False: "after temperature", None: "unknown"}[self.raw],
            "tokens": tokens,
            "reasons_first": self.reasons_first,
            "repeats_differ_by": round(self.spread, 6) if math.isfinite(self.spread) else None,
            "answer_prefill": self.wire.begun is not None,
            "raw_text_sent_as": self.wire.raw_text_by.replace("begun answer", "answer prefill"),
            "length_field": self.wire.length_field,
            "tokens_written": self.wire.written,
            "temperature_taken": self.wire.temperature,
            "prompt_tokens": self.prompt_tokens,
            "seconds_a_request": round(self.seconds, 3),
            "requests": self.usage.passes_made,
            "tokens_spent": self.usage.tokens,
        } | self._of_images()

    def _of_images(self) -> dict[str, Any]:
        if not self.images:
            return {}
        return {
            "tokens_per_image": round(self.tokens_per_image, 1),
            "tokens_per_megapixel": round(self.tokens_per_megapixel, 1),
        }
