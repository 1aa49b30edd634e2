"""Run the cells of a configuration, and write each as it is finished.

First the passes that cells share are made, one data set at a time. Then cells with requests of
their own run one after another in the engine's process, while all others, whose answers are in the
store by now, run in parallel processes without an engine.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from blackbox.errors import BackendError, DataError
from blackbox.files import write_whole
from blackbox.protocol import RenderedPrompt
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.data.duplicates import find_duplicates
from eval.methods import METHODS
from eval.run.cell_pool import KILLED, CellOrReason, CellPool, end_with_parent
from eval.run.cells import compute_cell
from eval.run.charging import shared_token_counts
from eval.run.configuration import Configuration
from eval.run.jobs import (
    Job,
    load_data,
    load_lm,
    make_job,
    passes_key,
    pool_requests,
    speed_key,
)
from eval.run.results import Results
from eval.run.speeds import LmWork, Speeds

__all__ = ["Runner", "requests_of"]


class Runner:
    """Runner of configurations, with one folder of results.

    Parameters
    ----------
    out : Path
        The folder: `cells.jsonl`, probabilities, the store unless another is given.
    data_dir : Path or None
        Folder of local data sets.
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
        self._counts = shared_token_counts(out / "tokens.sqlite")
        self._speeds = Speeds(self.store)

    def jobs(self, configuration: Configuration) -> list[Job]:
        """Return the cells of a configuration, in its order, before anything is paid.

        Raises
        ------
        DataError, PromptError, BackendError
            If a data set, a pool or an LM can't be had.
        """
        return [
            make_job(cell, configuration, self.data_dir, self.out, self.store)
            for cell in configuration.cells()
        ]

    def duplicates(self, configuration: Configuration) -> dict[str, str]:
        """Return the duplicates of each data set, searched once per results folder."""
        cache = self.out / "duplicates.json"
        known: dict[str, str] = json.loads(cache.read_text("utf-8")) if cache.exists() else {}
        found = {}
        for name in dict.fromkeys(cell.data for cell in configuration.cells()):
            data = load_data(name, self.data_dir)
            digest = data.digest()
            if digest not in known:
                known[digest] = str(find_duplicates(data))
                write_whole(cache, f"{json.dumps(known, indent=1)}\n".encode(), DataError)
            found[name] = known[digest]
        return found

    def run(self, jobs: list[Job]) -> list[dict[str, Any]]:
        """Compute the missing cells; return all, in the order of the jobs.

        Raises
        ------
        DataError
            If a cell has no figures, as the LM refused a row of it; all others were written.
        BackendError
            If the LM can't be reached any more.
        """
        known = self.results.cells()
        missing = [job for job in jobs if job.digest not in known]
        failed = []
        with tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc="cells") as bar:

            def save(job: Job, found: CellOrReason) -> None:
                if isinstance(found, str):
                    failed.append(found)
                else:
                    self.results.write_probabilities(job.digest, *found.pop("predicted"))
                    self.results.append(self._add_lm_seconds(job, found))
                bar.update()

            for lm in dict.fromkeys(job.cell.lm.name for job in missing):
                self._run_lm([job for job in missing if job.cell.lm.name == lm], bar, save)
        if failed:
            raise DataError(
                f"{len(failed)} of {len(jobs)} cells have no figures, the others are written: "
                f"{failed[0]}"
            )
        known = self.results.cells()
        return [known[job.digest] for job in jobs]

    def _run_lm(self, jobs: list[Job], bar: Any, save: Callable[[Job, CellOrReason], None]) -> None:
        """Compute the cells of one LM, and save each when it is finished."""
        of_need: dict[str, list[Job]] = {}
        alone = [job for job in jobs if job.runs_alone]
        for job in jobs:
            if not job.runs_alone:
                of_need.setdefault(METHODS[job.cell.entry.method].needs, []).append(job)
        pool = self._cell_pool()
        again = []

        def collect(finished: Iterator[tuple[Job, CellOrReason | None]]) -> None:
            for job, found in finished:
                if found is None:
                    again.append(job)
                else:
                    save(job, found)

        try:
            pool.add([*of_need.get("nothing", []), *of_need.get("weights", [])])
            pooled = of_need.get("pool", [])
            if pooled:
                bar.set_description("cells (first the passes that they share)")
                self._make_shared_passes(pooled)
                bar.set_description("cells")
            pool.add(pooled)
            for job in [*of_need.get("words", []), *of_need.get("lm", [])]:
                save(job, compute_cell(job, load_lm(job.cell.lm)))
                collect(pool.finished())
            collect(pool.rest())
        except BackendError:
            collect(pool.rest())  # they need no engine
            raise
        finally:  # on Ctrl-C, too
            pool.close()
            collect(pool.finished())
        for job in again:  # a text too long for the context is cut with the LM's own tokenizer
            save(job, compute_cell(job, load_lm(job.cell.lm)))
        for job in alone:
            save(job, _compute_alone(job))

    def _cell_pool(self) -> CellPool:
        """Return what computes cells that need no engine."""
        return CellPool(self.n_jobs)

    def _make_shared_passes(self, jobs: list[Job]) -> None:
        """Make the forward passes that cells share, and record their speed."""
        stored = self._stored(jobs)
        for kind, top_k, requests in self._missing(stored, jobs):
            before = stored.usage
            with tqdm(total=len(requests), desc=f"passes: {kind}", leave=False) as bar:
                for where, _ in stored.iter_next_token(requests, top_k):
                    bar.update(len(where))
            work = LmWork.between(before, stored.usage)
            self._speeds.record(stored.identity.digest(), kind, work)

    def _stored(self, jobs: list[Job]) -> StoredBackend:
        """Return the LM of some cells, behind the store."""
        return StoredBackend(load_lm(jobs[0].cell.lm), open_store(self.store))

    def _missing(
        self, stored: StoredBackend, jobs: list[Job]
    ) -> Iterator[tuple[str, int, list[RenderedPrompt]]]:
        """Yield the passes that cells share and the store lacks: their kind, top k and requests."""
        # the largest answers first: they serve the smaller ones
        wanted = sorted(requests_of(jobs).items(), key=lambda item: -item[0][0])
        asked: set[RenderedPrompt] = set()
        for (top_k, kind), requests in wanted:
            top_k = min(top_k, stored.limits.max_top_k)
            self._counts.count(stored.backend, requests)
            asked |= {requests[row] for row in stored.known_rows(requests, top_k)}
            missing = [request for request in requests if request not in asked]
            asked.update(missing)
            if missing:
                yield kind, top_k, missing

    def _add_lm_seconds(self, job: Job, found: dict[str, Any]) -> dict[str, Any]:
        """Add to a cell the LM's seconds as if all its passes had been made."""
        work = {step: LmWork(**given) for step, given in found.pop("lm_work").items()}
        lm, kind = (job.identity.digest() if job.identity else ""), speed_key(job.cell)
        self._speeds.record(lm, kind, work["train"] + work["predict"])
        seconds = {
            f"lm_seconds_to_{step}": self._speeds.seconds(
                lm, kind, found[f"passes_to_{step}"], work[step]
            )
            for step in ("train", "predict")
        }
        machine = (
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"promptboosting {version('promptboosting')}"
        )
        written = datetime.now(UTC).isoformat(timespec="seconds")
        return found | seconds | {"written": written, "machine": machine}


def requests_of(jobs: list[Job]) -> dict[tuple[int, str], list[RenderedPrompt]]:
    """Return the requests that cells share, by their top k and kind."""
    wanted: dict[tuple[int, str], dict[RenderedPrompt, None]] = {}
    distinct = {passes_key(job.cell): job for job in jobs}  # several methods read the same
    for job in distinct.values():
        requests = wanted.setdefault((job.cell.entry.top_k, speed_key(job.cell)), {})
        requests.update(dict.fromkeys(pool_requests(job)))
    return {key: list(requests) for key, requests in wanted.items()}


def _compute_with_lm(job: Job) -> CellOrReason:
    asks = METHODS[job.cell.entry.method].asks
    return compute_cell(job, load_lm(job.cell.lm) if asks else None)


def _compute_alone(job: Job) -> CellOrReason:
    """Compute a cell in its own process, so that its memory can be measured."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, end_with_parent) as alone:
        try:
            return alone.submit(_compute_with_lm, job).result()
        except BrokenProcessPool:
            return f"{job}: {KILLED}"
