"""Works through the cells of a configuration, and writes each down as it is finished.

First the passes that cells share are made, one data set at a time, in the engine's favourite order.
Then cells that ask the LM for more run one after another beside the engine, and all others, whose
answers are in the store by now, in parallel processes without one.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

import backends
from blackbox import PromptPool
from blackbox.errors import BackendError
from blackbox.inputs import check_texts
from blackbox.metrics import evaluate
from blackbox.passes import render
from blackbox.prices import price_of
from blackbox.protocol import Backend, BackendIdentity, Limits, RenderedPrompt
from blackbox.store import StoredBackend
from blackbox.store_file import open_store
from eval import data_sets
from eval.charging import ChargedBackend, RecordedBackend, TokenCounts
from eval.configuration import Cell, Configuration, Lm
from eval.methods import METHODS, Setting, make
from eval.results import Results

__all__ = ["Runner"]

SCHEMA = 1
"""Raised when a change makes figures that were written before wrong."""

_LEAST_TIMED = 200  # passes whose time says something


@dataclass(frozen=True)
class _Job:
    """A cell with all that a process needs to work on it."""

    cell: Cell
    digest: str
    data_dir: Path | None
    out: Path
    store: Path
    n_test: int | None
    identity: BackendIdentity | None
    limits: Limits | None


class Runner:
    """Runs configurations into one folder of results.

    Parameters
    ----------
    out : Path
        The folder: `cells.jsonl`, probabilities, the store unless another is given.
    data_dir : Path or None
        Where local data sets lie.
    store : Path, optional
        The forward-pass store.
    n_jobs : int
        Processes for cells that need no engine.
    """

    def __init__(
        self, out: Path, data_dir: Path | None, store: Path | None = None, n_jobs: int = 1
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self.data_dir = data_dir
        self.store = store or out / "passes.sqlite"
        self.n_jobs = n_jobs
        self.results = Results(out)
        self._counts = TokenCounts(out / "tokens.sqlite")

    def run(self, configuration: Configuration) -> list[dict[str, Any]]:
        """Compute what is missing.

        Returns
        -------
        list of dict
            The cells of the configuration, in its order.

        Raises
        ------
        DataError, BackendError
            If a data set or an LM can't be had.
        """
        cells = list(configuration.cells())
        jobs = [self._job(cell, configuration) for cell in cells]
        known = self.results.cells()
        missing = [job for job in jobs if job.digest not in known]
        with tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc="cells") as bar:
            for lm in configuration.lms:
                of_lm = [job for job in missing if job.cell.lm == lm]
                for found in self._run_lm(of_lm):
                    self.results.append(found)
                    bar.update()
        known = self.results.cells()
        return [known[job.digest] for job in jobs]

    def _job(self, cell: Cell, configuration: Configuration) -> _Job:
        uses = METHODS[cell.entry.method].needs in ("pool", "lm")
        backend = _reach(cell.lm) if uses else None
        pool = _pool_of(cell) if uses else None
        described = {
            "schema": SCHEMA,
            "data": _digest_of(cell.data, self.data_dir),
            "n_test": configuration.n_test,
            "shots": cell.shots,
            "seed": cell.seed,
            "name": cell.entry.name,
            "method": cell.entry.method,
            "options": dict(cell.entry.options),
            "lm": backend.identity.digest() if backend else cell.lm.name,
            "top_k": cell.entry.top_k if uses else None,
            "prompts": [prompt.template for prompt in pool] if pool else None,
        }
        text = json.dumps(described, sort_keys=True, default=str)
        return _Job(
            cell, hashlib.sha256(text.encode()).hexdigest(), self.data_dir, self.out, self.store,
            configuration.n_test, backend.identity if backend else None,
            backend.limits if backend else None,
        )  # fmt: skip

    def _run_lm(self, jobs: list[_Job]) -> Iterator[dict[str, Any]]:
        """The cells of one LM."""
        of_need: dict[str, list[_Job]] = {}
        for job in jobs:
            of_need.setdefault(METHODS[job.cell.entry.method].needs, []).append(job)
        pooled = of_need.get("pool", [])
        speed: dict[str, float] = {}
        if pooled:
            speed = self._warm(pooled)
        for job in of_need.get("lm", []):
            yield self._finished(_work(job, _reach(job.cell.lm)), speed)
        apart = [*of_need.get("nothing", []), *pooled]
        parallel = Parallel(n_jobs=self.n_jobs, return_as="generator_unordered")
        again = []
        for found in parallel(delayed(_try)(job) for job in apart):
            if isinstance(found, dict):
                yield self._finished(found, speed)
            else:
                again.append(found)
        for job in again:  # a text too long for the context is cut with the LM's own tokenizer
            yield self._finished(_work(job, _reach(job.cell.lm)), speed)
        for job in of_need.get("gradients", []):
            # each in a process of its own, so that its memory can be told
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                yield self._finished(alone.submit(_work, job, None).result(), speed)

    def _warm(self, jobs: list[_Job]) -> dict[str, float]:
        """Make the passes that cells share; seconds a pass, now or when they were made."""
        wanted: dict[tuple[str, int], dict[RenderedPrompt, None]] = {}
        for job in jobs:
            requests = wanted.setdefault((job.cell.data, job.cell.entry.top_k), {})
            requests.update(dict.fromkeys(_pool_requests(job)))
        lm = _reach(jobs[0].cell.lm)
        stored = StoredBackend(lm, open_store(self.store))
        kept = self.out / "seconds_per_pass.json"
        all_known = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
        speed: dict[str, float] = all_known.setdefault(lm.identity.digest(), {})
        # the largest answers first: they serve the smaller ones
        for (name, top_k), requests in sorted(wanted.items(), key=lambda item: -item[0][1]):
            top_k = min(top_k, lm.limits.max_top_k)
            everything = list(requests)
            self._counts.count(lm, everything)
            held = set(stored.known_rows(everything, top_k))
            todo = [request for row, request in enumerate(everything) if row not in held]
            if not todo:
                continue
            started = time.perf_counter()
            with tqdm(total=len(todo), desc=f"passes: {name}, top {top_k}", leave=False) as bar:
                for where, _ in stored.iter_next_token(todo, top_k):
                    bar.update(len(where))
            if len(todo) >= _LEAST_TIMED:
                speed[name] = round((time.perf_counter() - started) / len(todo), 6)
                kept.write_text(json.dumps(all_known, indent=1) + "\n", "utf-8")
        return speed

    def _finished(self, found: dict[str, Any], speed: Mapping[str, float]) -> dict[str, Any]:
        return found | {
            "seconds_per_pass": speed.get(found["data"]),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
            f"{platform.python_version()}, promptboosting {version('promptboosting')}",
        }


@cache
def _digest_of(name: str, data_dir: Path | None) -> str:
    return _data(name, data_dir).digest()


@cache
def _data(name: str, data_dir: Path | None) -> data_sets.DataSet:
    return data_sets.load(name, data_dir)


def _reach(lm: Lm) -> Backend:
    """The LM, started once."""
    return backends.load(lm.backend, **lm.options)


def _pool_of(cell: Cell) -> PromptPool | None:
    named = cell.entry.prompts
    if named == "own":
        return None
    if named == "hand-written":
        return data_sets.card_of(cell.data).pool()
    return PromptPool.read(named.format(data=cell.data))


def _rows(job: _Job) -> tuple[data_sets.Rows, data_sets.Rows]:
    data = _data(job.cell.data, job.data_dir)
    return data.draw(job.cell.shots, job.cell.seed), data.test_rows(job.n_test)


def _pool_requests(job: _Job) -> list[RenderedPrompt]:
    """What the cell will ask for, if it reads its whole pool."""
    pool = _pool_of(job.cell)
    if pool is None:
        return []
    some = list(pool)[: job.cell.entry.options.get("first_prompts")]
    train, test = _rows(job)
    return render(_reach(job.cell.lm), some, check_texts([*train.texts, *test.texts])).requests


def _try(job: _Job) -> dict[str, Any] | _Job:
    """The cell's figures, or the job itself where an answer is missing from the store."""
    recorded = None
    if job.identity is not None and job.limits is not None:
        recorded = RecordedBackend(job.identity, job.limits)
    try:
        return _work(job, recorded)
    except BackendError:
        return job


def _work(job: _Job, backend: Any) -> dict[str, Any]:
    """Train, predict, measure."""
    cell = job.cell
    data = _data(cell.data, job.data_dir)
    train, test = _rows(job)
    charged = None
    if backend is not None:
        stored = StoredBackend(backend, open_store(job.store))
        charged = ChargedBackend(stored, TokenCounts(job.out / "tokens.sqlite"))
    setting = Setting(
        backend=charged, pool=_pool_of(cell) if charged else None, words=data.words(),
        manual_prompt=data.card.manual_prompt, seed=cell.seed, top_k=cell.entry.top_k,
        options=cell.entry.options,
    )  # fmt: skip
    method = METHODS[cell.entry.method]
    classifier = make(cell.entry.method, setting)
    started = time.perf_counter()
    classifier.fit(train.texts, np.array(train.labels))
    fitted = time.perf_counter()
    to_train = charged.settle() if charged else (0, 0)
    probabilities = np.asarray(classifier.predict_proba(test.texts), np.float64)
    predicted = time.perf_counter()
    to_predict = charged.settle() if charged else (0, 0)
    classes = [str(label) for label in classifier.classes_]
    codes = np.searchsorted(classes, test.labels)
    measured = evaluate(codes, probabilities, classes)
    Results(job.out).keep_probabilities(job.digest, probabilities, codes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
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
        "cost": _cost(job.identity, to_train[1], to_predict[1]),
        "seconds_to_fit": round(fitted - started, 3),
        "seconds_to_predict": round(predicted - fitted, 3),
        "peak_mb": round(peak) if method.needs == "gradients" else None,
        "prompts": [p.template for p in getattr(classifier, "prompts_", [])] or None,
    }


def _cost(identity: BackendIdentity | None, *tokens: int | None) -> float | None:
    """US dollars, None where a price or a count is unknown."""
    if identity is None:
        return 0.0
    price = price_of(identity)
    if price is None or None in tokens:
        return None
    return price.of(sum(n or 0 for n in tokens), 0)
