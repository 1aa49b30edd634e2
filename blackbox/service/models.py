"""A trained model that answers requests, and whether its language model does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from blackbox.answers.texts import CheckedTexts
from blackbox.backend import BaseBackend
from blackbox.boosting.label_words import words_of
from blackbox.errors import BackendError, BlackboxError, ModelFileError
from blackbox.explain import explain_evidence
from blackbox.images import Image
from blackbox.lm.budgets import Budget, Meter
from blackbox.lm.client import with_store_and_budget
from blackbox.lm.meter import Load
from blackbox.lm.prices import price_of, rate_of
from blackbox.model.model import Evidence, Model
from blackbox.prompts.inputs import Second, sample_second
from blackbox.protocol import Usage
from blackbox.service.failures import Failure, failure_of

__all__ = ["LoadedModel", "Query", "Reply", "ServedModel", "close"]

_log = logging.getLogger(__name__)

_WARM_UP = ("A text.", "Another text.")
_HALF_OPEN = 5.0  # seconds after which an LM that can't be asked how it is gets another try


@dataclass(frozen=True)
class Query:
    """A text, a pair, or an image, and whether the answer should be explained."""

    text: str
    text_pair: str | None = None
    explain: bool = False
    image: Image | None = None

    @property
    def second(self) -> Second:
        """The part that stands beside the text."""
        return self.text_pair if self.image is None else self.image


@dataclass(frozen=True)
class Reply:
    """A model's prediction for one text.

    Parameters
    ----------
    label : str, int, float, bool, list of these, or None
        The class, or the labels of a model that gives several; None without an answer.
    probabilities : dict of str to float, or None
        By class; None without an answer, or where prompts were not all asked.
    reason : str or None
        Why there is no answer, or why the text is of none of the classes.
    truncated : bool
        Whether the text was cut to fit the LM's context.
    n_asked : int
        Prompts that it was put into.
    explanation : dict or None
        As from `blackbox.explain.explain`, where it was asked for.
    prediction_set : list of label, or None
        The classes among which the right one is, where a request asks for them.
    p_known : float or None
        The share of texts of known classes that look as unusual, of a model that notices others.
    is_none : bool
        Whether the text is of none of the classes; its label says so.
    """

    label: Any
    probabilities: dict[str, float] | None = None
    reason: str | None = None
    truncated: bool = False
    n_asked: int = 0
    explanation: dict[str, Any] | None = None
    prediction_set: list[Any] | None = None
    p_known: float | None = None
    is_none: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A model as its file was at one time; a request keeps the one that it was checked against.

    Parameters
    ----------
    model : Model
        The model.
    lm : BaseBackend
        Its LM.
    client : BaseBackend
        The LM behind its store and its budget.
    early_stop : {"exact", "risk"} or None
        Whether texts are asked until their class is settled.
    digest : str
        Of its file.
    embedding_model : BaseBackend, optional
        The embedding model, where the model reads one.
    embedder : BaseBackend, optional
        The embedding model behind its store and its budget.
    """

    model: Model
    lm: BaseBackend
    client: BaseBackend
    early_stop: str | None
    digest: str
    embedding_model: BaseBackend | None = None
    embedder: BaseBackend | None = None

    @property
    def takes_pair(self) -> bool:
        """Whether it labels pairs of texts."""
        return self.model.takes_pair

    @cached_property
    def class_words(self) -> dict[str, frozenset[str]]:
        """The words of the name of each class."""
        return {str(one): frozenset(words_of(str(one))) for one in self.model.classes.tolist()}

    @property
    def n_prompts(self) -> int:
        """Forward passes that a text takes at most."""
        return len(self.model.prompts) + (self.embedder is not None)

    @property
    def passes_made(self) -> int:
        """Forward passes that were made for it, those of work that failed included."""
        embedded = 0 if self.embedder is None else self.embedder.usage.passes_made
        return self.client.usage.passes_made + embedded


class ServedModel:
    """One trained model behind a name.

    Parameters
    ----------
    name : str
        Its name in the service.
    path : Path
        Its file.
    load : callable
        Reads the file; returns the model, its LM, and its embedding model or None.
    budget : Budget
        What it may spend for as long as the service runs.
    store : StoreFile, path, bool or None
        Where answers are kept; see `blackbox.lm.client.find_store`.
    early_stop : {"exact", "risk"}, optional
        Whether texts are asked until their class is settled.

    Attributes
    ----------
    loaded : LoadedModel
        The model that is served now.
    failure : Failure or None
        Why its LM fails.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        load: Callable[[Path], tuple[Model, BaseBackend, BaseBackend | None]],
        budget: Budget,
        *,
        store: Any = None,
        early_stop: str | None = None,
    ) -> None:
        self.name = name
        self.path = path
        self.failure: Failure | None = None
        self._since = 0.0
        self._load, self._store, self._early_stop = load, store, early_stop
        self._meter = Meter(budget, whole=True)
        self.has_budget = not budget.is_open
        self.loaded = self._read()

    def reload(self) -> None:
        """Read the file again; requests go on with the old model until the new one is there."""
        self.loaded = self._read()

    def answer(self, loaded: LoadedModel, queries: Sequence[Query]) -> tuple[list[Reply], Usage]:
        """Ask the LM and predict the class of each text.

        Raises
        ------
        BackendError
            If the LM fails; the model is in trouble then, until `check` finds it well.
        BudgetError
            If the budget is reached.
        """
        try:
            answers: list[Reply | None] = [None] * len(queries)
            usage = Usage()
            early = loaded.early_stop is not None
            for settled in (False, True):
                rows = [
                    row
                    for row, query in enumerate(queries)
                    if (early and not query.explain) == settled
                ]
                if rows:
                    some = [queries[row] for row in rows]
                    found, took = _replies(loaded, some, loaded.early_stop if settled else None)
                    usage += took
                    for row, one in zip(rows, found, strict=True):
                        answers[row] = one
        except BackendError as error:
            self.mark_failed(failure_of(error))
            raise
        return [answer for answer in answers if answer is not None], usage

    def may_afford(self, passes: int) -> bool:
        """Return whether the budget may still hold so many forward passes, of a token at least."""
        return not self._meter.is_late() and self._meter.holds(Load(passes, tokens=passes))

    def warm_up(self) -> None:
        """Label a text where that is free, so that the first request is as fast as others."""
        loaded = self.loaded
        embedder = loaded.embedding_model
        if (
            self.has_budget
            or not _is_free(loaded.lm)
            or not (embedder is None or _is_free(embedder))
        ):
            return
        kind = loaded.model.input_kind
        beside = _WARM_UP[1] if kind == "pair" else sample_second(kind)
        texts = CheckedTexts([(_WARM_UP[0], beside)], kind=kind)
        try:
            loaded.model.predict(loaded.lm, texts, embedder=embedder)
        except BackendError as error:
            self.mark_failed(failure_of(error))

    def mark_failed(self, why: Failure) -> None:
        """Record that the LM failed."""
        if self.failure is None:
            _log.warning(
                "model %s: its language model fails: %s; blackbox probe shows its own words",
                self.name,
                why,
            )
        self.failure, self._since = why, time.monotonic()

    def check(self) -> bool:
        """Check without cost whether the LM answers again, and clear the failure if so."""
        try:
            if not self.loaded.lm.check():
                return self._try_again()
        except BackendError as error:
            self.mark_failed(failure_of(error))
            return False
        except Exception as error:
            # a defect of the backend's check says nothing of the LM
            _log.error("model %s: defect: %s in a check", self.name, type(error).__name__)
            return self._try_again()
        if self.failure is not None:
            _log.warning("model %s: its language model answers again", self.name)
        self.failure = None
        return True

    def _try_again(self) -> bool:
        """Let the next request find out whether an LM that can't be checked answers again."""
        if self.failure is not None and time.monotonic() - self._since > _HALF_OPEN:
            self.failure = None
        return self.failure is None

    def _read(self) -> LoadedModel:
        before = self._state()
        with self._meter.charging():  # what connecting takes is in the budget
            model, lm, embedder = self._load(self.path)
        digest = sha256(self.path.read_bytes()).hexdigest()[:16]
        if self._state() != before:
            raise ModelFileError(f"{self.path}: changed while it was read; read it again")
        client = with_store_and_budget(lm, self._store, Budget(), self._meter)
        behind = embedder
        if embedder is not None:
            behind = with_store_and_budget(embedder, self._store, Budget(), self._meter)
        return LoadedModel(model, lm, client, self._early_stop, digest, embedder, behind)

    def _state(self) -> tuple[int, ...]:
        """Return what distinguishes the file from one that replaces it."""
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns


def _is_free(backend: BaseBackend) -> bool:
    price = price_of(rate_of(backend.identity, backend.limits))
    return price is not None and not price.input and not price.output


def _replies(
    loaded: LoadedModel, queries: list[Query], early_stop: str | None
) -> tuple[list[Reply], Usage]:
    """Return replies to queries, after all prompts or as many as it takes."""
    model = loaded.model
    texts = CheckedTexts([(query.text, query.second) for query in queries], kind=model.input_kind)
    evidence: Evidence | None = None
    if any(query.explain for query in queries):
        predictions, evidence = model.read(loaded.client, texts, embedder=loaded.embedder)
    else:
        predictions = model.predict(loaded.client, texts, early_stop, embedder=loaded.embedder)
    names = [str(label) for label in model.classes.tolist()]
    replies = []
    for row, query in enumerate(queries):
        label = predictions.label_of(row)
        if label is None:
            replies.append(Reply(None, reason=predictions.row_errors[row]))
            continue
        probabilities = explanation = None
        if predictions.probabilities is not None:
            shares = predictions.probabilities[row].tolist()
            probabilities = dict(zip(names, shares, strict=True))
        if query.explain and evidence is not None:
            explanation = explain_evidence(model, evidence.take_rows(slice(row, row + 1)))
        found = predictions.out_of_scope
        replies.append(
            Reply(
                label,
                probabilities,
                predictions.reason(row),
                truncated=row in predictions.truncated_rows,
                n_asked=int(predictions.prompts_asked[row]),
                explanation=explanation,
                p_known=None if found is None else float(found.p_known[row]),
                is_none=found is not None and bool(found.rejected[row]),
            )
        )
    return replies, predictions.usage


def close(models: Sequence[ServedModel]) -> None:
    """Release the engines; models may share one."""
    engines = {id(model.loaded.lm): model.loaded.lm for model in models}
    for lm in engines.values():
        try:
            lm.close()
        except BlackboxError as error:
            _log.warning("an engine doesn't close: %s", type(error).__name__)
