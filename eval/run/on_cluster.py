"""Run the cells of a configuration on a Ray cluster.

The passes that cells share are made by actors with an LM each, and go into the store of this
machine as they come. Cells that need no engine are tasks, to which their answers are shipped.
Cells with requests of their own are computed here, as without a cluster.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext
from ray.exceptions import RayError, RayTaskError
from tqdm import tqdm

from blackbox.backend import BaseBackend
from blackbox.cluster.actor import Actor, store_here, with_rate_share
from blackbox.cluster.collector import collected
from blackbox.cluster.job import Actors, raise_ours, start_ledger, survive, through_actors
from blackbox.lm.meter import Budget
from blackbox.store.exchange import import_answers
from eval.run.cell_pool import CellOrReason, CellPool
from eval.run.cells import compute_from_answers
from eval.run.charging import KnownCounts, Shipment, ShippedAnswers
from eval.run.configuration import Lm
from eval.run.jobs import Job, load_lm
from eval.run.runner import Runner, requests_of
from eval.run.speeds import LmWork

__all__ = ["ClusterRunner"]


class ClusterRunner(Runner):
    """Runner on the cluster that Ray is connected to.

    Parameters
    ----------
    out, data_dir, store
        As for `Runner`. Every machine has `data_dir` and this checkout at the same paths; `out` and
        `store` are of this one only.
    actors : Actors
        The actors that make passes.
    n_cpus : int or None
        Cores that the engine in one may use.
    """

    def __init__(
        self,
        out: Path,
        data_dir: Path | None,
        store: Path | None,
        actors: Actors,
        n_cpus: int | None,
    ) -> None:
        super().__init__(out, data_dir, store)
        self._actors, self._n_cpus = actors, n_cpus

    def _make_shared_passes(self, jobs: list[Job]) -> None:
        """Make the forward passes that cells share, on the actors, and record their speed."""
        DataContext.get_current().enable_progress_bars = False  # there is one already
        stored = self._stored(jobs)
        ledger = start_ledger(Budget(), self._actors)
        lm = jobs[0].cell.lm
        lm = replace(lm, options=with_rate_share(lm.options, self._actors.most))
        settings = {"ledger": ledger, "n_cpus": self._n_cpus, "store": False}
        work = dict[str, LmWork]()
        n_done = Counter[str]()

        def attempt() -> None:
            requests = _as_table(self._missing(stored, jobs))
            arguments = (lm, Path.cwd(), settings)
            made = through_actors(ray.data.from_arrow(requests), Asker, arguments, self._actors)
            with tqdm(total=len(requests), desc="passes", leave=False) as bar:
                for block in made if len(requests) else ():
                    for some in block.to_pylist():
                        import_answers(stored.store, pa.ipc.open_stream(some["answers"]).read_all())
                        for kind, given in json.loads(some["work"]):
                            work[kind] = work.get(kind, LmWork()) + LmWork(**given)
                        bar.update(some["requests"])
                        n_done["requests"] += some["requests"]

        survive(attempt, n_done.total, lambda error: raise_ours(error, ledger))
        for kind, done in work.items():
            self._speeds.record(stored.identity.digest(), kind, done)

    def _cell_pool(self) -> CellPool:
        """Return what computes cells that need no engine, as tasks."""
        return _Tasks(self._shipment)

    def _shipment(self, jobs: list[Job]) -> Shipment | None:
        """Return the answers that some cells read; None if they ask no LM."""
        if jobs[0].identity is None or jobs[0].limits is None:
            return None
        stored = self._stored(jobs)
        shipment = Shipment(jobs[0].identity, jobs[0].limits, {}, {}, {})
        wanted: dict[int, dict[Any, None]] = {}
        for (top_k, _), requests in requests_of(jobs).items():
            k = min(top_k, stored.limits.max_top_k)
            wanted.setdefault(k, {}).update(dict.fromkeys(requests))
        for top_k, distinct in wanted.items():
            requests = list(distinct)
            known = [requests[row] for row in stored.known_rows(requests, top_k)]
            shipment.requests[top_k] = known
            shipment.answers[top_k] = stored.next_token(known, top_k)
            shipment.tokens.update(self._counts.count_each(stored, known) or {})
        return shipment


class Asker(Actor):
    """An actor that asks an LM requests, and returns its answers as an export.

    Parameters
    ----------
    lm : Lm
        The LM.
    folder : Path
        The folder of the checkout.
    settings : dict
        Of `Actor`.
    """

    def __init__(self, lm: Lm, folder: Path, settings: dict[str, Any]) -> None:
        os.chdir(folder)
        super().__init__([partial(load_lm, lm)], **settings)

    def _work(self, table: Any) -> tuple[Any, dict[str, int], str]:
        answers, work = collected(self._lms[0], partial(_ask, rows=table.to_pylist()))
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, answers.schema) as writer:
            writer.write_table(answers)
        made = {
            "answers": [stream.getvalue().to_pybytes()],
            "work": [json.dumps(work)],
            "requests": [table.num_rows],
        }
        return pa.table(made), {"rows": table.num_rows}, ""

    def _nothing(self, table: Any) -> Any:
        return pa.table({"answers": [], "work": [], "requests": []})


def _as_table(missing: Iterator[tuple[str, int, list[Any]]]) -> Any:
    """Return requests as a table of Arrow."""
    rows = [
        {"kind": kind, "top_k": top_k, "request": pickle.dumps(request)}
        for kind, top_k, requests in missing
        for request in requests
    ]
    types = [("kind", pa.string()), ("top_k", pa.int64()), ("request", pa.binary())]
    return pa.Table.from_pylist(rows, pa.schema(types))


def _ask(lm: BaseBackend, rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Ask an LM requests; return its work, by their kind."""
    work = []
    for (kind, top_k), some in groupby(rows, itemgetter("kind", "top_k")):
        before = lm.usage
        lm.next_token([pickle.loads(row["request"]) for row in some], top_k)  # noqa: S301
        work.append((kind, asdict(LmWork.between(before, lm.usage))))
    return work


def _compute_shipped(
    job: Job, shipment: Shipment | None, folder: Path, driver_host: str
) -> CellOrReason | None:
    """Compute a cell on any machine; sentence embeddings are kept in a file of its own."""
    os.chdir(folder)
    store = store_here(job.store, driver_host)
    assert isinstance(store, Path)
    store.parent.mkdir(parents=True, exist_ok=True)
    answers = ShippedAnswers(shipment) if shipment else None
    counts = KnownCounts(shipment.tokens if shipment else {})
    return compute_from_answers(replace(job, store=store), answers, counts)


class _Tasks(CellPool):
    """Cells that need no engine, as tasks of the cluster.

    Parameters
    ----------
    shipment : callable
        From cells of one data set to the answers that they read.
    """

    def __init__(self, shipment: Callable[[list[Job]], Shipment | None]) -> None:
        super().__init__(1)
        self._shipment = shipment

    def add(self, jobs: Sequence[Job]) -> None:
        of_data: dict[str, list[Job]] = {}
        for job in jobs:
            of_data.setdefault(job.cell.data, []).append(job)
        task = ray.remote(_compute_shipped)
        place = Path.cwd(), socket.gethostname()
        for some in of_data.values():
            shipment = ray.put(self._shipment(some))
            self._waiting |= {task.remote(job, shipment, *place).future(): job for job in some}

    def _outcome(self, job: Job, future: Future[Any]) -> CellOrReason | None:
        try:
            return super()._outcome(job, future)
        except RayTaskError:
            raise
        except RayError as error:
            return f"{job}: its process ended: {str(error).strip().splitlines()[0]}"
