"""The command `python -m eval`: run a configuration, report its results, describe data sets."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from pathlib import Path

import click

from blackbox.cli.cluster import ClusterOptions, cluster_options
from blackbox.errors import BlackboxError
from eval.data import data_sets
from eval.data.duplicates import find_duplicates
from eval.run.configuration import read_configuration

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
@partial(cluster_options, reached="All of its machines have this checkout and DIR at these paths.")
def run(
    config: Path,
    out: Path,
    data_dir: Path | None,
    store: Path | None,
    jobs: int,
    data: tuple[str, ...],
    cluster: ClusterOptions | None,
) -> None:
    """Compute the cells of CONFIG that are missing in OUT."""
    from eval.report.section import write_section
    from eval.run.runner import Runner

    if cluster is not None:
        cluster.check()
    configuration = read_configuration(config)
    if data:
        configuration = configuration.only(data)
    click.echo(f"{configuration.title}; time: {configuration.time}", err=True)
    runner = Runner(out, data_dir, store, jobs)
    planned = runner.jobs(configuration)
    about = {
        "title": configuration.title,
        "time": configuration.time,
        "command": " ".join(
            [
                f"python -m eval run {shlex.quote(config.as_posix())} --data-dir DIR",
                *(f"--data {shlex.quote(name)}" for name in data),
            ]
        ),
        "compare": configuration.compare,
        "reported_only": list(configuration.reported_only),
        "duplicates": runner.duplicates(configuration),
    }
    # before the first cell: what a killed run has finished can be reported
    write_section(out, config.stem, about, [job.digest for job in planned])
    if cluster is None:
        cells = runner.run(planned)
    else:
        with cluster.connected() as actors:
            from eval.run.on_cluster import ClusterRunner

            settings = out, data_dir, store, actors, cluster.n_cpus()
            cells = ClusterRunner(*settings).run(planned)
    click.echo(f"{len(cells)} cells in {out}; report: python -m eval report {out}")


@main.command()
@click.argument("out", default=Path("results"), type=_FOLDER)
def report(out: Path) -> None:
    """Write OUT/report.md, OUT/cells.csv and the plots."""
    from eval.report.markdown import write_report

    click.echo(write_report(out))


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
        known = {"pool": "LM, the pool's prompts", "nothing": "no LM", "gradients": "trains the LM"}
        needs = known.get(method.needs, "LM, prompts of its own")
        click.echo(f"{name}: {needs}" + ("" if method.uses_labels else ", no labels"))


if __name__ == "__main__":
    try:
        main(prog_name="python -m eval")
    except BlackboxError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
