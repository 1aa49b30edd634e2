"""Run `blackbox predict --ray` on a cluster of two nodes on this machine, and kill parts of it.

    python -m eval.perf.cluster equal|killed|removed|budget|nodes|lm|spark|million [--rows N]

The offline stand-in, which can also sleep, writes down every pass it makes, so that what was
computed again can be counted. A node is a set of processes with four logical cores. `equal`
compares with `blackbox predict`, byte for byte; `killed` and `removed` kill the command, or remove
a node, at three seeded points; `budget` stops it twice; `nodes` compares two nodes with one; `lm`
runs the embedded LM in two actors, and in one process with two threads; `spark` runs the actors'
class on Spark (`pip install pyspark`, and Java 17); `million` is about time and memory.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import pyarrow as pa
import pyarrow.parquet as pq

from backends.deterministic import DeterministicBackend
from blackbox.cli.lm_options import LmOptions
from blackbox.cluster.predictor import Predictor
from blackbox.model.columns import PredictionColumns
from blackbox.model.file import read_model
from blackbox.protocol import RenderedPrompt, TokenLogProbs
from blackbox.tables import TableReader, TableWriter

__all__ = [
    "ON_EACH",
    "CountingBackend",
    "Job",
    "add_node",
    "all_nodes",
    "nodes",
    "processes",
    "remove_node",
]

ROOT = Path(__file__).parents[2]

ON_EACH = ("--actor-resource", "seat=1")
"""Options of the command, by which no node has two actors."""

_FILES = 20
# with one core, nothing starts; a seat is for one actor
_NODE = {"num_cpus": 4, "object_store_memory": 300_000_000, "resources": {"seat": 1}}
_SAMPLED = 5.0  # seconds between two looks at the processes of a large job
_PRIVATE = "RssAnon", "RssFile"
_ACTOR = "ray::MapWorker(MapBatches(Worker"  # the title of an actor's process


class CountingBackend(DeterministicBackend):
    """The offline stand-in, which writes down its passes, and may take its time.

    Parameters
    ----------
    passes : str
        A folder; each process has a file in it, with a byte for each pass.
    seconds : float
        That a call of 64 passes sleeps.
    dies : str
        A file: the first process that starts without it writes it, and kills itself.
    """

    def __init__(
        self, passes: str, seconds: float = 0.0, dies: str = "", model: str | None = None
    ) -> None:
        super().__init__()
        if dies:
            with suppress(FileExistsError):
                Path(dies).touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        self._file = Path(passes, uuid4().hex)
        self._seconds = seconds

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """See `BaseBackend`."""
        time.sleep(self._seconds * len(prompts) / 64)
        answers = super().next_token(prompts, top_k)
        with self._file.open("a") as file:
            file.write("x" * answers.usage.passes_made)
        return answers


@contextmanager
def nodes(number: int = 2) -> Iterator[Any]:
    """Run a cluster of some nodes on this machine.

    Yields
    ------
    ray.cluster_utils.Cluster
        Its `address` is for `--ray`.
    """
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # as that of what it is compared with
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    from ray.cluster_utils import Cluster

    settings = {**_NODE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    try:
        for _ in range(number - 1):
            add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()


class Job:
    """A table, a model of two prompts, and the command that predicts the one with the other.

    Parameters
    ----------
    folder : Path
        Where all of it lies.
    n_rows : int
        Rows of the table.
    block_rows : int
        Rows of a block.
    """

    prompts = 2

    def __init__(self, folder: Path, n_rows: int, block_rows: int) -> None:
        # actors import this module, and need no scikit-learn
        from eval.perf.service import make_texts, train_model

        self.folder, self.n_rows, self.block_rows = folder, n_rows, block_rows
        self.model = train_model(folder, self.prompts)
        texts, _ = make_texts(5000, seed=1)
        (folder / "data").mkdir()
        for part in range(_FILES):
            numbers = range(part * n_rows // _FILES, (part + 1) * n_rows // _FILES)
            rows = pa.table(
                {"id": list(numbers), "text": [f"{texts[n % len(texts)]} {n}" for n in numbers]}
            )
            pq.write_table(rows, folder / "data" / f"part-{part:02}.parquet")

    def arguments(
        self, address: str, out: str, actors: int | str, *more: str, seconds: float = 0
    ) -> list[str]:
        """Return the arguments of `blackbox`; passes are counted in a folder beside the results.

        Parameters
        ----------
        address : str
            Of the cluster.
        out : str
            The name of the folder of results.
        actors : int or str
            Their number, or a range.
        *more : str
            Further options.
        seconds : float
            As for `CountingBackend`.
        """
        passes = self.folder / f"{out}-passes"
        passes.mkdir(exist_ok=True)
        arguments = ["predict", str(self.model), str(self.folder / "data")]
        arguments += ["--out", str(self.folder / out), "--json", "--ray", address]
        arguments += ["--actors", str(actors), "--block-rows", str(self.block_rows)]
        arguments += ["--backend", "eval.perf.cluster:CountingBackend", "--no-store", *more]
        arguments += [f"--backend-option=passes={passes}", f"--backend-option=seconds={seconds}"]
        return arguments

    def command(self, *arguments: Any, **settings: Any) -> Any:
        """Start the prediction on a cluster; see `arguments`."""
        return subprocess.Popen(
            [sys.executable, "-m", "blackbox", *self.arguments(*arguments, **settings)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def passes(self, out: str) -> int:
        """Return the passes that were made for these results."""
        return sum(file.stat().st_size for file in (self.folder / f"{out}-passes").iterdir())

    def n_processes(self, out: str) -> int:
        """Return the number of processes that made passes."""
        return len(list((self.folder / f"{out}-passes").iterdir()))

    def again(self, out: str) -> float:
        """Return the rows that were computed again."""
        return self.passes(out) / self.prompts - self.n_rows

    def wait_for(self, out: str, share: float, process: Any) -> None:
        """Wait until so large a share of the passes is made."""
        wait_until(lambda: self.passes(out) >= share * self.n_rows * self.prompts, process)

    def single(self) -> tuple[bytes, float]:
        """Return the results of `blackbox predict` as CSV, and its seconds."""
        whole, out = self.folder / "all.parquet", self.folder / "single.csv"
        pq.write_table(pq.read_table(self.folder / "data"), whole)
        command = [sys.executable, "-m", "blackbox", "predict", str(self.model), str(whole)]
        started = time.perf_counter()
        subprocess.run(
            [*command, "--out", str(out), "--backend", "deterministic", "--no-store"],
            check=True,
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        return out.read_bytes(), time.perf_counter() - started

    def sorted(self, out: str) -> bytes:
        """Return the results on the cluster as CSV, by the ids of the table."""
        rows = pq.read_table(self.folder / out).sort_by("id")
        rows = rows.drop_columns(list({"row_id"} & {*rows.column_names}))
        whole = self.folder / f"{out}.parquet"
        pq.write_table(rows, whole)
        target = self.folder / f"{out}.csv"
        with TableReader(whole) as reader, TableWriter(target, reader.columns) as writer:
            for row in reader:
                writer.write({}, row)
        return target.read_bytes()


def wait_until(is_true: Callable[[], bool], process: Any) -> None:
    """Wait until something is true, or a process has ended."""
    while not is_true() and process.poll() is None:
        time.sleep(0.02)


def finished(process: Any, expected: int = 0) -> dict[str, Any]:
    """Wait for a command; return what it printed."""
    out, err = process.communicate()
    if process.returncode != expected:
        raise click.ClickException(f"it ended with {process.returncode}: {err[-2000:]}")
    found: dict[str, Any] = json.loads(out) if expected == 0 else {"error": err.splitlines()[-1]}
    return found


def equal(job: Job) -> str:
    """Compare the rows of a cluster with those of one process."""
    alone, seconds = job.single()
    with nodes() as cluster:
        told = finished(job.command(cluster.address, "out", 2))
    same = job.sorted("out") == alone
    assert same, "the results differ"
    again = job.again("out")
    assert again == 0, f"{again} rows computed again"
    return (
        f"{job.n_rows:,} rows are the same bytes; {told['usage']['seconds_total']:.0f} s on the "
        f"cluster, {seconds:.0f} s in one process"
    )


def killed(job: Job, points: Sequence[float], actors: int = 2) -> str:
    """Kill the command at some shares of its passes; the last run goes to the end."""
    with nodes() as cluster:
        for point in sorted(points):
            process = job.command(cluster.address, "killed", actors, seconds=0.02)
            job.wait_for("killed", point, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        finished(job.command(cluster.address, "killed", actors))
    return _checked(job, "killed", len(points), actors)


def removed(job: Job, points: Sequence[float], actors: int = 2) -> str:
    """Remove a node at some shares of the passes of a run, and add another."""
    with nodes() as cluster:
        process = job.command(cluster.address, "removed", actors, *ON_EACH, seconds=0.02)
        n_lost = 0
        for point in sorted(points):
            job.wait_for("removed", point, process)
            n_lost += remove_node(cluster)
            add_node(cluster)
        told = finished(process)
    return (
        f"{_checked(job, 'removed', len(points), actors)}; {n_lost} actors died with their nodes, "
        f"{told['restarts']} restarts of the job"
    )


def _checked(job: Job, out: str, times: int, actors: int) -> str:
    again, most = job.again(out), times * actors * job.block_rows
    assert job.sorted(out) == job.single()[0], "the results differ"
    assert again <= most, f"{again} rows computed again, more than {most}"
    return f"{out} {times} times: the same bytes, {again:.0f} rows again, at most {most} allowed"


def budget(job: Job, shares: Sequence[float] = (0.25, 0.5)) -> str:
    """Run with budgets that don't hold the whole, and then without one."""
    total = job.n_rows * job.prompts
    lines: list[str] = []
    with nodes() as cluster:
        for share in shares:
            before, most = job.passes("budget") if lines else 0, int(share * total)
            limit = ["--max-forward-passes", str(most)]
            told = finished(job.command(cluster.address, "budget", 2, *limit), expected=3)
            made = job.passes("budget") - before
            assert made <= most, f"{made} passes, more than {most}"
            assert "budget" in told["error"]
            lines.append(f"{made:,} of {most:,}")
        finished(job.command(cluster.address, "budget", 2))
    assert job.sorted("budget") == job.single()[0], "the results differ"
    return f"passes made of those allowed: {', '.join(lines)}; the last run had the rest"


def two_nodes(job: Job, seconds: float = 1.0) -> str:
    """Compare the rates of one node and two, an actor each, on an LM that sleeps.

    The start of a job, until the first pass, is the same for both.
    """
    seen: list[tuple[float, float]] = []
    for number in (1, 2):
        with nodes(number) as cluster:
            out = f"nodes{number}"
            began = time.perf_counter()
            process = job.command(cluster.address, out, number, *ON_EACH, seconds=seconds)
            job.wait_for(out, 1e-9, process)
            start = time.perf_counter() - began
            finished(process)
            seen.append((start, time.perf_counter() - began - start))
    (start_one, one), (start_two, two) = seen
    ratio = (start_one + one) / (start_two + two)
    return (
        f"rows a minute from the first pass on: {60 * job.n_rows / one:.0f} on one node, "
        f"{60 * job.n_rows / two:.0f} on two: × {one / two:.2f}; with the start of "
        f"{start_one:.0f} and {start_two:.0f} s × {ratio:.2f}"
    )


def embedded(job: Job) -> str:
    """Compare two actors, one core each, with one process of two threads, on the embedded LM."""
    model, data = job.folder / "lm.blackbox", job.folder / "data"
    sample = ROOT / "blackbox" / "samples" / "train.csv"
    blackbox: list[str | Path] = [sys.executable, "-m", "blackbox"]
    more = ["--embeddings", "none", "--no-store"]
    subprocess.run([*blackbox, "train", sample, "--out", model, *more], check=True, cwd=ROOT)
    pq.write_table(pq.read_table(data), job.folder / "all.parquet")
    alone = [*blackbox, "predict", model, job.folder / "all.parquet", "--out", job.folder / "x.csv"]
    told = json.loads(
        subprocess.run(
            [*alone, "--no-store", "--json"], check=True, cwd=ROOT, stdout=subprocess.PIPE
        ).stdout
    )
    single = 60 * told["rows"] / told["usage"]["seconds_total"]
    with nodes(1) as cluster:
        ray = ["--ray", cluster.address, "--actors", "2", "--block-rows", str(job.block_rows)]
        command = [*blackbox, "predict", model, data, "--out", job.folder / "lm", *ray]
        told = json.loads(
            subprocess.run(
                [*command, "--no-store", "--json"], check=True, cwd=ROOT, stdout=subprocess.PIPE
            ).stdout
        )
    return (
        f"rows a minute: {single:.0f} in one process, {told['rows_per_minute']:.0f} in two actors"
    )


def million(job: Job) -> str:
    """Watch the memory of the actors of a large job, and compare its time."""
    seen: dict[int, list[tuple[float, float]]] = {}
    with nodes() as cluster:
        process = job.command(cluster.address, "million", 2)
        while process.poll() is None:
            for pid in (process.pid, *processes(all_nodes(cluster), _ACTOR)):
                with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                    seen.setdefault(pid, []).append((private_memory(pid), seconds_of_work(pid)))
            time.sleep(_SAMPLED)
        told = finished(process)
    driver, *others = seen.values()
    actors = [some for some in others if len(some) > 10]
    memory = "; ".join(
        f"{some[len(some) // 10][0]:.0f}, {some[len(some) // 2][0]:.0f} and {some[-1][0]:.0f}, "
        f"{max(one for one, _ in some):.0f} at most"
        for some in actors
    )
    work = ", ".join(f"{some[-1][1]:.0f}" for some in (driver, *actors))
    on_cluster = (
        f"{told['rows']:,} rows in {told['usage']['seconds_total']:.0f} s on the cluster, where "
        f"driver and actors had a core for {work} s; MB of the actors after a tenth, in the middle "
        f"and at the end: {memory}"
    )
    click.echo(on_cluster)
    before = os.times()
    _, alone = job.single()
    after = os.times()
    work_alone = sum(after[2:4]) - sum(before[2:4])
    return f"{alone:.0f} s in one process, which had a core for {work_alone:.0f} s"


def spark(job: Job) -> str:
    """Run the actors' class in Spark's `mapInArrow`; compare with `blackbox predict`."""
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    from pyspark.sql import SparkSession
    from pyspark.sql.types import DoubleType, LongType, StringType, StructType

    columns = PredictionColumns(read_model(job.model), text_columns=("text",))
    lm, path, block_rows = LmOptions("deterministic"), job.model, job.block_rows

    def predict(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        predictor = Predictor(columns, lm, path, store=False)
        for batch in batches:
            yield from predictor(pa.Table.from_batches([batch])).to_batches()

    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", str(block_rows))
        .getOrCreate()
    )
    try:
        frame = session.read.parquet(str(job.folder / "data"))
        kinds = {str: StringType(), float: DoubleType(), int: LongType(), list: StringType()}
        schema = StructType([*frame.schema.fields])  # `add` would change the frame's own
        for name, kind in columns.types.items():
            schema = schema.add(name, kinds[kind])
        started = time.perf_counter()
        frame.mapInArrow(predict, schema).write.parquet(str(job.folder / "spark"))
        seconds = time.perf_counter() - started
    finally:
        session.stop()
    same = job.sorted("spark") == job.single()[0]
    assert same, "the results differ"
    return f"{job.n_rows:,} rows are the same bytes, in {seconds:.0f} s"


def private_memory(pid: int) -> float:
    """Return the resident memory of a process in MB, without what it shares as an object store."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in _PRIVATE) / 1000


def seconds_of_work(pid: int) -> float:
    """Return the seconds in which a process had a core."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def add_node(cluster: Any) -> None:
    """Add a node to a cluster."""
    cluster.add_node(**_NODE)


def remove_node(cluster: Any) -> int:
    """Kill the newest node of a cluster; return the number of actors that die with it."""
    node = list(cluster.worker_nodes)[-1]
    n_actors = len(processes([node], _ACTOR))
    cluster.remove_node(node, allow_graceful=False)
    return n_actors


def all_nodes(cluster: Any) -> list[Any]:
    """Return the nodes of a cluster."""
    return [cluster.head_node, *cluster.worker_nodes]


def processes(nodes: Sequence[Any], name: str) -> list[int]:
    """Return the ids of the processes of some nodes whose titles begin with a name."""
    raylets = {info.process.pid for node in nodes for info in node.all_processes["raylet"]}
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,args="], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    rows = (line.split(maxsplit=2) for line in listed.splitlines())
    return [int(row[0]) for row in rows if int(row[1]) in raylets and row[2].startswith(name)]


_RUNS: dict[str, tuple[Callable[[Job], str], int, int]] = {
    "equal": (equal, 100_000, 1000),
    "killed": (lambda job: killed(job, _points()), 100_000, 1000),
    "removed": (lambda job: removed(job, _points()), 100_000, 1000),
    "budget": (budget, 100_000, 1000),
    "nodes": (two_nodes, 20_000, 100),
    "lm": (embedded, 1_000, 50),
    "spark": (spark, 2_000, 250),
    "million": (million, 1_000_000, 5000),
}


def _points(seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [rng.uniform(0.1, 0.9) for _ in range(3)]


@click.command()
@click.argument("run", type=click.Choice(list(_RUNS)))
@click.option("--rows", type=int, help="Rows of the table.")
@click.option("--block-rows", type=int, help="Rows of a block.")
def main(run: str, rows: int | None, block_rows: int | None) -> None:
    """Print what a run shows."""
    function, usual_rows, usual_block = _RUNS[run]
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), rows or usual_rows, block_rows or usual_block)
        started = time.perf_counter()
        said = function(job)
        click.echo(f"{run}: {said} ({time.perf_counter() - started:.0f} s in all)")


if __name__ == "__main__":
    main()
