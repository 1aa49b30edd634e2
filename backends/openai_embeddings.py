"""Embeddings of OpenAI-compatible APIs: `/v1/embeddings` of OpenAI, vLLM, llama.cpp and others.

Texts go in batches, in threads, each request charged before it is sent and within a deadline, as
those of `backends.openai`. A batch that the server refuses is sent in halves, so that a refusal
costs one row its vector and no other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.api.backend import ApiBackend
from backends.api.client import API_KEY_ENV
from backends.api.embedding_calls import EmbeddingCalls, Vector, VectorPart
from backends.api.listing import ListedModel
from backends.api.retries import answers_as_they_come
from blackbox.protocol import (
    BackendIdentity,
    EmbeddingParts,
    Embeddings,
    Limits,
    RenderedPrompt,
    Usage,
)

__all__ = ["OpenAIEmbeddings"]

_ASSUMED_CONTEXT = 8192
_BYTES_A_TOKEN = 2.0  # of prose about 4; numbers and most scripts have 2 or more
_BATCH_BYTES = 200_000  # of one request: OpenAI takes 300,000 tokens, and no token has less bytes


@dataclass(frozen=True)
class _Probed:
    """The findings of the first request."""

    listed: ListedModel
    calls: EmbeddingCalls
    identity: BackendIdentity


class OpenAIEmbeddings(ApiBackend):
    """Embeddings of a model behind an OpenAI-compatible API.

    The key comes from an environment variable or with a client object; it is never a parameter, and
    stands in no pickle, identity or message. The first use sends one text, "a", to learn the
    vectors' length.

    Parameters
    ----------
    model : str, optional
        The model's name as the server knows it, such as ``"text-embedding-3-small"``; by default
        the only one that the server lists.
    base_url : str, optional
        The server's address; by default the environment's `OPENAI_BASE_URL`, or OpenAI's own.
    api_key_env : str, default="OPENAI_API_KEY"
        The environment variable with the key.
    api_version, default_headers
        As for `backends.openai.OpenAIBackend`.
    client : openai.OpenAI, optional
        The user's own client, for proxies, tokens that expire and the like.
    dimensions : int, optional
        Length of the vectors, for models that can shorten them.
    batch_size : int, default=64
        Texts of one request, at most.
    context_length : int, optional
        Tokens that are sent of a text; by default what the server tells, else 8192. Two bytes count
        as one token; a text that the server then finds too long is cut shorter and sent again.
    max_concurrency : int, default=8
        Requests at a time.
    requests_per_minute, tokens_per_minute : float, optional
        The account's limits. Tokens are estimated from the bytes of the texts.
    max_attempts : int, default=6
        Tries of a request.
    timeout : float, default=60.0
        Seconds that one try may take, from connecting to the last byte of the response.
    revision : str, default=""
        A name that keeps apart vectors of models which a server gives the same name.
    extra_body : mapping, optional
        More fields of each request; part of the identity, with a digest in the place of each value
        that looks like a credential.

    Raises
    ------
    MissingDependencyError
        If the `openai` package is not installed.
    BackendError
        If there is no key. On first use: if the endpoint makes no embeddings.
    """

    _load = "load_embeddings"
    environment = ("OPENAI_API_KEY", "OPENAI_BASE_URL")

    def __init__(
        self,
        model: str | None = None,
        *,
        base_url: str | None = None,
        api_key_env: str = API_KEY_ENV,
        api_version: str | None = None,
        default_headers: Mapping[str, str] | None = None,
        client: Any = None,
        dimensions: int | None = None,
        batch_size: int = 64,
        context_length: int | None = None,
        max_concurrency: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_attempts: int = 6,
        timeout: float = 60.0,
        revision: str = "",
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        for name, number in (
            ("max_concurrency", max_concurrency),
            ("max_attempts", max_attempts),
            ("batch_size", batch_size),
            ("dimensions", 1 if dimensions is None else dimensions),
        ):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {number!r}")
        options = {
            "model": model,
            "base_url": base_url,
            "api_key_env": api_key_env,
            "api_version": api_version,
            "default_headers": dict(default_headers or {}),
            "dimensions": dimensions,
            "batch_size": batch_size,
            "context_length": context_length,
            "max_concurrency": max_concurrency,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "max_attempts": max_attempts,
            "timeout": timeout,
            "revision": revision,
            "extra_body": dict(extra_body or {}),
        }
        super().__init__(options, client)
        self._probed: _Probed | None = None

    @property
    def identity(self) -> BackendIdentity:  # type: ignore[override]
        """Who answers; the first use sends one text."""
        return self.probe().identity

    @property
    def limits(self) -> Limits:  # type: ignore[override]
        """The limits of what is served; the first use sends one text."""
        found = self.probe()
        return Limits(
            max_top_k=0,
            max_score_ids=0,
            context_length=self._context_length(found.listed),
            deterministic=False,
            bytes_per_token=_BYTES_A_TOKEN,
            max_attempts=self._options["max_attempts"],
            charges_tries=True,
            api_host=self._server.public_host,
            embedding_size=found.calls.size,
        )

    def iter_embed(self, texts: Sequence[str]) -> EmbeddingParts:
        """Yield vectors in parts, as they are answered; see `BaseBackend`."""
        found = self.probe()
        most = int(self._context_length(found.listed) * _BYTES_A_TOKEN)
        cut = [_truncated(text, most) for text in texts]
        empty = [row for row, text in enumerate(cut) if not text.strip()]
        if empty:
            nothing = np.full((len(empty), found.calls.size), np.nan, np.float32)
            yield empty, Embeddings(nothing, dict.fromkeys(range(len(empty)), "empty text"))
        rows = sorted(set(range(len(cut))) - set(empty), key=lambda row: len(cut[row]))
        jobs = list(_batches(rows, cut, self._options["batch_size"]))

        def ask(batch: list[int], stop: threading.Event) -> Iterator[VectorPart]:
            return found.calls.vectors([cut[row] for row in batch], stop)

        started = time.perf_counter()
        with self._stoppable() as stop:
            for part in answers_as_they_come(jobs, ask, self._options["max_concurrency"], stop):
                where = [jobs[job][place] for job, (places, _, _) in part for place in places]
                made = [vector for _, (_, vectors, _) in part for vector in vectors]
                usage = sum((used for _, (_, _, used) in part), Usage())
                now = time.perf_counter()
                usage.seconds_lm, started = now - started, now
                yield where, _embeddings(made, found.calls.size, usage)

    def known_embedding(self) -> tuple[str, Embeddings]:
        """Return the text of the first request, and its vector."""
        calls = self.probe().calls
        return calls.known[0], _embeddings([calls.known[1]], calls.size, Usage())

    def _n_requests(self, prompts: Sequence[RenderedPrompt]) -> int:
        texts = [prompt.text or "" for prompt in prompts]
        rows = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        return len(list(_batches(rows, texts, self._options["batch_size"])))

    def describe(self) -> dict[str, Any]:
        """Return what the first request found, as JSON data for people and programs."""
        found = self.probe()
        return {
            "provider": found.identity.provider,
            "model": found.identity.model,
            "embedding_size": found.calls.size,
            "context_length": self._context_length(found.listed),
        }

    def _context_length(self, listed: ListedModel) -> int:
        return int(self._options["context_length"] or listed.context_length or _ASSUMED_CONTEXT)

    def probe(self) -> _Probed:
        """Return what the first request found out.

        Raises
        ------
        BackendError
            If the endpoint makes no embeddings, doesn't know the model, or can't be reached.
        """
        with self._lock:
            if self._probed is None:
                listed = self._server.look_up()
                fields = dict(self._options["extra_body"])
                if self._options["dimensions"] is not None:
                    fields["dimensions"] = self._options["dimensions"]
                calls = EmbeddingCalls(self._server, listed, fields)
                identity = self._server.identify_by_fields(
                    "embeddings", listed, fields, self._options["revision"]
                )
                self._probed = _Probed(listed, calls, identity)
            return self._probed


def _batches(rows: Sequence[int], texts: Sequence[str], most: int) -> Iterator[list[int]]:
    """Yield the rows of each request: at most so many texts, and so many bytes of them."""
    batch: list[int] = []
    size = 0
    for row in rows:
        n_bytes = len(texts[row].encode("utf-8", "replace"))
        if batch and (len(batch) == most or size + n_bytes > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += n_bytes
    if batch:
        yield batch


def _truncated(text: str, most: int) -> str:
    """Return the beginning of a text, of at most so many bytes of UTF-8."""
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= most else encoded[:most].decode("utf-8", "ignore")


def _embeddings(made: list[Vector | str], size: int, usage: Usage) -> Embeddings:
    values = np.full((len(made), size), np.nan)
    errors = {}
    for place, vector in enumerate(made):
        if isinstance(vector, str):
            errors[place] = vector
        else:
            values[place] = vector
    return Embeddings.of(values, errors, usage)
