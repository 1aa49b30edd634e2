"""The engines of a classifier: connected on first use, checked, and behind store and budget.

This is the only place where an engine becomes that of a classifier.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, NamedTuple

from sklearn.utils.validation import check_is_fitted

from blackbox.backend import BaseBackend, as_backend
from blackbox.errors import BackendError
from blackbox.fitting.evidence import reads_embeddings
from blackbox.fitting.inputs import TrainingRows
from blackbox.fitting.options import FitOptions
from blackbox.generation import generator_of
from blackbox.lm.budgets import Budget, Meter
from blackbox.lm.client import with_store_and_budget
from blackbox.lm.connect import (
    check_identity,
    choose_embeddings,
    connect,
    connect_embeddings,
)
from blackbox.model.model import Model
from blackbox.prompts.inputs import input_kind
from blackbox.protocol import Usage

__all__ = ["ClientSupport", "Clients", "Engines"]


class Engines(NamedTuple):
    """The LM and the embedding model of a training, as they are without a store and a budget."""

    lm: BaseBackend
    embedder: BaseBackend | None


class Clients(NamedTuple):
    """The backends that a call asks, behind the store and one budget."""

    lm: BaseBackend
    writer: BaseBackend | None
    embedder: BaseBackend | None

    def usage(self, started: float) -> Usage:
        """Return their summed usage, with the time since `started`."""
        total = sum((one.usage for one in self if one is not None), Usage())
        return replace(total, seconds_total=time.perf_counter() - started)


class ClientSupport:
    """Mix-in of the classifier, whose parameters say which engines there are."""

    model_: Model

    # only in this process: neither parameters nor part of a pickle
    _lm: BaseBackend | None = None
    _embedder: BaseBackend | None = None

    _allow_other_lm: bool = False  # as `load_model` was told

    # parameters of the classifier
    backend: Any
    model: Any
    backend_options: Any
    embeddings: Any
    embeddings_model: Any
    embeddings_options: Any
    prompts: Any
    store: Any
    max_forward_passes: int | None
    max_tokens: int | None
    max_cost: float | None
    max_seconds: float | None
    _validate_params: Any

    def connect(self) -> BaseBackend:
        """Return the LM; of a trained classifier, after a check that it is the LM of the training.

        Raises
        ------
        BackendIdentityError
            If the LM is another one.
        """
        if self._lm is None:
            images = hasattr(self, "model_") and self.model_.input_kind == "image"
            lm = connect(self.backend, self.model, self.backend_options, images=images)
            if hasattr(self, "model_") and not self._allow_other_lm:
                check_identity(self.model_.identity, lm)
            self._lm = lm
        return self._lm

    def connect_embedder(self) -> BaseBackend | None:
        """Return the embedding model of a trained classifier; None where it needs none.

        Raises
        ------
        BackendError
            If there is none to use.
        BackendIdentityError
            If it is another one than that of the training.
        """
        check_is_fitted(self, "model_")
        trained = self.model_.embedder_identity
        if trained is None:
            return None
        if self._embedder is None:
            embedder = self._connect_embedder(self.connect())
            if embedder is None:
                raise BackendError(
                    f"this model reads embeddings of {trained.provider} {trained.model!r}: give "
                    "embeddings"
                )
            if not self._allow_other_lm:
                check_identity(trained, embedder, "embedding model")
            self._embedder = embedder
        return self._embedder

    def _connect_embedder(self, lm: BaseBackend) -> BaseBackend | None:
        """Return the embedding model that the parameters ask for, if any."""
        wanted = choose_embeddings(self.embeddings, lm)
        if wanted is None:
            return None
        return connect_embeddings(wanted, self.embeddings_model, self.embeddings_options)

    def _training_clients(
        self, rows: TrainingRows, options: FitOptions, *, embeds: bool = True
    ) -> tuple[Clients, Engines]:
        """Connect what a training asks, each behind the store; all share one budget.

        The engines are returned too: a model that there is keeps its own until another replaces it.
        """
        meter = self._meter()
        generator = generator_of(self.prompts)
        writer = None if generator is None else generator.writer
        with meter.charging():  # what connecting takes is in the budget
            images = input_kind(rows.texts[0][1]) == "image"
            lm = connect(self.backend, self.model, self.backend_options, images=images)
            embedder = None
            if embeds and reads_embeddings(rows, options):
                embedder = self._connect_embedder(lm)
        clients = Clients(
            self._kept(lm, meter),
            None if writer is None else self._kept(as_backend(writer), meter),
            None if embedder is None else self._kept(embedder, meter),
        )
        return clients, Engines(lm, embedder)

    def _set_engines(self, engines: Engines) -> None:
        """Set the engines of a model that was trained just now."""
        self._lm, self._embedder = engines
        self._allow_other_lm = False  # was for the model before

    def _clients(self) -> Clients:
        """Connect what a prediction asks, as `_training_clients`."""
        check_is_fitted(self, "model_")
        self._validate_params()
        meter = self._meter()
        with meter.charging():
            lm, embedder = self.connect(), self.connect_embedder()
        return Clients(
            self._kept(lm, meter), None, None if embedder is None else self._kept(embedder, meter)
        )

    def _meter(self) -> Meter:
        return Meter(
            Budget(self.max_forward_passes, self.max_tokens, self.max_cost, self.max_seconds)
        )

    def _kept(self, lm: BaseBackend, meter: Meter) -> BaseBackend:
        """Return an LM with the store, and with the budget of a meter."""
        return with_store_and_budget(lm, self.store, meter.budget, meter)

    def __getstate__(self) -> dict[str, Any]:
        # an engine is never pickled: it is loaded again on first use
        engines = ("_lm", "_embedder")
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        return {key: value for key, value in state.items() if key not in engines}
