"""Jobs: the cells of a configuration with their data, prompts and LM, and what identifies them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import backends
from backends.catalogue import CATALOGUE
from blackbox import PromptPool
from blackbox.answers.requests import render_requests
from blackbox.answers.texts import check_texts
from blackbox.backend import BaseBackend
from blackbox.errors import DataError
from blackbox.protocol import BackendIdentity, Limits, RenderedPrompt
from eval.data import data_sets
from eval.data.data_sets import origins_of
from eval.methods import METHODS
from eval.methods.label_words import N_PER_CLASS
from eval.run.configuration import Cell, Configuration, Lm
from eval.run.results import SCHEMA

__all__ = [
    "Job",
    "draw_rows",
    "load_data",
    "load_lm",
    "make_job",
    "passes_key",
    "pool_requests",
    "read_pool",
    "speed_key",
]

_WORDED = ("words", "gradients")
"""Needs of the methods that may read label words."""

_MANUAL = ("words", "gradients")
"""Needs of the methods that read texts in the manual prompt."""


@dataclass(frozen=True)
class Job:
    """Cell with everything that a process needs to compute it.

    Parameters
    ----------
    cell : Cell
        What to measure.
    digest : str
        Of everything that determines its figures.
    data_dir, out, store : Path
        As for `eval.run.runner.Runner`.
    n_test : int or None
        Maximum number of test rows.
    identity, limits
        Of the LM that is called; None if none is.
    model : str or None
        The LM's name or folder, if the method needs its weights.
    """

    cell: Cell
    digest: str
    data_dir: Path | None
    out: Path
    store: Path
    n_test: int | None
    identity: BackendIdentity | None = None
    limits: Limits | None = None
    model: str | None = None

    @property
    def runs_alone(self) -> bool:
        """Whether the cell has a process of its own, and no store."""
        return self.cell.entry.alone or METHODS[self.cell.entry.method].runs_alone

    def __str__(self) -> str:
        cell = self.cell
        shots = "all rows" if cell.shots is None else f"{cell.shots} labels per class"
        return f"{cell.entry.name} on {cell.data}, {shots}, seed {cell.seed}, {cell.lm.name}"


def make_job(
    cell: Cell, configuration: Configuration, data_dir: Path | None, out: Path, store: Path
) -> Job:
    """Return the job of a cell.

    Raises
    ------
    DataError, PromptError, BackendError
        If its data, pool or LM can't be had; nothing was paid.
    """
    method = METHODS[cell.entry.method]
    backend = load_lm(cell.lm) if method.asks else None
    model = _trainable_model(cell) if method.needs_weights else None
    data, pool = load_data(cell.data, data_dir), read_pool(cell)
    try:
        data.draw(_rows_per_class(cell), cell.seed)
    except DataError as error:  # more rows than there are
        raise DataError(f"data set {cell.data!r}: {error}") from error
    if cell.shots == 0 and not len(data.test):
        raise DataError(f"{cell.data} has no test rows, and is no measure of 0 labels")
    if method.reads_unlabelled and not len(data.test):
        raise DataError(
            f"{cell.data} has no test rows: {cell.entry.name!r} would read those that judge it"
        )
    sources = sources_of(cell)
    n_test = configuration.n_test
    described = {
        "schema": SCHEMA,
        "data": _data_digest(cell.data, data_dir),
        "n_test": n_test,
        "shots": cell.shots,
        "seed": cell.seed,
        "name": cell.entry.name,
        "method": cell.entry.method,
        "options": dict(cell.entry.options),
        "lm": backend.identity.digest() if backend else model or cell.lm.name,
        "top_k": cell.entry.top_k if backend else None,
        "prompts": [prompt.template for prompt in pool] if pool else None,
        "words": data.words() if method.needs in _WORDED else None,
        "manual_prompt": data.card.manual_prompt if method.needs in _MANUAL else None,
    }
    if sources:
        described["sources"] = {name: _data_digest(name, data_dir) for name in sources}
    if cell.entry.alone:
        described["alone"] = True
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
        model,
    )


@cache
def _data_digest(name: str, data_dir: Path | None) -> str:
    return load_data(name, data_dir).digest()


@cache
def load_data(name: str, data_dir: Path | None) -> data_sets.DataSet:
    """Load a data set, once."""
    return data_sets.read_data_set(name, data_dir)


def load_lm(lm: Lm) -> BaseBackend:
    """Return the backend of an LM, started once."""
    return backends.load(lm.backend, **lm.options)


def _trainable_model(cell: Cell) -> str:
    """Return the model that a method which trains the LM loads."""
    lm = cell.lm
    model = lm.options.get("model", "smollm2-135m" if lm.backend in ("onnx", "llamacpp") else None)
    readable = lm.backend == "transformers" and isinstance(model, str)
    if model not in CATALOGUE and not (readable and not model.endswith(".gguf")):
        raise DataError(
            f"{cell.entry.name!r} needs the LM's weights, not to be had of {lm.name!r}: take the "
            f"backend transformers, or a model of the catalogue ({', '.join(CATALOGUE)})"
        )
    return str(model)


def read_pool(cell: Cell) -> PromptPool | None:
    """Read the prompts of a cell whose method uses a pool."""
    if not METHODS[cell.entry.method].reads_pool:
        return None
    if cell.entry.prompts == "hand-written":
        return data_sets.card_of(cell.data).pool()
    return PromptPool.read(cell.entry.prompts.format(data=cell.data))


def sources_of(cell: Cell) -> list[str]:
    """Return the data sets whose models are the library of a cell: those of other rows."""
    own = origins_of(cell.data)
    return [name for name in cell.entry.sources if not origins_of(name) & own]


def _rows_per_class(cell: Cell) -> int | None:
    """Return the training rows per class; demonstrations get only the rows that they show.

    Draws of different sizes have different rows, and each would need forward passes of its own.
    """
    if not METHODS[cell.entry.method].shows_rows:
        return cell.shots
    shown: int = cell.entry.options.get("n_per_class", N_PER_CLASS)
    return shown if cell.shots is None else min(shown, cell.shots)


def draw_rows(job: Job) -> tuple[data_sets.Rows, data_sets.Rows]:
    """Return training and test rows."""
    data = load_data(job.cell.data, job.data_dir)
    return data.draw(_rows_per_class(job.cell), job.cell.seed), data.test_rows(job.n_test)


def speed_key(cell: Cell) -> str:
    """Return a description of the cell's passes, under which their speed is recorded."""
    method = METHODS[cell.entry.method]
    if method.reads_pool:
        prompts = cell.entry.prompts
    elif method.shows_rows:
        prompts = f"{_rows_per_class(cell)} rows per class shown"
    elif method.chooses_prompts:
        prompts = "the program's own prompts"
    else:
        prompts = "the manual prompt" if not method.uses_labels else cell.entry.name
    return f"{cell.data}, top {cell.entry.top_k}, {prompts}"


def passes_key(cell: Cell) -> tuple[Any, ...]:
    """Return what determines the cell's passes; test rows are the same in a configuration."""
    some = cell.entry.options.get("first_prompts")
    return cell.data, _rows_per_class(cell), cell.seed, cell.entry.prompts, some, cell.entry.top_k


def pool_requests(job: Job) -> list[RenderedPrompt]:
    """Return the requests of a cell that reads its whole pool."""
    some = list(read_pool(job.cell) or ())[: job.cell.entry.options.get("first_prompts")]
    train, test = draw_rows(job)
    return render_requests(
        load_lm(job.cell.lm), some, check_texts([*train.texts, *test.texts])
    ).requests
