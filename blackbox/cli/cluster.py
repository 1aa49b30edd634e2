"""Commands on a Ray cluster: their options, and what they say at the end."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from blackbox.cli import common
from blackbox.cli.help import option
from blackbox.cli.lm_options import LmOptions
from blackbox.cli.options import JOB_FOLDER, FiniteRange, together
from blackbox.cli.spending_options import SpendingOptions
from blackbox.plurals import counted

__all__ = [
    "ClusterOptions",
    "cluster_options",
    "predict_on_cluster",
    "run_on_cluster",
    "say_job",
]

F = TypeVar("F", bound=Callable[..., Any])

_ADVANCED = ("actors", "actor_cpus", "actor_gpus", "actor_resource", "block_rows")


class ClusterOptions:
    """The cluster that a command was told to use, and the actors on it.

    Parameters
    ----------
    address : str
        As for `blackbox.cluster.connection.check_address`.
    actors : tuple of int, optional
        The least and the most actors.
    cpus, gpus : float
        What each of them needs.
    resources : dict of str to float
        And of resources with names.
    block_rows : int
        Rows of a block.
    """

    def __init__(
        self,
        address: str,
        actors: tuple[int, int] | None,
        cpus: float,
        gpus: float,
        resources: dict[str, float],
        block_rows: int,
    ) -> None:
        self.address = address
        self._actors = actors
        self._needs = {"CPU": cpus, "GPU": gpus, **resources}
        self.cpus, self.gpus, self._resources = cpus, gpus, resources
        self.block_rows = block_rows

    def check(self) -> None:
        """Raise where no cluster can be reached, before one is started."""
        from blackbox.cluster.connection import check_address

        check_address(self.address)

    def n_actors(self) -> int:
        """Return the most actors that were asked for; 1 if no number was."""
        return self._actors[1] if self._actors else 1

    def n_cpus(self) -> int | None:
        """Return the cores that an engine in an actor may use; None where a GPU does the work."""
        return None if self.gpus else max(1, int(self.cpus))

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Connect to the cluster; yields the `Actors` that fit on it."""
        from blackbox.cluster.connection import LOCAL, connected

        with connected(self.address) as ray:
            from blackbox.cluster.job import Actors

            fit = self._that_fit(ray.cluster_resources(), 2 if self.address == LOCAL else 1)
            least, most = self._actors or (1, fit)
            if least > fit:
                raise click.UsageError(
                    f"--actors {least}: only {fit} fit on the cluster, beside a core that reads "
                    "and writes; name fewer, or less for each (--actor-cpus, --actor-gpus)"
                )
            yield Actors(least, most, self.cpus, self.gpus, self._resources, self.block_rows)

    def _that_fit(self, resources: dict[str, float], beside: int) -> int:
        """Return how many actors there is room for, beside cores that read and write."""
        has = {**resources, "CPU": resources.get("CPU", 0) - beside}
        fits = [int(has.get(name, 0) / need) for name, need in self._needs.items() if need]
        return min(fits, default=1)


def _numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    if value is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", value)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (2, 1)
    if least > most:
        raise click.BadParameter(f"{value!r} is no number such as 8, nor a range such as 2-16")
    return least, most


def _amounts(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> dict[str, float]:
    amounts = {}
    for pair in value:
        name, _, amount = pair.partition("=")
        try:
            amounts[name] = float(amount)
        except ValueError:
            raise click.BadParameter(f"{pair!r} is no NAME=AMOUNT") from None
    return amounts


_REACHED = "DATA is a file or a folder, and --out a folder, that all of its machines reach."

_add_others = together(
    option(
        "--actors",
        metavar="N|MIN-MAX",
        callback=_numbers,
        group="Cluster",
        advanced=True,
        help="Number of actors, each with an LM.  [default: 1 to as many as fit]",
    ),
    option(
        "--actor-cpus",
        type=FiniteRange(min=0),
        default=1.0,
        show_default=True,
        metavar="N",
        group="Cluster",
        advanced=True,
        help="Processor cores of an actor.",
    ),
    option(
        "--actor-gpus",
        type=FiniteRange(min=0),
        default=0.0,
        show_default=True,
        metavar="N",
        group="Cluster",
        advanced=True,
        help="GPUs of an actor.",
    ),
    option(
        "--actor-resource",
        multiple=True,
        metavar="NAME=AMOUNT",
        callback=_amounts,
        group="Cluster",
        advanced=True,
        help="Another resource of the cluster that an actor needs; can be repeated.",
    ),
    option(
        "--block-rows",
        type=click.IntRange(min=1),
        default=1_000,
        show_default=True,
        metavar="R",
        group="Cluster",
        advanced=True,
        help="Rows that an actor works on at a time, and that are computed again if it dies.",
    ),
)


def _ray_option(reached: str) -> Callable[[F], F]:
    return option(
        "--ray",
        "address",
        is_flag=False,
        flag_value="local",
        metavar="[ADDRESS]",
        group="Cluster",
        help="Run on a Ray cluster: HOST:PORT of its head node, ray://HOST:PORT, or auto for the "
        f"cluster of this machine. Without ADDRESS, one is started on this machine. {reached}",
    )


def cluster_options(function: F, reached: str = _REACHED) -> F:
    """Add the options of a cluster; the command gets them as `cluster`, None without `--ray`.

    Parameters
    ----------
    function : callable
        The command.
    reached : str
        What every machine of the cluster has to reach, for the help.
    """

    @functools.wraps(function)
    def collected(
        *args: Any,
        address: str | None,
        actors: tuple[int, int] | None,
        actor_cpus: float,
        actor_gpus: float,
        actor_resource: dict[str, float],
        block_rows: int,
        **kwargs: Any,
    ) -> Any:
        cluster = None
        if address is not None:
            cluster = ClusterOptions(
                address, actors, actor_cpus, actor_gpus, actor_resource, block_rows
            )
        else:
            _refuse_without_ray(click.get_current_context())
        return function(*args, cluster=cluster, **kwargs)

    return cast(F, _ray_option(reached)(_add_others(collected)))


def _refuse_without_ray(ctx: click.Context) -> None:
    source = click.core.ParameterSource.COMMANDLINE
    for name in _ADVANCED:
        if ctx.get_parameter_source(name) is source:
            raise click.UsageError(f"--{name.replace('_', '-')} is for a cluster: add --ray")


def predict_on_cluster(
    cluster: ClusterOptions,
    columns: Any,
    model_path: Path,
    source: Any,
    out: str,
    lm: LmOptions,
    spending: SpendingOptions,
) -> Any:
    """Run a prediction on a cluster; return what was done, as a `Finished`.

    Parameters
    ----------
    cluster, lm, spending
        Options of the command.
    columns : PredictionColumns
        What it adds.
    model_path : Path
        The model's file.
    source : SourceTable
        The table.
    out : str
        The folder of the results.
    """
    import json

    from blackbox.cluster.folder import digest_of
    from blackbox.cluster.source import ROW_ID
    from blackbox.model.file import model_file
    from blackbox.tables.messages import public

    names = source.schema.names[:-1]
    common.refuse_taken([*columns.types, ROW_ID], names, public(source.data))
    promise = columns.promise
    job = {
        "model": digest_of(model_file(model_path)),
        "columns": json.dumps(
            [columns.text_columns, columns.fill, list(columns.types), columns.early_stop]
        ),
        "--max-error": str(promise and promise.max_error),
        "--sets": str(columns.set_coverage),
        "--on-row-error": str(columns.on_row_error),
    } | lm.described(columns.model, model_path)

    def work(n_actors: int) -> tuple[type, dict[str, Any]]:
        from blackbox.cluster.predictor import Predictor

        connector = lm.shared_by(n_actors)
        return Predictor, {"columns": columns, "connector": connector, "path": model_path}

    return run_on_cluster(cluster, job, source, out, spending, work)


def run_on_cluster(
    cluster: ClusterOptions,
    job: dict[str, str],
    source: Any,
    out: str,
    spending: SpendingOptions,
    work: Callable[[int], tuple[type, dict[str, Any]]],
) -> Any:
    """Run a job; return what was done, as a `Finished`. What can be known to fail does so first.

    Parameters
    ----------
    cluster, spending
        Options of the command.
    job : dict of str to str
        What decides the results; see `JobFolder.claim`.
    source : SourceTable
        The table.
    out : str
        The folder of the results.
    work : callable
        Returns the class of the actors and its arguments, from their number.
    """
    import socket

    from blackbox.cluster.folder import JobFolder
    from blackbox.lm.meter import Budget

    cluster.check()
    folder = JobFolder(out)
    if source.takes(out):
        raise click.UsageError(
            f"--out {folder.shown}: inside DATA, whose tables its files would be; name a folder "
            'elsewhere, or one that begins with "_"'
        )
    job = job | {
        "--format": str(source.format),
        "--delimiter": str(source.delimiter),
        "--encoding": str(source.encoding),
    }
    folder.claim(job, {source.name(path): state for path, state in source.files.items()})
    click.get_current_context().meta[JOB_FOLDER] = folder.shown
    limits = spending.parameters()
    store, budget = limits.pop("store"), Budget(**limits)
    with cluster.connected() as actors:
        from blackbox.cluster.job import run

        actor, settings = work(actors.most)
        settings |= {
            "table": source.example,
            "store": getattr(store, "path", store),
            "store_max_bytes": getattr(store, "max_bytes", None),
            "n_cpus": cluster.n_cpus(),
            "driver_host": socket.gethostname(),
        }
        return run(source, folder, actor, settings, actors, budget, _say_beside_bar)


def _say_beside_bar(line: str) -> None:
    """Print a line on standard error, above the bar that Ray may draw there."""
    from ray.experimental.tqdm_ray import safe_print

    safe_print(line, file=sys.stderr, flush=True)


def say_job(finished: Any, out: str, as_json: bool) -> None:
    """Print what a job did: rows, passes, money, and rows a minute."""
    from blackbox.tables.messages import public

    progress = finished.progress
    usage = replace(progress.usage, seconds_total=finished.seconds)
    rate = 60 * finished.rows / max(finished.seconds, 1e-9)
    if as_json:
        counts = {"rows": finished.rows, "abstained": progress.counts.get("abstained", 0)}
        common.echo_json(
            counts
            | {"rows_per_minute": round(rate, 1), "restarts": finished.restarts, "out": public(out)}
            | {"usage": usage.as_dict()}
        )
        return
    common.say(f"{counted(finished.rows, 'row')} written to {public(out)}, {rate:,.0f} a minute")
    if finished.restarts:
        common.say(f"went on {counted(finished.restarts, 'time')} after the death of an actor")
    for name, what in (("withheld", "left to a person"), ("truncated", "truncated")):
        if progress.counts.get(name):
            common.say(f"{counted(progress.counts[name], 'row')} {what}")
    if progress.failure:
        n = progress.counts.get("abstained", 0)
        common.say(f"warning: {counted(n, 'row')} without a prediction, such as {progress.failure}")
    common.say_usage(usage)
