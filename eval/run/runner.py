"""Works through the cells of a configuration, and writes each down as it is finished.

First the passes that cells share are made, one data set at a time, in the engine's favourite order.
Then cells that ask the LM for more run one after another in the engine's process, and all others,
whose answers are in the store by now, meanwhile in parallel processes without one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from tqdm import tqdm

from blackbox.errors import BackendError, DataError
from blackbox.protocol import RenderedPrompt
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.data.data_sets import find_duplicates
from eval.methods import METHODS
from eval.run.cells import (
    Job,
    attempt,
    attempt_stored,
    data_of,
    job_of,
    kind_of,
    pool_requests,
    reach,
    reads,
)
from eval.run.charging import counts_in
from eval.run.configuration import Configuration
from eval.run.results import Results
from eval.run.speeds import Speeds, Spent

__all__ = ["Runner"]

_Found = dict[str, Any] | str
"""A cell's figures, or one line that says why it has none."""


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
        self._counts = counts_in(out / "tokens.sqlite")
        self._speeds = Speeds(self.store)

    def jobs(self, configuration: Configuration) -> list[Job]:
        """The cells of a configuration, in its order, before anything is paid.

        Raises
        ------
        DataError, PromptError, BackendError
            If a data set, a pool or an LM can't be had.
        """
        return [
            job_of(cell, configuration, self.data_dir, self.out, self.store)
            for cell in configuration.cells()
        ]

    def duplicates(self, configuration: Configuration) -> dict[str, str]:
        """For each data set what `find_duplicates` says, found once a folder."""
        kept = self.out / "duplicates.json"
        known: dict[str, str] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
        found = {}
        for name in dict.fromkeys(cell.data for cell in configuration.cells()):
            data = data_of(name, self.data_dir)
            digest = data.digest()
            if digest not in known:
                known[digest] = str(find_duplicates(data))
                kept.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
            found[name] = known[digest]
        return found

    def run(self, jobs: list[Job]) -> list[dict[str, Any]]:
        """Compute what is missing; all cells, in the order of the jobs.

        Raises
        ------
        DataError
            If a cell has no figures, as the LM refused a row of it; all others were written.
        BackendError
            If the LM can't be asked any more.
        """
        known = self.results.cells()
        missing = [job for job in jobs if job.digest not in known]
        failed = []
        with tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc="cells") as bar:
            for lm in dict.fromkeys(job.cell.lm.name for job in missing):
                of_lm = [job for job in missing if job.cell.lm.name == lm]
                for job, found in self._run_lm(of_lm, bar):
                    if isinstance(found, str):
                        failed.append(found)
                    else:
                        self.results.append(self._finished(job, found))
                    bar.update()
        if failed:
            raise DataError(
                f"{len(failed)} of {len(jobs)} cells have no figures, the others are written: "
                f"{failed[0]}"
            )
        known = self.results.cells()
        return [known[job.digest] for job in jobs]

    def _run_lm(self, jobs: list[Job], bar: Any) -> Iterator[tuple[Job, _Found]]:
        """The cells of one LM."""
        of_need: dict[str, list[Job]] = {}
        for job in jobs:
            of_need.setdefault(METHODS[job.cell.entry.method].needs, []).append(job)
        # they begin now, beside the engine, if there are processes for them
        beside = [self._apart(of_need.get("nothing", []))]
        pooled = of_need.get("pool", [])
        try:
            if pooled:
                bar.set_description("cells (first the passes that they share)")
                self._warm(pooled)
                bar.set_description("cells")
            beside.append(self._apart(pooled))
            for job in [*of_need.get("words", []), *of_need.get("lm", [])]:
                yield job, attempt(job, reach(job.cell.lm))
        except BackendError:
            for job, found in chain(*beside):  # they need no engine
                if found is not None:
                    yield job, found
            raise
        again = []
        for job, found in chain(*beside):
            if found is None:
                again.append(job)
            else:
                yield job, found
        for job in again:  # a text too long for the context is cut with the LM's own tokenizer
            yield job, attempt(job, reach(job.cell.lm))
        for job in of_need.get("gradients", []):
            yield job, _alone(job)

    def _apart(self, jobs: list[Job]) -> Iterator[tuple[Job, _Found | None]]:
        """Cells that need no engine, in processes of their own."""
        parallel = Parallel(n_jobs=self.n_jobs, return_as="generator_unordered")
        return iter(parallel(delayed(attempt_stored)(job) for job in jobs))

    def _warm(self, jobs: list[Job]) -> None:
        """Make the passes that cells share, and note what they take."""
        wanted: dict[tuple[int, str], dict[RenderedPrompt, None]] = {}
        asking = {reads(job.cell): job for job in jobs}  # several methods read the same
        for job in asking.values():
            requests = wanted.setdefault((job.cell.entry.top_k, kind_of(job.cell)), {})
            requests.update(dict.fromkeys(pool_requests(job)))
        lm = reach(jobs[0].cell.lm)
        stored = StoredBackend(lm, open_store(self.store))
        # the largest answers first: they serve the smaller ones
        for (top_k, kind), requests in sorted(wanted.items(), key=lambda item: -item[0][0]):
            top_k = min(top_k, lm.limits.max_top_k)
            everything = list(requests)
            self._counts.count(lm, everything)
            held = set(stored.known_rows(everything, top_k))
            todo = [request for row, request in enumerate(everything) if row not in held]
            before = stored.usage
            if todo:
                with tqdm(total=len(todo), desc=f"passes: {kind}", leave=False) as bar:
                    for where, _ in stored.iter_next_token(todo, top_k):
                        bar.update(len(where))
            self._speeds.note(lm.identity.digest(), kind, Spent.between(before, stored.usage))

    def _finished(self, job: Job, found: dict[str, Any]) -> dict[str, Any]:
        """The cell with what its passes would take an LM that has to make all of them."""
        spent = {step: Spent(**given) for step, given in found.pop("spent").items()}
        lm, kind = (job.identity.digest() if job.identity else ""), kind_of(job.cell)
        self._speeds.note(lm, kind, spent["fit"] + spent["predict"])
        return (
            found
            | {
                f"lm_seconds_to_{name}": self._speeds.seconds(
                    lm, kind, found[f"passes_to_{name}"], spent[step]
                )
                for name, step in (("train", "fit"), ("predict", "predict"))
            }
            | {
                "written": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
                f"{platform.python_version()}, promptboosting {version('promptboosting')}",
            }
        )


def _alone(job: Job) -> _Found:
    """In a process of its own, so that its memory can be told."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        try:
            return alone.submit(attempt, job, None).result()
        except BrokenProcessPool:
            return f"{job}: its process was killed; it may have needed more memory than there is"
