"""Compute one cell: train, predict, and measure quality and cost."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.backend import BaseBackend
from blackbox.boosting.splits import stratified_folds
from blackbox.errors import BackendError, BlackboxError, MissingDependencyError, RowError
from blackbox.lm.prices import price_of, rate_of
from blackbox.metrics import evaluate
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.data.data_sets import Rows
from eval.methods import METHODS, Setting, make
from eval.methods.embeddings import VectorCache
from eval.run.charging import (
    ChargedBackend,
    Counts,
    ReadOnce,
    ShippedAnswers,
    shared_stored_answers,
    shared_token_counts,
)
from eval.run.jobs import Job, draw_rows, load_data, read_pool
from eval.run.libraries import library_of
from eval.run.measuring import Clock, peak_memory, reset_peak_memory
from eval.run.speeds import LmWork

__all__ = ["compute_cell", "compute_from_answers", "compute_from_store"]

_log = logging.getLogger(__name__)

_Answers = StoredBackend | ReadOnce | ShippedAnswers

_FOLDS = 5  # of a data set without test rows


def compute_from_store(job: Job) -> dict[str, Any] | str | None:
    """Compute a cell without an engine; None if an answer is missing from the store."""
    known = None
    if job.identity is not None and job.limits is not None:
        known = shared_stored_answers(job.identity, job.limits, job.store)
    return compute_from_answers(job, known, shared_token_counts(job.out / "tokens.sqlite"))


def compute_from_answers(
    job: Job, answers: _Answers | None, counts: Counts
) -> dict[str, Any] | str | None:
    """Compute a cell from answers that are there; None if one is missing.

    Parameters
    ----------
    job : Job
        The cell.
    answers : backend or None
        The answers; None if the method asks no LM.
    counts : Counts
        Counts the tokens of requests.
    """
    try:
        return _compute(job, answers, counts)
    except BackendError:
        return None


def compute_cell(job: Job, backend: BaseBackend | None) -> dict[str, Any] | str:
    """Compute a cell; return its figures, or one line with the reason why it has none.

    Raises
    ------
    BackendError
        If the LM can't be reached any more.
    """
    counts = shared_token_counts(job.out / "tokens.sqlite")
    if backend is None:
        return _compute(job, None, counts)
    if not job.runs_alone:
        return _compute(job, StoredBackend(backend, open_store(job.store)), counts)
    with TemporaryDirectory() as folder:
        return _compute(job, StoredBackend(backend, open_store(Path(folder) / "store")), counts)


def _compute(job: Job, answers: _Answers | None, counts: Counts) -> dict[str, Any] | str:
    try:
        return _measure(job, answers, counts)
    except (BlackboxError, ImportError, ValueError) as error:
        if isinstance(error, BackendError) and not isinstance(error, MissingDependencyError):
            raise
        _log.debug("%s", job, exc_info=True)
        reason = str(error) if isinstance(error, RowError) else " ".join(str(error).split())
        return f"{job}: {reason}"


@dataclass(frozen=True)
class _Step:
    """Cost of training or of prediction; tokens None if they can't be counted."""

    work: LmWork
    seconds: float
    passes: int
    tokens: int | None

    @property
    def seconds_without_lm(self) -> float:
        return round(max(self.seconds - self.work.seconds, 0.0), 3)


def _measure(job: Job, answers: _Answers | None, counts: Counts) -> dict[str, Any]:
    """Train, predict, and return the cell's figures, with its probabilities as `predicted`."""
    cell, method = job.cell, METHODS[job.cell.entry.method]
    train, test = draw_rows(job)
    charged = ChargedBackend(answers, counts) if answers else None
    setting = _setting(job, charged)
    reset_peak_memory()
    clock = Clock(answers)

    def end_step() -> _Step:
        work, seconds = clock.lap()
        seconds += setting.vectors.take_seconds_saved()
        step = _Step(work, seconds, *(charged.settle() if charged else (0, 0)))
        clock.lap()  # counting tokens is no part of the next step
        return step

    classes = load_data(cell.data, job.data_dir).classes
    probabilities = np.zeros((len(test) or len(train), len(classes)))
    steps = []
    for some, held_out, rows in _parts(train, test, cell.seed):
        classifier = make(cell.entry.method, setting)
        if hasattr(classifier, "load"):
            classifier.load()
        clock.lap()  # loading a model, and what runs it, is no part of training
        classifier.fit(*_texts_and_labels(job, some))
        trained = end_step()
        found = np.asarray(classifier.predict_proba(held_out.texts), np.float64)
        # a class without a labelled row is unknown to some methods
        known = np.searchsorted(classes, [str(label) for label in classifier.classes_])
        probabilities[np.ix_(rows, known)] = found
        steps.append((trained, end_step()))
    training, prediction = (_sum(part) for part in zip(*steps, strict=True))
    judged = test if len(test) else train
    peak = peak_memory() if job.runs_alone else None
    codes = np.searchsorted(classes, judged.labels)
    quality = _quality(codes, probabilities, classes)
    shown = getattr(classifier, "n_demonstrations_", len(train.labels))
    return {
        **_description(job),
        "labels": shown if method.uses_labels else 0,
        "classes": len(classes),
        "n_test": len(judged),
        **quality,
        "passes_to_train": training.passes,
        "tokens_to_train": training.tokens,
        "passes_to_predict": prediction.passes,
        "tokens_to_predict": prediction.tokens,
        "cost": _cost(job, training, prediction),
        "seconds_to_fit": training.seconds_without_lm,
        "seconds_to_predict": prediction.seconds_without_lm,
        "peak_mb": None if peak is None else round(peak),
        "prompts": [p.template for p in getattr(classifier, "prompts_", [])] or None,
        "predicted": (probabilities, codes),
        "lm_work": {"train": asdict(training.work), "predict": asdict(prediction.work)},
    }


def _texts_and_labels(job: Job, rows: Rows) -> tuple[list[Any], NDArray[Any] | None]:
    """Return what a classifier is trained on; the label of a text without one is None."""
    if not METHODS[job.cell.entry.method].reads_unlabelled:
        return list(rows.texts), np.array(rows.labels) if rows.labels else None
    labelled = set(rows.texts)
    more = load_data(job.cell.data, job.data_dir).draw(0, job.cell.seed).texts
    more = [text for text in more if text not in labelled]
    return [*rows.texts, *more], np.array([*rows.labels, *[None] * len(more)], object)


def _parts(train: Rows, test: Rows, seed: int) -> Iterator[tuple[Rows, Rows, NDArray[np.intp]]]:
    """Yield rows to train on, rows to predict, and their places among all that are predicted.

    Without test rows these are the folds of a cross-validation.
    """
    if len(test):
        yield train, test, np.arange(len(test))
        return
    y = np.unique(train.labels, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    for some, held_out in stratified_folds(y, _FOLDS, rng, may_lack=True):
        yield train.take(some.tolist()), train.take(held_out.tolist()), held_out


def _sum(steps: Sequence[_Step]) -> _Step:
    """Return the cost of several trainings, or predictions."""
    tokens = [step.tokens for step in steps]
    return _Step(
        sum((step.work for step in steps), LmWork()),
        sum(step.seconds for step in steps),
        sum(step.passes for step in steps),
        None if None in tokens else sum(filter(None, tokens)),
    )


def _description(job: Job) -> dict[str, Any]:
    """Return the entries that identify a cell."""
    cell = job.cell
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
    }


def _quality(
    codes: NDArray[np.intp], probabilities: NDArray[np.float64], classes: list[str]
) -> dict[str, Any]:
    """Return accuracy and calibration."""
    measured = evaluate(codes, probabilities, classes)
    return {
        "accuracy": measured.accuracy,
        "macro_f1": measured.macro_f1,
        "log_loss": measured.log_loss,
        "brier": measured.brier,
        "ece": measured.ece,
    }


def _setting(job: Job, backend: ChargedBackend | None) -> Setting:
    cell, data = job.cell, load_data(job.cell.data, job.data_dir)
    model = job.model
    if model is not None:
        from eval.methods.gradients import resolve_folder

        model = resolve_folder(
            model
        )  # a catalogue model is converted here, outside the time of `fit`
    return Setting(
        backend=backend,
        pool=read_pool(cell),
        words=data.words(),
        manual_prompt=data.card.manual_prompt,
        seed=cell.seed,
        top_k=cell.entry.top_k,
        options=cell.entry.options,
        class_shares=data.class_shares(),
        model=model,
        vectors=VectorCache(
            None if job.runs_alone else job.store.with_name(f"{job.store.name}.embeddings.sqlite")
        ),
        library=library_of(job),
    )


def _cost(job: Job, training: _Step, prediction: _Step) -> float | None:
    """Return US dollars, with one output token per pass; None if a price or count is unknown."""
    if job.identity is None or job.limits is None:
        return 0.0
    price = price_of(rate_of(job.identity, job.limits))
    if price is None or training.tokens is None or prediction.tokens is None:
        return None
    return price.of(training.tokens + prediction.tokens, training.passes + prediction.passes)
