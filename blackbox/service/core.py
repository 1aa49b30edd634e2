"""The models of a service and what waits for them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from blackbox.errors import BackendError, BudgetError
from blackbox.service.batching import Batcher
from blackbox.service.failures import Failure, failure_of
from blackbox.service.metrics import Metrics
from blackbox.service.models import LoadedModel, Query, Reply, ServedModel, close
from blackbox.service.problems import Problem
from blackbox.service.rate_limit import PassesPerMinute
from blackbox.service.settings import Settings

__all__ = ["RETRY_AFTER", "Service", "any_failed"]

RETRY_AFTER = 5.0  # seconds after which a client may ask again

_log = logging.getLogger(__name__)

_CHECK_EVERY = 1.0  # seconds between looks at an LM that is in trouble, or takes long
_LOOK_EVERY = 5  # of those looks, one is at every LM
_LONGEST_CHECK = 10.0  # seconds
_EMPTY = Reply(None, reason="empty text")


def any_failed(why: Failure) -> Problem:
    """What a client is told while an LM fails."""
    return Problem(503, f"the language model fails: {why}", RETRY_AFTER)


@dataclass(frozen=True)
class _Asked:
    """Texts of one request, and the model that it was checked against."""

    loaded: LoadedModel
    queries: list[Query]

    @property
    def most_passes(self) -> int:
        return len(self.queries) * self.loaded.n_prompts


class Service:
    """The models of a service, and what waits for them.

    Parameters
    ----------
    models : sequence of ServedModel
        The first is the default.
    settings : Settings
        How the service behaves.
    """

    def __init__(self, models: Sequence[ServedModel], settings: Settings) -> None:
        self.models = {model.name: model for model in models}
        self.default = models[0]
        self.settings = settings
        self.metrics = Metrics()
        self._passes = PassesPerMinute(settings.passes_per_minute)
        self._batchers = {model.name: self._batcher(model) for model in models}
        self._reloading = threading.Lock()

    def model(self, name: str | None) -> ServedModel:
        """A model by its name.

        Raises
        ------
        Problem
            If there is none of that name.
        """
        if name is None:
            return self.default
        if name not in self.models:
            raise Problem(404, "no model of that name; GET /v1/models names them")
        return self.models[name]

    def check_number(self, n: int, *, explain: bool = False) -> None:
        """Refuse a request of too many texts, before anything is made of them.

        Raises
        ------
        Problem
            If they are too many.
        """
        if n > self.settings.max_texts:
            raise Problem(422, f"a request has at most {self.settings.max_texts} texts")
        if explain and n > self.settings.max_explained:
            most = self.settings.max_explained
            raise Problem(422, f"a request with explain has at most {most} texts")

    async def answer(
        self, model: ServedModel, loaded: LoadedModel, queries: list[Query]
    ) -> list[Reply]:
        """What a model says of some texts.

        Raises
        ------
        Problem
            If they can't be answered.
        """
        if model.failure is not None:
            raise any_failed(model.failure)
        self._refuse_unfit(loaded, queries)
        asked = [query for query in queries if _is_text(query)]
        if len(asked) < len(queries):
            self.metrics.refused(model.name, len(queries) - len(asked))
        found = await self._ask(model, _Asked(loaded, asked)) if asked else []
        answers = iter(found)
        return [next(answers) if _is_text(query) else _EMPTY for query in queries]

    async def watch(self) -> None:
        """Look after LMs for as long as the service runs, those in trouble more often."""
        for number in itertools.count(1):
            await asyncio.sleep(_CHECK_EVERY)
            await asyncio.gather(
                *(
                    self._look(model)
                    for model in self.models.values()
                    if number % _LOOK_EVERY == 0
                    or model.failure is not None
                    or self._batchers[model.name].seconds_at_work > _CHECK_EVERY
                )
            )

    async def look(self) -> None:
        """See how all LMs are, before the first request."""
        await asyncio.gather(*map(self._look, self.models.values()))

    def reload(self) -> None:
        """Read the files of all models again; one that can't be read stays as it is."""
        with self._reloading:
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
        """Wait for what is worked on, as long as a request may take, and let go of the engines."""
        deadline = time.monotonic() + self.settings.timeout
        ended = {batcher.close(deadline - time.monotonic()) for batcher in self._batchers.values()}
        if ended == {True}:
            close(list(self.models.values()))
        else:
            _log.warning("a language model was still at work and is left alone")

    def measured(self) -> bytes:
        """The page of metrics."""
        for name, model in self.models.items():
            waiting = self._batchers[name].n_waiting
            self.metrics.state(name, waiting=waiting, ready=model.failure is None)
        return self.metrics.page()

    async def _ask(self, model: ServedModel, asked: _Asked) -> list[Reply]:
        self._passes.reserve(asked.most_passes)
        try:
            async with asyncio.timeout(self.settings.timeout):
                return await self._batchers[model.name].submit(asked, len(asked.queries))
        except TimeoutError:
            seconds = self.settings.timeout
            raise Problem(
                504, f"no answer in {seconds:g} s; send fewer texts at a time", RETRY_AFTER
            ) from None
        except BudgetError:
            raise Problem(429, "the budget that this service was given is spent") from None
        except BackendError as error:
            raise any_failed(failure_of(error)) from None

    async def _look(self, model: ServedModel) -> None:
        batcher = self._batchers[model.name]
        try:
            async with asyncio.timeout(_LONGEST_CHECK):
                await asyncio.to_thread(model.check)
        except TimeoutError:
            model.mark_failed(Failure("timeout"))
        except Exception as error:
            # whatever it is, the next look comes
            _log.error("model %s: defect: %s in a look", model.name, type(error).__name__)
        if model.failure is not None:
            batcher.fail(any_failed(model.failure))

    def _batcher(self, model: ServedModel) -> Batcher[_Asked, list[Reply]]:
        return Batcher(
            lambda requests: self._work(model, requests),
            size=self.settings.batch_texts,
            window=self.settings.window,
            capacity=self.settings.queue_texts,
            at_once=self.settings.batches_at_once,
            dropped=lambda asked: self._passes.settle(asked.most_passes, 0),
        )

    def _work(self, model: ServedModel, requests: list[_Asked]) -> list[list[Reply] | Exception]:
        """Ask the LM for several requests together."""
        found: list[list[Reply] | Exception] = [[] for _ in requests]
        failed: BackendError | None = None
        for places in _together(requests, one_by_one=model.has_budget):
            some = [requests[place] for place in places]
            results: list[list[Reply]] | Exception
            if failed is not None:  # the LM is left alone
                self._passes.settle(sum(asked.most_passes for asked in some), 0)
                results = failed
            else:
                try:
                    results = self._answered(model, some)
                except Exception as error:
                    failed = error if isinstance(error, BackendError) else None
                    results = error
            for number, place in enumerate(places):
                found[place] = results if isinstance(results, Exception) else results[number]
        return found

    def _answered(self, model: ServedModel, some: list[_Asked]) -> list[list[Reply]]:
        loaded = some[0].loaded
        queries = [query for asked in some for query in asked.queries]
        before = loaded.passes_made
        made = 0
        try:
            answers, usage = model.answer(loaded, queries)
            made = usage.passes_made
        except Exception as error:
            made = loaded.passes_made - before
            self.metrics.failed(model.name, error)
            raise
        finally:
            self._passes.settle(sum(asked.most_passes for asked in some), made)
        refused = sum(answer.label is None for answer in answers)
        self.metrics.batch(model.name, len(queries), usage, refused)
        rest = iter(answers)
        return [list(itertools.islice(rest, len(asked.queries))) for asked in some]

    def _refuse_unfit(self, loaded: LoadedModel, queries: list[Query]) -> None:
        takes_pair, most = loaded.takes_pair, self.settings.max_characters
        for place, query in enumerate(queries):
            if max(len(query.text), len(query.text_pair or "")) > most:
                raise Problem(422, f"text {place}: a text has at most {most} characters")
            if (query.text_pair is None) == takes_pair:
                need = "pairs: give text_pair" if takes_pair else "single texts: no text_pair"
                raise Problem(422, f"text {place}: the model takes {need}")


def _together(requests: list[_Asked], *, one_by_one: bool) -> list[list[int]]:
    """Which requests the LM is asked for in one call.

    With a budget each is a call of its own: one that the budget doesn't hold fails alone.
    """
    if one_by_one:
        return [[place] for place in range(len(requests))]
    parts: dict[int, list[int]] = {}
    for place, asked in enumerate(requests):
        parts.setdefault(id(asked.loaded), []).append(place)
    return list(parts.values())


def _is_text(query: Query) -> bool:
    return bool(query.text.strip() and (query.text_pair is None or query.text_pair.strip()))
