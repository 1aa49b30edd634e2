"""The command `python -m eval`: run a configuration, report its results, describe data sets."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from blackbox.cli.cluster import ClusterOptions, cluster_options
from blackbox.cli.common import parse_backend_options
from blackbox.errors import BlackboxError, DataError
from eval.data import data_sets
from eval.data.duplicates import find_duplicates
from eval.run.configuration import Lm
from eval.run.configuration_file import read_configuration

_FOLDER = click.Path(file_okay=False, path_type=Path)
_DATA_DIR = click.option(
    "--data-dir", type=_FOLDER, envvar="BENCHMARK_DATA", help="Where local data sets lie."
)


@click.group()
def main() -> None:
    """Batch evaluation: data sets × methods × LMs × shots × seeds."""


@main.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=_FOLDER, show_default=True)
@_DATA_DIR
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The forward-pass store; by default OUT/passes.sqlite.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default=True,
    help="Processes for cells that need no LM; with --ray as many as the cluster has cores.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="NAME",
    help="Only this data set of the configuration, or those that match, such as 'fifty:*'.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="Only this row of the configuration, or those that match, such as 'ours*'.",
)
@click.option("--backend", help="Another backend than the configuration's, for all of its rows.")
@click.option("--model", help="The model of that backend.")
@click.option(
    "--backend-option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument of that backend, such as base_url=URL. Never a key.",
)
@partial(cluster_options, reached="All of its machines have this checkout and DIR at these paths.")
def run(
    config: Path,
    out: Path,
    data_dir: Path | None,
    store: Path | None,
    jobs: int,
    data: tuple[str, ...],
    methods: tuple[str, ...],
    backend: str | None,
    model: str | None,
    options: tuple[str, ...],
    cluster: ClusterOptions | None,
) -> None:
    """Compute the cells of CONFIG that are missing in OUT."""
    from eval.report.section import write_section
    from eval.run.runner import Runner

    if cluster is not None:
        cluster.check()
    configuration = read_configuration(config)
    configuration = configuration.only(data, methods)
    name = config.stem
    if backend is not None:
        lm = Lm.of(backend, parse_backend_options(options) | ({"model": model} if model else {}))
        configuration, left_out = configuration.on_lm(lm)
        name = f"{name}-{re.sub(r'[^A-Za-z0-9.]+', '_', lm.name)}"
        if left_out:
            click.echo(f"left out, as they need weights: {', '.join(left_out)}", err=True)
    elif model is not None or options:
        raise DataError("--model and --backend-option need --backend")
    click.echo(f"{configuration.title}; time: {configuration.time}", err=True)
    given = {
        "--data": data,
        "--method": methods,
        "--backend": backend,
        "--model": model and Path(model).name,  # not where it lies
        "--backend-option": options,
    }
    runner = Runner(out, data_dir, store, jobs)
    planned = runner.jobs(configuration)
    about = {
        "title": configuration.title,
        "time": configuration.time,
        "command": " ".join(["python -m eval run", *map(shlex.quote, _command(config, given))]),
        "compare": configuration.compare,
        "reported_only": list(configuration.reported_only),
        "against": dict(configuration.against),
        "is_part": configuration.is_part,
        "duplicates": runner.duplicates(configuration),
    }
    # before the first cell: what a killed run has finished can be reported
    write_section(out, name, about, planned)
    if cluster is None:
        cells = runner.run(planned)
    else:
        with cluster.connected() as actors:
            from eval.run.on_cluster import ClusterRunner

            settings = out, data_dir, store, actors, cluster.n_cpus()
            cells = ClusterRunner(*settings).run(planned)
    click.echo(f"{len(cells)} cells in {out}; report: python -m eval report {out}")


def _command(config: Path, given: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a run, for a report."""
    arguments = [config.as_posix(), "--data-dir", "DIR"]
    for option, values in given.items():
        for value in [values] if isinstance(values, str) else values or ():
            arguments += [option, value]
    return arguments


@main.command()
@click.argument("out", default=Path("results"), type=_FOLDER)
def report(out: Path) -> None:
    """Write OUT/report.md, OUT/cells.csv and the plots."""
    from eval.report.markdown import write_report

    click.echo(write_report(out))


@main.command()
@click.argument("out", default=Path("results"), type=_FOLDER)
def publish(out: Path) -> None:
    """Write tables and pictures of OUT into the marked places of README.md and docs/."""
    from eval.report.publish import publish as write

    written, left = write(out, Path(__file__).parent.parent)
    for reason in left:
        click.echo(f"left as it is, {reason}", err=True)
    click.echo(f"written: {', '.join(written) or 'nothing'}")


@main.command("data")
@click.argument("names", nargs=-1)
@_DATA_DIR
def data(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Describe data sets, and count the test rows that also occur in the training split."""
    for name in names or data_sets.all_cards():
        card = data_sets.card_of(name)
        click.echo(f"{name}: {card.title}\n  source: {card.source}\n  licence: {card.licence}")
        if card.note:
            click.echo(f"  note: {card.note}")
        found = data_sets.read_data_set(name, data_dir)
        click.echo(
            f"  {len(found.train)} training and {len(found.test)} test rows, "
            f"{len(found.classes)} classes\n  {find_duplicates(found)}"
        )


@main.command()
def methods() -> None:
    """List the methods that a configuration may name."""
    from eval.methods import METHODS

    for name, method in METHODS.items():
        known = {
            "pool": "LM, the pool's prompts",
            "nothing": "no LM",
            "weights": "the weights of the LM",
            "gradients": "the weights of the LM, in a process of its own",
            "training": "trains another model",
        }
        needs = known.get(method.needs, "LM, prompts of its own")
        click.echo(f"{name}: {needs}" + ("" if method.uses_labels else ", no labels"))


if __name__ == "__main__":
    try:
        main(prog_name="python -m eval")
    except BlackboxError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
