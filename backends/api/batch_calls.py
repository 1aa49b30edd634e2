"""Distributions from the batch endpoint: charged, read, and submitted again where they failed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from backends.api.batch import BatchAnswer, Batches, Request, Requests
from backends.api.billing import Charge
from backends.api.calls import as_part, check_finish
from backends.api.circuit import Circuit
from backends.api.connection import Connection
from backends.api.context import ContextWindow
from backends.api.error_bodies import error_of
from backends.api.errors import RefusedError, RejectedError, TooLongError, failure_of
from backends.api.request_format import RequestFormat
from backends.api.responses import BadAnswerError, NameOf, ParsedAnswer, read_answer
from backends.api.responses_api import as_chat_completion
from blackbox.errors import BackendError, BudgetError
from blackbox.plurals import counted
from blackbox.protocol import (
    AnswerParts,
    BackendIdentity,
    RenderedPrompt,
    TokenLogProbs,
    Usage,
    request_digest,
)
from blackbox.spending import current_account, current_gate

__all__ = ["PRICE_SHARE", "BatchCalls"]

PRICE_SHARE = 0.5
"""The cost of a batch, as a share of the list price."""

_log = logging.getLogger(__name__)

_Read = ParsedAnswer | Exception
"""A distribution, or the error that an answer means."""


class BatchCalls:
    """Distributions by batch, from one endpoint whose form is known.

    Parameters
    ----------
    server : Connection
        The server.
    batches : Batches
        Submits them and waits for them.
    wire : RequestFormat
        How requests are written.
    identity : BackendIdentity
        Who answers; part of what a request is recognised by.
    name_of : callable or None
        Names a token of which only the id is told.
    context : ContextWindow
        How long prompts may be.
    max_attempts : int
        Batches in which a request is sent, at most.
    """

    def __init__(
        self,
        server: Connection,
        batches: Batches,
        wire: RequestFormat,
        identity: BackendIdentity,
        name_of: NameOf | None,
        context: ContextWindow,
        max_attempts: int,
    ) -> None:
        self._server = server
        self._batches = batches
        self._wire = wire
        self._identity = identity
        self._name_of = name_of
        self._context = context
        self._max_attempts = max_attempts

    def iter_next_token(
        self, prompts: Sequence[RenderedPrompt], top_k: int, stop: threading.Event
    ) -> AnswerParts:
        """Yield answers by batches; what failed or expired is submitted again, a few times."""
        wire = self._wire
        rows: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            asked = {"call": "next_token", "top_k": top_k}
            rows.setdefault(request_digest(self._identity, prompt, asked), []).append(row)
        prompt_of = {digest: prompts[places[0]] for digest, places in rows.items()}
        checked = {digest: self._context.check(prompt) for digest, prompt in prompt_of.items()}
        too_long = {digest: why for digest, why in checked.items() if why is not None}
        if too_long:
            unsent = as_part([(why, Usage()) for why in too_long.values()], top_k, 0.0)
            yield _spread([rows[digest] for digest in too_long], unsent.with_usage(Usage()))
        waiting = {
            digest: Request(wire.path_of(prompt), partial(wire.next_token, prompt, top_k))
            for digest, prompt in prompt_of.items()
            if digest not in too_long
        }
        gate, circuit = current_gate(), Circuit(proven=True)
        tries, wasted = 0, Usage()
        while waiting and tries < self._max_attempts:
            started = time.perf_counter()
            charges = self._charge(waiting)
            some = {digest: waiting[digest] for digest in charges}
            tries += len(some) == len(waiting)  # else a budget had no room for the rest
            reads: list[_Read] = []
            for answers in self._batches.run(some, stop):
                read = {d: self._read(answer, charges.pop(d)) for d, answer in answers.items()}
                found = {d: self._outcome(prompt_of[d], one) for d, (one, _) in read.items()}
                done = {d: (one, read[d][1]) for d, one in found.items() if one is not None}
                reads += [one for one, _ in read.values()]
                wasted = sum((took for d, (_, took) in read.items() if d not in done), wasted)
                waiting = {d: request for d, request in waiting.items() if d not in done}
                if done:
                    part = as_part(list(done.values()), top_k, started)
                    part, wasted = part.with_usage(part.usage + wasted), Usage()
                    yield _spread([rows[digest] for digest in done], part)
            if stop.is_set() or (gate is not None and gate.closed):
                return
            for charge in charges.values():
                charge.cancel()  # expired before it was worked on
            _check(reads, circuit)
            if any(digest in waiting for digest in some):
                _log.warning(
                    "%s of a batch failed: submitted again", counted(len(waiting), "request")
                )
        if not waiting:
            return
        why = next((f": {found}" for found in reads if isinstance(found, Exception)), "")
        failed = f"{counted(len(waiting), 'request')} failed in "
        failed += f"{counted(self._max_attempts, 'batch')}{why}"
        raise BackendError(f"{self._server.who}: {failed}")

    def _charge(self, requests: Requests) -> dict[str, Charge]:
        """Charge the requests of a batch, as many as the account in force has room for."""
        account, rate = current_account(), self._server.rate(PRICE_SHARE)
        charges: dict[str, Charge] = {}
        for digest, request in requests.items():
            try:
                charges[digest] = self._server.billing.begin(rate, request.body(), account)
            except BudgetError:
                if not charges:
                    raise
                break
        return charges

    def _read(self, answer: BatchAnswer, charge: Charge) -> tuple[_Read, Usage]:
        """A distribution, or the error in its place; and what it took besides."""
        who, secrets, body = self._server.who, self._server.secrets, answer.body
        if answer.status != 200 or body.get("error"):
            status = answer.status if answer.status != 200 else error_of(body)[2]
            charge.fail(status or 500)
            return failure_of(status, body, {}, who, secrets), charge.as_usage
        body = as_chat_completion(body)
        charge.settle(body)
        try:
            found = read_answer(body, self._name_of, self._wire.alphabet)
        except BadAnswerError as error:
            try:
                check_finish(body)
            except RefusedError as refused:
                return refused, charge.as_usage
            return BadAnswerError(f"{who}: {error}"), charge.as_usage
        return found, charge.as_billed_apart

    def _outcome(self, prompt: RenderedPrompt, read: _Read) -> ParsedAnswer | str | None:
        """A distribution, why there is none, or None where another try may give one."""
        if isinstance(read, TooLongError):
            return self._context.refused(prompt, str(read), read.body)
        if isinstance(read, RefusedError | RejectedError):
            return str(read)
        return read if isinstance(read, ParsedAnswer) else None


def _check(reads: Sequence[_Read], circuit: Circuit) -> None:
    """Raise where nothing more would be answered, or where nothing was and it isn't the texts."""
    for read in reads:
        if isinstance(read, BackendError) and not isinstance(read, RejectedError):
            raise read
    if any(isinstance(read, ParsedAnswer) for read in reads):
        circuit.answered()
        return
    for read in reads:
        if isinstance(read, TooLongError):
            continue  # a shorter one may fit
        if isinstance(read, BadAnswerError):
            circuit.bad_answer(read)
        elif isinstance(read, RejectedError):
            circuit.rejected(read)
        elif isinstance(read, RefusedError):
            circuit.refused(read)


def _spread(places: list[list[int]], part: TokenLogProbs) -> tuple[list[int], TokenLogProbs]:
    """A part in which each answer stands once for every row that asked for it."""
    source = [place for place, wanted in enumerate(places) for _ in wanted]
    errors = {new: part.row_errors[old] for new, old in enumerate(source) if old in part.row_errors}
    spread = replace(
        part, token_ids=part.token_ids[source], log_probs=part.log_probs[source], row_errors=errors
    )
    return [row for wanted in places for row in wanted], spread
