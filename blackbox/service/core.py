"""The models of a service and what waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from blackbox.errors import BackendError, BudgetError
from blackbox.service.batching import Batcher
from blackbox.service.limiting import PassesPerMinute
from blackbox.service.metrics import Metrics
from blackbox.service.models import Answer, Question, ServedModel
from blackbox.service.problems import Problem
from blackbox.service.settings import Settings

__all__ = ["RETRY_AFTER", "Service", "in_trouble"]

RETRY_AFTER = 5.0  # seconds after which a client may ask again

_log = logging.getLogger(__name__)

_CHECK_EVERY = 1.0  # seconds between looks at an LM that is in trouble, or takes long
_EMPTY = Answer(None, reason="empty text")


def in_trouble(why: str) -> Problem:
    """What a client is told while an LM fails."""
    return Problem(503, f"the language model fails: {why}", RETRY_AFTER)


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

    async def answer(self, model: ServedModel, questions: list[Question]) -> list[Answer]:
        """What a model says of some texts.

        Raises
        ------
        Problem
            If they can't be answered.
        """
        if model.trouble is not None:
            raise in_trouble(model.trouble)
        self._refuse_unfit(model, questions)
        asked = [question for question in questions if _is_text(question)]
        found: list[Answer] = []
        if asked:
            reserved = len(asked) * model.n_prompts
            self._passes.reserve(reserved)
            try:
                async with asyncio.timeout(self.settings.timeout):
                    found = await self._batchers[model.name].submit(asked)
            except TimeoutError:
                seconds = self.settings.timeout
                raise Problem(
                    504, f"no answer in {seconds:g} s; send fewer texts at a time", RETRY_AFTER
                ) from None
            except BudgetError:
                raise Problem(429, "the budget that this service was given is spent") from None
            except BackendError as error:
                raise in_trouble(str(error)) from error
        answers = iter(found)
        return [next(answers) if _is_text(question) else _EMPTY for question in questions]

    async def watch(self) -> None:
        """Look after LMs that are in trouble or take long, for as long as the service runs."""
        while True:
            await asyncio.sleep(_CHECK_EVERY)
            for model in self.models.values():
                batcher = self._batchers[model.name]
                if model.trouble is not None or batcher.seconds_at_work > _CHECK_EVERY:
                    well = await asyncio.to_thread(model.check)
                    if not well and model.trouble is not None:
                        batcher.fail(in_trouble(model.trouble))

    def reload(self) -> None:
        """Read the files of all models again; one that can't be read stays as it is."""
        for model in self.models.values():
            try:
                model.reload()
                _log.warning("model %s: read again, now %s", model.name, model.digest)
            except Exception as error:
                _log.warning("model %s: stays as it is: %s", model.name, error)

    def close(self) -> None:
        """Wait for what is worked on."""
        for batcher in self._batchers.values():
            batcher.close()

    def measured(self) -> bytes:
        """The page of metrics."""
        for name, model in self.models.items():
            waiting = self._batchers[name].n_waiting
            self.metrics.state(name, waiting=waiting, ready=model.trouble is None)
        return self.metrics.page()

    def _batcher(self, model: ServedModel) -> Batcher[Question, Answer]:
        def work(questions: list[Question]) -> list[Answer]:
            try:
                answers, usage = model.answer(questions)
            except Exception as error:
                self.metrics.failed(model.name, error)
                raise
            self._passes.give_back(len(questions) * model.n_prompts - usage.passes_made)
            refused = sum(answer.label is None for answer in answers)
            self.metrics.batch(model.name, len(questions), usage, refused)
            return answers

        return Batcher(
            work,
            size=self.settings.batch_texts,
            window=self.settings.window,
            capacity=self.settings.queue_texts,
            at_once=self.settings.batches_at_once,
        )

    def _refuse_unfit(self, model: ServedModel, questions: list[Question]) -> None:
        settings = self.settings
        if len(questions) > settings.max_texts:
            raise Problem(422, f"a request has at most {settings.max_texts} texts")
        for place, question in enumerate(questions):
            longest = max(len(question.text), len(question.text_pair or ""))
            if longest > settings.max_characters:
                raise Problem(
                    422, f"text {place}: a text has at most {settings.max_characters} characters"
                )
            if (question.text_pair is None) == model.takes_pair:
                need = "pairs: give text_pair" if model.takes_pair else "single texts: no text_pair"
                raise Problem(422, f"text {place}: the model takes {need}")


def _is_text(question: Question) -> bool:
    return bool(
        question.text.strip() and (question.text_pair is None or question.text_pair.strip())
    )
