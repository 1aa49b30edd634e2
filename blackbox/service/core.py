"""The service itself: from queries to batches, calls of the language models, and replies."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from blackbox.errors import BackendError, BudgetError
from blackbox.plurals import counted
from blackbox.prompts.inputs import input_kind
from blackbox.protocol import Usage
from blackbox.service.batching import Batcher
from blackbox.service.failures import Failure, failure_of
from blackbox.service.logs import RequestWork, request_work
from blackbox.service.metrics import Metrics
from blackbox.service.models import LoadedModel, Query, Reply, ServedModel, close
from blackbox.service.problems import RETRY_AFTER, Problem
from blackbox.service.rate_limit import PassesPerMinute
from blackbox.service.settings import ServiceSettings
from blackbox.service.threads import Checks, RequestThreads
from blackbox.telemetry import current_context, error_class, set_attributes, span

__all__ = ["NEEDS", "Service", "failure_problem"]

NEEDS = {
    "text": "single texts: no text_pair, and no image",
    "pair": "pairs: give text_pair",
    "image": "images: give image, and no text_pair",
}
"""What a model takes, by its kind of input, in a refusal."""

_log = logging.getLogger(__name__)

_CHECK_INTERVAL = 1.0  # seconds between health checks of an LM that fails, or takes long
_CHECK_ALL_EVERY = 5  # one in so many of those rounds checks every LM
_CHECK_TIMEOUT = 10.0  # seconds
_EMPTY_REPLY = Reply(None, reason="empty text")


def failure_problem(failure: Failure) -> Problem:
    """Return the response to every request while an LM fails."""
    return Problem(503, f"the language model fails: {failure}", RETRY_AFTER)


@dataclass(frozen=True)
class _Item:
    """A query, the model that it was checked against, and the trace context of its request."""

    loaded: LoadedModel
    query: Query
    context: Any


class Service:
    """Answers queries with several models, in batches and within limits.

    Parameters
    ----------
    models : sequence of ServedModel
        The first is the default.
    settings : ServiceSettings
        Timeouts, limits and batch sizes.
    """

    def __init__(self, models: Sequence[ServedModel], settings: ServiceSettings) -> None:
        self.models = {model.name: model for model in models}
        self.default = models[0]
        self.settings = settings
        self.metrics = Metrics()
        self._passes = PassesPerMinute(settings.passes_per_minute)
        self._batchers = {model.name: self._create_batcher(model) for model in models}
        self._reload_lock = threading.Lock()
        self._checks = Checks(self.models)
        self.threads = RequestThreads()

    def model(self, name: str | None) -> ServedModel:
        """Return a model by its name; the default without one.

        Raises
        ------
        Problem
            If there is no model of that name.
        """
        if name is None:
            return self.default
        if name not in self.models:
            raise Problem(404, "no model of that name; GET /v1/models names them")
        return self.models[name]

    def check_n_texts(self, n: int, *, explain: bool = False) -> None:
        """Refuse a request with too many texts.

        Raises
        ------
        Problem
            If there are more than the limit.
        """
        if n > self.settings.max_texts:
            raise Problem(422, f"a request has at most {counted(self.settings.max_texts, 'text')}")
        if explain and n > self.settings.max_explained:
            limit = self.settings.max_explained
            raise Problem(422, f"a request with explain has at most {counted(limit, 'text')}")

    async def answer(
        self, model: ServedModel, loaded: LoadedModel, queries: list[Query]
    ) -> list[Reply]:
        """Predict the class of each text; an empty text gets a reply without a label.

        Raises
        ------
        Problem
            If the queries can't be answered.
        """
        if model.failure is not None:
            raise failure_problem(model.failure)
        self._check_queries(loaded, queries)
        nonempty = [query for query in queries if not _is_empty(query)]
        if len(nonempty) < len(queries):
            self.metrics.count_unanswered(model.name, len(queries) - len(nonempty))
        context = current_context()
        items = [_Item(loaded, query, context) for query in nonempty]
        found = await self._submit(model, items) if items else []
        work = request_work.get() or RequestWork()
        work.rows += len(queries)
        work.passes += sum(reply.n_asked for reply in found)
        replies = iter(found)
        return [_EMPTY_REPLY if _is_empty(query) else next(replies) for query in queries]

    async def watch(self) -> None:
        """Check the LMs for as long as the service runs, those that fail more often."""
        for number in itertools.count(1):
            await asyncio.sleep(_CHECK_INTERVAL)
            await asyncio.gather(
                *(
                    self._check(model)
                    for model in self.models.values()
                    if number % _CHECK_ALL_EVERY == 0
                    or model.failure is not None
                    or self._batchers[model.name].seconds_at_work > _CHECK_INTERVAL
                )
            )

    async def check_all(self) -> None:
        """Check all LMs once, before the first request."""
        await asyncio.gather(*map(self._check, self.models.values()))

    def reload(self) -> None:
        """Read the files of all models again; a model whose file can't be read stays as it is."""
        with self._reload_lock:
            for model in self.models.values():
                try:
                    model.reload()
                    _log.warning("model %s: read again, now %s", model.name, model.loaded.digest)
                except BackendError as error:
                    _log.warning(
                        "model %s: stays as it is: its language model fails: %s",
                        model.name,
                        failure_of(error),
                    )
                except Exception as error:
                    _log.warning("model %s: stays as it is: %s", model.name, error)

    def close(self) -> None:
        """Wait for running batches, as long as a request may take, and close the engines."""
        self._checks.close()
        self.threads.close()
        deadline = time.monotonic() + self.settings.timeout
        ended = [batcher.close(deadline - time.monotonic()) for batcher in self._batchers.values()]
        if all(ended):
            close(list(self.models.values()))
        else:
            _log.warning("a language model was still at work and is left alone")

    def render_metrics(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        for name, model in self.models.items():
            waiting = self._batchers[name].n_waiting
            cached = model.loaded.client.caches_answers()
            ready = model.failure is None
            self.metrics.set_state(name, waiting=waiting, ready=ready, cached=cached)
        return self.metrics.render()

    async def _submit(self, model: ServedModel, items: list[_Item]) -> list[Reply]:
        self._passes.reserve(_max_passes(items))
        try:
            async with asyncio.timeout(self.settings.timeout):
                return await self._batchers[model.name].submit(items)
        except TimeoutError:
            seconds = self.settings.timeout
            raise Problem(
                504, f"no answer in {seconds:g} s; send fewer texts at a time", RETRY_AFTER
            ) from None
        except BudgetError:
            raise _budget_problem(model, items) from None
        except BackendError as error:
            raise failure_problem(failure_of(error)) from None

    async def _check(self, model: ServedModel) -> None:
        batcher = self._batchers[model.name]
        try:
            await self._checks.run(model.name, model.check, _CHECK_TIMEOUT)
        except TimeoutError:
            model.mark_failed(Failure("timeout"))
        except Exception as error:
            # the next check comes in any case
            _log.error("model %s: defect: %s in a check", model.name, type(error).__name__)
        if model.failure is not None:
            batcher.fail(failure_problem(model.failure))

    def _create_batcher(self, model: ServedModel) -> Batcher[_Item, Reply]:
        return Batcher(
            lambda pieces: self._answer_batch(model, pieces),
            size=self.settings.batch_texts,
            window=self.settings.window,
            capacity=self.settings.queue_texts,
            at_once=self.settings.batches_at_once,
            # a request that exceeds a budget is refused whole, before any of it is asked
            cuts=not model.has_budget,
            dropped=lambda items: self._passes.settle(_max_passes(items), 0),
        )

    def _answer_batch(
        self, model: ServedModel, pieces: Sequence[Sequence[_Item]]
    ) -> list[list[Reply] | Exception]:
        """Answer the pieces of requests in a batch in as few calls of the LM as possible."""
        results: list[list[Reply] | Exception] = [[] for _ in pieces]
        failed: BackendError | None = None
        for indices in _group_by_call(pieces, one_by_one=model.has_budget):
            group = [pieces[index] for index in indices]
            replies: list[list[Reply]] | Exception
            if failed is not None:  # an LM that has just failed isn't called again
                self._passes.settle(sum(map(_max_passes, group)), 0)
                replies = failed
            else:
                try:
                    replies = self._call(model, group)
                except Exception as error:
                    failed = error if isinstance(error, BackendError) else None
                    replies = error
            for number, index in enumerate(indices):
                results[index] = replies if isinstance(replies, Exception) else replies[number]
        return results

    def _call(self, model: ServedModel, group: list[Sequence[_Item]]) -> list[list[Reply]]:
        """Answer items of the same loaded model in one call of its LM."""
        loaded = group[0][0].loaded
        queries = [item.query for items in group for item in items]
        before = loaded.passes_made
        made = 0
        try:
            with _batch_span(model.name, group) as batch:
                replies, usage = model.answer(loaded, queries)
                set_attributes(batch, _passes_of(usage))
            made = usage.passes_made
        except Exception as error:
            # those of batches at the same time are counted there
            made = min(loaded.passes_made - before, sum(map(_max_passes, group)))
            self.metrics.count_failure(model.name, error, made)
            raise
        finally:
            self._passes.settle(sum(map(_max_passes, group)), made)
        n_unanswered = sum(reply.label is None for reply in replies)
        self.metrics.count_batch(model.name, len(queries), usage, n_unanswered)
        remaining = iter(replies)
        return [list(itertools.islice(remaining, len(items))) for items in group]

    def _check_queries(self, loaded: LoadedModel, queries: list[Query]) -> None:
        kind, limit = loaded.model.input_kind, self.settings.max_characters
        for row, query in enumerate(queries):
            if max(len(query.text), len(query.text_pair or "")) > limit:
                raise Problem(422, f"text {row}: a text has at most {limit} characters")
            if input_kind(query.second) != kind or (query.image and query.text_pair is not None):
                raise Problem(422, f"text {row}: the model takes {NEEDS[kind]}")


def _budget_problem(model: ServedModel, items: Sequence[_Item]) -> Problem:
    """Return the response to a request that the budget doesn't hold; fewer texts may still fit."""
    if len(items) > 1 and model.may_afford(items[0].loaded.n_prompts):
        return Problem(
            429,
            "this request may need more than is left of the budget that this service was given; "
            "send fewer texts",
        )
    return Problem(429, "the budget that this service was given is spent")


def _batch_span(name: str, group: Sequence[Sequence[_Item]]) -> AbstractContextManager[Any]:
    """Return a span of the work on a batch, in the traces of its requests."""
    known = {"promptboosting.model": name, "promptboosting.texts": sum(map(len, group))}
    contexts = [items[0].context for items in group]
    return span(f"batch {name}", attributes=known, contexts=contexts, error_type=_error_type)


def _passes_of(usage: Usage) -> dict[str, int]:
    return {
        "promptboosting.passes_made": usage.passes_made,
        "promptboosting.passes_from_store": usage.passes_from_store,
    }


def _error_type(error: BaseException) -> str:
    return failure_of(error).kind if isinstance(error, BackendError) else error_class(error)


def _max_passes(items: Sequence[_Item]) -> int:
    return sum(item.loaded.n_prompts for item in items)


def _group_by_call(pieces: Sequence[Sequence[_Item]], *, one_by_one: bool) -> list[list[int]]:
    """Return the indices of the pieces that go into each call of the LM.

    With a budget each request is a call of its own, so that one which exceeds it fails alone.
    """
    if one_by_one:
        return [[index] for index in range(len(pieces))]
    groups: dict[int, list[int]] = {}
    for index, items in enumerate(pieces):
        groups.setdefault(id(items[0].loaded), []).append(index)
    return list(groups.values())


def _is_empty(query: Query) -> bool:
    if query.image is not None:
        return False
    return not query.text.strip() or (query.text_pair is not None and not query.text_pair.strip())
