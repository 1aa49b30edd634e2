"""Requests for embeddings to one endpoint: checked, ordered by index, sent in halves if refused."""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.api.circuit import Circuit
from backends.api.connection import Connection
from backends.api.errors import RefusedError, RejectedError, TooLongError
from backends.api.listing import ListedModel
from backends.api.responses import BadAnswerError
from backends.api.retries import RetryLaterError
from blackbox.errors import BackendError
from blackbox.plurals import counted
from blackbox.protocol import RenderedPrompt, Usage

__all__ = ["EmbeddingCalls", "Vector", "VectorPart", "read_vectors"]

Vector = NDArray[np.float32]
VectorPart = tuple[list[int], list[Vector | str], Usage]
"""Places of texts, the vector of each or why there is none, and what the tries took."""

_PATH = "/embeddings"
_KNOWN = "a"  # the text of the first request
_NO_VECTOR = "the vector is zero or not finite"
_SHORTER = 0.7  # of the bytes of a text that the server finds too long are sent again
_SHORTEST = 128  # bytes; every context holds that many


class EmbeddingCalls:
    """Requests for embeddings to one endpoint; the first one finds out their form and length.

    Parameters
    ----------
    server : Connection
        Sends them.
    listed : ListedModel
        The model.
    fields : mapping
        More fields of each request.

    Attributes
    ----------
    size : int
        Length of the vectors.
    known : (str, Vector)
        The text of the first request, and its vector.

    Raises
    ------
    BackendError
        If the endpoint makes no embeddings.
    """

    def __init__(self, server: Connection, listed: ListedModel, fields: Mapping[str, Any]) -> None:
        self._server = server
        self._fields: dict[str, Any] = {"model": listed.model, **fields}
        self._circuit = Circuit(proven=True, ask_again=self._ask_again)
        self.known = _KNOWN, self._find_form(listed)
        self.size = len(self.known[1])

    def vectors(self, texts: Sequence[str], stop: threading.Event) -> Iterator[VectorPart]:
        """Yield the vectors of texts, or why there is none, of each request that is answered."""
        yield from self._ask(list(range(len(texts))), list(texts), stop, Usage())

    def _ask(
        self, places: list[int], texts: list[str], stop: threading.Event, usage: Usage
    ) -> Iterator[VectorPart]:
        """Yield the vectors of texts that are in these places; `usage` is of tries before."""
        made, shorter = self._send(texts, stop, usage)
        if made is not None:
            yield places, made, usage
        elif shorter:  # its tokens had been estimated from its bytes
            yield from self._ask(places, [shorter], stop, usage)
        else:  # one text may spoil a request for all, or there are more than the server takes
            half = len(texts) // 2
            yield from self._ask(places[:half], texts[:half], stop, usage)
            yield from self._ask(places[half:], texts[half:], stop, Usage())

    def _send(
        self, texts: list[str], stop: threading.Event, usage: Usage
    ) -> tuple[list[Vector | str] | None, str]:
        """Return what one request says of each text; if nothing, how a text alone is cut."""

        def read(answer: dict[str, Any]) -> list[Vector | str]:
            try:
                made = read_vectors(answer, len(texts), self.size)
                if all(isinstance(vector, str) for vector in made):
                    raise BadAnswerError(_NO_VECTOR)
            except BadAnswerError as error:
                self._circuit.bad_answer(f"{self._server.who}: {error}")
                raise
            self._circuit.answered()
            _count(usage, answer, len(texts))
            return made

        body = {**self._fields, "input": texts}
        prompt = RenderedPrompt("\n".join(texts))

        def ask() -> tuple[list[Vector | str] | None, str]:
            try:
                return self._server.send(_PATH, lambda: dict(body), prompt, stop, usage, read), ""
            except (RefusedError, RejectedError, RetryLaterError) as error:
                alone = len(texts) == 1
                shorter = _beginning(texts[0]) if alone and isinstance(error, TooLongError) else ""
                if alone and not shorter:
                    return [self._reason(error)], ""
                if isinstance(error, RetryLaterError) and getattr(error, "kind", None):
                    raise BackendError(error.after_tries()) from error
                return None, shorter

        def row_failed(why: str) -> tuple[list[Vector | str] | None, str]:
            return [why] if len(texts) == 1 else None, ""

        return self._circuit.pass_through(stop, usage, ask, row_failed)

    def _ask_again(self, stop: threading.Event, usage: Usage) -> None:
        """Send the text of the first request, which was answered; raise where it isn't now."""
        body = {**self._fields, "input": [_KNOWN]}

        def read(answer: dict[str, Any]) -> None:
            read_vectors(answer, 1, self.size)
            _count(usage, answer, 1)

        self._server.send(_PATH, lambda: body, RenderedPrompt(_KNOWN), stop, usage, read, 1)

    def _reason(self, error: RefusedError | RejectedError | RetryLaterError) -> str:
        """Return why a text has no vector; raise where that is not for the text alone."""
        if isinstance(error, RefusedError):
            self._circuit.refused(error)
        elif isinstance(error, RejectedError):
            self._circuit.rejected(error)
        else:
            said = error.after_tries()
            if getattr(error, "kind", None) in ("connection", "rate_limit"):
                raise BackendError(said) from error
            self._circuit.failed(said)
            return said
        return str(error)

    def _find_form(self, listed: ListedModel) -> Vector:
        """Return the first vector, and keep its form: base64 where served, exact and short."""
        forms: list[dict[str, Any]] = [{"encoding_format": "base64"}, {"encoding_format": "float"}]
        failure: RejectedError | None = None
        for form in [*forms, {}]:
            body = {**self._fields, **form, "input": [_KNOWN]}
            try:
                answer = self._server.send_form(_PATH, body, listed=listed.answered)
                (vector,) = read_vectors(answer, 1)
            except RejectedError as error:
                failure = failure or error
                continue
            except BadAnswerError as error:
                raise BackendError(f"{self._server.who}: {error}") from error
            if isinstance(vector, str):
                raise BackendError(f"{self._server.who}: {vector}")
            self._fields |= form
            return vector
        raise BackendError(f"{failure}; does this model make embeddings?") from failure


def _beginning(text: str) -> str:
    """Return the beginning of a text that was too long; nothing if it is short."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= _SHORTEST:
        return ""
    return encoded[: int(_SHORTER * len(encoded))].decode("utf-8", "ignore")


def read_vectors(answer: Any, n: int, size: int | None = None) -> list[Vector | str]:
    """Return the n vectors of an answer in the order of their index; words for one that is none.

    Parameters
    ----------
    answer : dict
        JSON; each vector is a list of numbers, or base64 of little-endian float32.
    n : int
        Texts that were sent.
    size : int, optional
        Length of each vector; by default that of the first.

    Raises
    ------
    BadAnswerError
        If there are other than n vectors, an index is missing or there twice, or the lengths are
        wrong.
    """
    entries = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(entries, list) or len(entries) != n:
        count = len(entries) if isinstance(entries, list) else "no"
        raise BadAnswerError(f"{count} embeddings of {counted(n, 'text')}")
    made: dict[int, Vector | str] = {}
    for place, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise BadAnswerError("an embedding can't be read")
        index = entry.get("index", place)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < n:
            raise BadAnswerError(f"an embedding has the index {str(index)[:20]!r}")
        values = _numbers(entry.get("embedding"))
        size = size or len(values)
        if len(values) != size:
            raise BadAnswerError(f"an embedding has {len(values)} numbers and not {size}")
        with np.errstate(over="ignore"):
            norm = float(np.linalg.norm(values))
        made[index] = values if np.isfinite(norm) and norm > 0 else _NO_VECTOR
    if len(made) != n:
        raise BadAnswerError("an index of embeddings is there twice")
    return [made[index] for index in range(n)]


def _numbers(given: Any) -> Vector:
    try:
        if isinstance(given, str):
            values = np.frombuffer(base64.b64decode(given, validate=True), "<f4")
        else:
            values = np.array(given, np.float64)
            values = np.where(np.abs(values) < np.finfo(np.float32).max, values, np.nan)
    except (binascii.Error, ValueError, TypeError, OverflowError) as error:
        raise BadAnswerError("an embedding can't be read") from error
    if values.ndim != 1 or not len(values):
        raise BadAnswerError("an embedding can't be read")
    return values.astype(np.float32)


def _count(usage: Usage, answer: Mapping[str, Any], n: int) -> None:
    """Add what an answer took; its tokens were checked when it was charged."""
    tokens = int(answer["usage"]["prompt_tokens"])
    usage.passes_made += n
    usage.tokens += tokens
    usage.tokens_evaluated += tokens
