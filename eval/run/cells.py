"""One cell: what decides its figures, and the work that makes them."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import backends
from backends.catalogue import CATALOGUE
from blackbox import PromptPool
from blackbox.answers.passes import render
from blackbox.answers.texts import check_texts
from blackbox.errors import BackendError, BlackboxError, DataError, RowError
from blackbox.lm.prices import price_of
from blackbox.metrics import evaluate
from blackbox.protocol import Backend, BackendIdentity, Limits, RenderedPrompt
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.data import data_sets
from eval.methods import METHODS, Setting, make
from eval.methods.label_words import N_PER_CLASS
from eval.run.charging import ChargedBackend, ReadOnce, counts_in, read_once
from eval.run.configuration import Cell, Configuration, Lm
from eval.run.measuring import Clock, begin_peak, peak_mb
from eval.run.results import SCHEMA, Results

__all__ = [
    "Job",
    "attempt",
    "attempt_stored",
    "data_of",
    "job_of",
    "kind_of",
    "pool_requests",
    "reach",
    "reads",
]

_MANUAL = ("words", "gradients")
"""Methods of these needs read texts in the one manual prompt."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A cell with all that a process needs to work on it.

    Parameters
    ----------
    cell : Cell
        What to measure.
    digest : str
        Of everything that decides its figures.
    data_dir, out, store : Path
        As for `eval.run.runner.Runner`.
    n_test : int or None
        Test rows at most.
    identity, limits, price_share
        Of the LM that is asked; None where none is.
    model : str or None
        The LM's name or folder, where it is trained.
    """

    cell: Cell
    digest: str
    data_dir: Path | None
    out: Path
    store: Path
    n_test: int | None
    identity: BackendIdentity | None = None
    limits: Limits | None = None
    price_share: float = 1.0
    model: str | None = None

    def __str__(self) -> str:
        cell = self.cell
        shots = "all rows" if cell.shots is None else f"{cell.shots} labels a class"
        return f"{cell.entry.name} on {cell.data}, {shots}, seed {cell.seed}, {cell.lm.name}"


def job_of(
    cell: Cell, configuration: Configuration, data_dir: Path | None, out: Path, store: Path
) -> Job:
    """The job of a cell.

    Raises
    ------
    DataError, PromptError, BackendError
        If its data, pool or LM can't be had; nothing was paid.
    """
    method = METHODS[cell.entry.method]
    backend = reach(cell.lm) if method.asks else None
    model = _model_of(cell) if method.needs == "gradients" else None
    data, pool = data_of(cell.data, data_dir), _pool_of(cell)
    data.draw(_shots(cell), cell.seed)  # refuses more rows than there are
    n_test = configuration.n_test
    described = {
        "schema": SCHEMA,
        "data": _digest_of(cell.data, data_dir),
        "n_test": n_test,
        "shots": cell.shots,
        "seed": cell.seed,
        "name": cell.entry.name,
        "method": cell.entry.method,
        "options": dict(cell.entry.options),
        "lm": backend.identity.digest() if backend else model or cell.lm.name,
        "top_k": cell.entry.top_k if backend else None,
        "prompts": [prompt.template for prompt in pool] if pool else None,
        "words": data.words() if method.needs == "words" else None,
        "manual_prompt": data.card.manual_prompt if method.needs in _MANUAL else None,
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()
    return Job(
        cell,
        digest,
        data_dir,
        out,
        store,
        n_test,
        backend.identity if backend else None,
        backend.limits if backend else None,
        getattr(backend, "price_share", 1.0),
        model,
    )


@cache
def _digest_of(name: str, data_dir: Path | None) -> str:
    return data_of(name, data_dir).digest()


@cache
def data_of(name: str, data_dir: Path | None) -> data_sets.DataSet:
    """The data set, read once."""
    return data_sets.load(name, data_dir)


def reach(lm: Lm) -> Backend:
    """The LM, started once."""
    return backends.load(lm.backend, **lm.options)


def _model_of(cell: Cell) -> str:
    """What a method that trains the LM loads."""
    lm = cell.lm
    model = lm.options.get("model", "smollm2-135m" if lm.backend == "llamacpp" else None)
    readable = lm.backend == "transformers" and isinstance(model, str)
    if model not in CATALOGUE and not (readable and not model.endswith(".gguf")):
        raise DataError(
            f"{cell.entry.name!r} trains the LM, and can't train {lm.name!r}: it needs the backend "
            f"transformers, or a model of the catalogue ({', '.join(CATALOGUE)})"
        )
    return str(model)


def _pool_of(cell: Cell) -> PromptPool | None:
    if METHODS[cell.entry.method].needs != "pool":
        return None
    if cell.entry.prompts == "hand-written":
        return data_sets.card_of(cell.data).pool()
    return PromptPool.read(cell.entry.prompts.format(data=cell.data))


def _shots(cell: Cell) -> int | None:
    """Rows a class that the method is given: what shows rows gets those, and no others.

    Draws of several sizes have other rows, and the passes of each would have to be made.
    """
    if not METHODS[cell.entry.method].shows_rows:
        return cell.shots
    shown: int = cell.entry.options.get("n_per_class", N_PER_CLASS)
    return shown if cell.shots is None else min(shown, cell.shots)


def rows_of(job: Job) -> tuple[data_sets.Rows, data_sets.Rows]:
    """Training and test rows."""
    data = data_of(job.cell.data, job.data_dir)
    return data.draw(_shots(job.cell), job.cell.seed), data.test_rows(job.n_test)


def kind_of(cell: Cell) -> str:
    """What the cell's passes are like, for their speed."""
    method = METHODS[cell.entry.method]
    if method.needs == "pool":
        prompts = cell.entry.prompts
    elif method.shows_rows:
        prompts = f"{_shots(cell)} rows a class shown"
    else:
        prompts = "the manual prompt" if method.needs == "words" else cell.entry.name
    return f"{cell.data}, top {cell.entry.top_k}, {prompts}"


def reads(cell: Cell) -> tuple[Any, ...]:
    """What decides which passes a cell reads; those of a configuration have the same test rows."""
    some = cell.entry.options.get("first_prompts")
    return cell.data, _shots(cell), cell.seed, cell.entry.prompts, some, cell.entry.top_k


def pool_requests(job: Job) -> list[RenderedPrompt]:
    """What the cell will ask for, if it reads its whole pool."""
    some = list(_pool_of(job.cell) or ())[: job.cell.entry.options.get("first_prompts")]
    train, test = rows_of(job)
    return render(reach(job.cell.lm), some, check_texts([*train.texts, *test.texts])).requests


def attempt_stored(job: Job) -> tuple[Job, dict[str, Any] | str | None]:
    """As `attempt` without an engine; None where an answer is missing from the store."""
    known = None
    if job.identity is not None and job.limits is not None:
        known = read_once(job.identity, job.limits, job.store)
    try:
        return job, _attempt(job, known)
    except BackendError:
        return job, None


def attempt(job: Job, backend: Backend | None) -> dict[str, Any] | str:
    """The cell's figures, or one line that says why it has none.

    Raises
    ------
    BackendError
        If the LM can't be asked any more.
    """
    return _attempt(job, StoredBackend(backend, open_store(job.store)) if backend else None)


def _attempt(job: Job, stored: StoredBackend | ReadOnce | None) -> dict[str, Any] | str:
    try:
        return _figures(job, stored)
    except BackendError:
        raise
    except (BlackboxError, ImportError, ValueError) as error:
        _log.debug("%s", job, exc_info=True)
        reason = str(error) if isinstance(error, RowError) else " ".join(str(error).split())
        return f"{job}: {reason}"


def _figures(job: Job, stored: StoredBackend | ReadOnce | None) -> dict[str, Any]:
    """Train, predict, measure."""
    cell, method = job.cell, METHODS[job.cell.entry.method]
    train, test = rows_of(job)
    charged = ChargedBackend(stored, counts_in(job.out / "tokens.sqlite")) if stored else None
    classifier = make(cell.entry.method, _setting(job, charged))
    begin_peak()
    clock = Clock(stored)
    classifier.fit(train.texts, np.array(train.labels))
    fit, fit_seconds = clock.lap()
    fit_seconds += getattr(classifier, "seconds_spared_", 0.0)
    to_train = charged.settle() if charged else (0, 0)
    clock.lap()
    probabilities = np.asarray(classifier.predict_proba(test.texts), np.float64)
    predict, predict_seconds = clock.lap()
    predict_seconds += getattr(classifier, "seconds_spared_", 0.0)
    to_predict = charged.settle() if charged else (0, 0)
    peak = peak_mb() if method.needs == "gradients" else None
    classes = [str(label) for label in classifier.classes_]
    codes = np.searchsorted(classes, test.labels)
    measured = evaluate(codes, probabilities, classes)
    Results(job.out).keep_probabilities(job.digest, probabilities, codes)
    shown = getattr(classifier, "n_shown_", len(train))
    return {
        "digest": job.digest,
        "lm": cell.lm.name,
        "data": cell.data,
        "shots": cell.shots,
        "seed": cell.seed,
        "name": cell.entry.name,
        "method": cell.entry.method,
        "options": dict(cell.entry.options),
        "top_k": cell.entry.top_k,
        "labels": shown if method.uses_labels else 0,
        "classes": len(classes),
        "n_test": len(test),
        "accuracy": measured.accuracy,
        "macro_f1": measured.macro_f1,
        "log_loss": measured.log_loss,
        "brier": measured.brier,
        "ece": measured.ece,
        "passes_to_train": to_train[0],
        "tokens_to_train": to_train[1],
        "passes_to_predict": to_predict[0],
        "tokens_to_predict": to_predict[1],
        "cost": _cost(job, to_train, to_predict),
        "seconds_to_fit": round(max(fit_seconds - fit.seconds, 0.0), 3),
        "seconds_to_predict": round(max(predict_seconds - predict.seconds, 0.0), 3),
        "peak_mb": None if peak is None else round(peak),
        "prompts": [p.template for p in getattr(classifier, "prompts_", [])] or None,
        "spent": {"fit": asdict(fit), "predict": asdict(predict)},
    }


def _setting(job: Job, backend: ChargedBackend | None) -> Setting:
    cell, data = job.cell, data_of(job.cell.data, job.data_dir)
    model = job.model
    if model is not None:
        from eval.methods.gradients import folder_of

        model = folder_of(model)  # a catalogue model is converted here: that is no part of `fit`
    return Setting(
        backend=backend,
        pool=_pool_of(cell),
        words=data.words(),
        manual_prompt=data.card.manual_prompt,
        seed=cell.seed,
        top_k=cell.entry.top_k,
        options=cell.entry.options,
        class_shares=data.class_shares(),
        model=model,
        embeddings=job.store.with_name(f"{job.store.name}.embeddings.sqlite"),
    )


def _cost(
    job: Job, to_train: tuple[int, int | None], to_predict: tuple[int, int | None]
) -> float | None:
    """US dollars, one token out a pass; None where a price or a count is unknown."""
    if job.identity is None:
        return 0.0
    price = price_of(job.identity, job.price_share)
    if price is None or to_train[1] is None or to_predict[1] is None:
        return None
    return price.of(to_train[1] + to_predict[1], to_train[0] + to_predict[0])
