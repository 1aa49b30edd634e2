"""Compute one cell: train, predict, and measure quality and cost."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.backend import BaseBackend
from blackbox.errors import BackendError, BlackboxError, RowError
from blackbox.lm.prices import price_of, rate_of
from blackbox.metrics import evaluate
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.methods import METHODS, Setting, make
from eval.run.charging import ChargedBackend, ReadOnce, shared_stored_answers, shared_token_counts
from eval.run.jobs import Job, draw_rows, load_data, read_pool
from eval.run.measuring import Clock, peak_memory, reset_peak_memory
from eval.run.results import Results
from eval.run.speeds import LmWork

__all__ = ["compute_cell", "compute_from_store"]

_log = logging.getLogger(__name__)


def compute_from_store(job: Job) -> tuple[Job, dict[str, Any] | str | None]:
    """Compute a cell without an engine; None if an answer is missing from the store."""
    known = None
    if job.identity is not None and job.limits is not None:
        known = shared_stored_answers(job.identity, job.limits, job.store)
    try:
        return job, _compute(job, known)
    except BackendError:
        return job, None


def compute_cell(job: Job, backend: BaseBackend | None) -> dict[str, Any] | str:
    """Compute a cell; return its figures, or one line with the reason why it has none.

    Raises
    ------
    BackendError
        If the LM can't be reached any more.
    """
    return _compute(job, StoredBackend(backend, open_store(job.store)) if backend else None)


def _compute(job: Job, stored: StoredBackend | ReadOnce | None) -> dict[str, Any] | str:
    try:
        return _measure(job, stored)
    except BackendError:
        raise
    except (BlackboxError, ImportError, ValueError) as error:
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


def _measure(job: Job, stored: StoredBackend | ReadOnce | None) -> dict[str, Any]:
    """Train, predict, and return the cell's figures."""
    cell, method = job.cell, METHODS[job.cell.entry.method]
    train, test = draw_rows(job)
    charged = None
    if stored:
        charged = ChargedBackend(stored, shared_token_counts(job.out / "tokens.sqlite"))
    classifier = make(cell.entry.method, _setting(job, charged))
    reset_peak_memory()
    clock = Clock(stored)

    def end_step() -> _Step:
        work, seconds = clock.lap()
        seconds += getattr(classifier, "seconds_saved_", 0.0)
        step = _Step(work, seconds, *(charged.settle() if charged else (0, 0)))
        clock.lap()  # counting tokens is no part of the next step
        return step

    classifier.fit(train.texts, np.array(train.labels))
    training = end_step()
    probabilities = np.asarray(classifier.predict_proba(test.texts), np.float64)
    prediction = end_step()
    peak = peak_memory() if method.needs == "gradients" else None
    classes = [str(label) for label in classifier.classes_]
    codes = np.searchsorted(classes, test.labels)
    quality = _quality(codes, probabilities, classes)
    Results(job.out).write_probabilities(job.digest, probabilities, codes)
    shown = getattr(classifier, "n_demonstrations_", len(train))
    return {
        **_description(job),
        "labels": shown if method.uses_labels else 0,
        "classes": len(classes),
        "n_test": len(test),
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
        "lm_work": {"train": asdict(training.work), "predict": asdict(prediction.work)},
    }


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
        embeddings=job.store.with_name(f"{job.store.name}.embeddings.sqlite"),
    )


def _cost(job: Job, training: _Step, prediction: _Step) -> float | None:
    """Return US dollars, with one output token per pass; None if a price or count is unknown."""
    if job.identity is None or job.limits is None:
        return 0.0
    price = price_of(rate_of(job.identity, job.limits))
    if price is None or training.tokens is None or prediction.tokens is None:
        return None
    return price.of(training.tokens + prediction.tokens, training.passes + prediction.passes)
